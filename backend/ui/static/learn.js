"use strict";
// Learn: a dropped folder is shown and counted before it is stored; a thumbnail shows its map on hover, focus or click.
for (const area of document.querySelectorAll("#drop")) {
  const shown = 24, perCall = 20, one = (selector) => area.querySelector(selector);
  let chosen = [];
  const show = (files) => {
    chosen = files;
    for (const old of one(".preview").children) URL.revokeObjectURL(old.src);
    one(".chosen").hidden = !files.length;
    one(".count").textContent = page.text("count", {
      n: page.number(files.length, 0), size: page.number(files.reduce((sum, file) => sum + file.size, 0) / 1e6, 1),
    });
    one(".more").textContent = files.length > shown ? page.text("more", { n: shown }) : "";
    one(".preview").replaceChildren(...files.slice(0, shown).map((file) =>
      Object.assign(document.createElement("img"), { src: URL.createObjectURL(file), alt: file.name, width: 72, height: 72 })));
  };
  const keep = async () => {
    const label = one("[name=label]:checked").value, bar = one("progress"), n = chosen.length;
    bar.hidden = false;
    for (let done = 0; done < n; done += perCall) {
      const form = new FormData();
      for (const [name, value] of Object.entries(page.roi())) form.append(name, value);
      for (const file of chosen.slice(done, done + perCall)) form.append("images", file, file.name);
      await page.call(`/datasets/${label}/upload`, form);
      bar.value = Math.min(1, (done + perCall) / n);
    }
    page.notice(page.text("kept", { n: page.number(n, 0) }), "done");
    return label;
  };
  page.takesImages(area, show);
  area.addEventListener("click", async ({ target }) => {
    const then = target.dataset.then;
    if (then === undefined) return;
    if (then === "forget") return show([]);
    for (const button of area.querySelectorAll("[data-then]")) button.disabled = true;
    try {
      const label = await keep();
      show([]);
      if (then === "fit" && label === "ok") {
        document.body.addEventListener("htmx:afterSettle", () => document.getElementById("fit")?.requestSubmit(), { once: true });
      }
      htmx.trigger(document.body, "images-kept");
    } catch (error) {
      page.notice(error.message);
      htmx.trigger(document.body, "images-kept");
    } finally {
      for (const button of area.querySelectorAll("[data-then]")) button.disabled = false;
      Object.assign(one("progress"), { hidden: true, value: 0 });
    }
  });
}

const showMap = (thumb, isShown) => {
  const image = thumb.querySelector("img");
  image.dataset.plain ??= image.src;
  image.src = isShown ? thumb.dataset.map : image.dataset.plain;
};
for (const [event, isShown] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
  document.addEventListener(event, (sent) => {
    const thumb = sent.target.closest?.(".thumb[data-map]");
    if (!thumb || (sent.pointerType && sent.pointerType !== "mouse") || thumb.getAttribute("aria-pressed") === "true") return;
    showMap(thumb, isShown);
  });
}
document.addEventListener("click", ({ target }) => {
  const thumb = target.closest(".thumb[data-map]");
  if (!thumb) return;
  const isPressed = thumb.getAttribute("aria-pressed") !== "true";
  thumb.setAttribute("aria-pressed", isPressed);
  showMap(thumb, isPressed);
});
