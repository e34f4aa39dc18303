// Learn: a dropped folder is shown and counted before it is stored.
for (const area of document.querySelectorAll("#drop")) {
  const one = (selector) => area.querySelector(selector), shown = 24, perCall = 20;
  let chosen = [];
  const show = (files) => {
    const n = page.number(files.length, 0), size = page.number(files.reduce((sum, file) => sum + file.size, 0) / 1e6, 1);
    [chosen, one(".chosen").hidden, one(".count").textContent] = [files, !files.length, page.text("count", { n, size })];
    one(".more").textContent = files.length > shown ? page.text("more", { n: shown }) : "";
    one(".preview").replaceChildren(...files.slice(0, shown).map((file) => {
      const src = URL.createObjectURL(file), onload = () => URL.revokeObjectURL(src);
      return Object.assign(new Image(72, 72), { src, onload, alt: file.name });
    }));
  };
  const keep = async (then) => {
    const label = one("[name=label]:checked").value, n = chosen.length, learn = () => document.getElementById("fit")?.requestSubmit();
    for (let done = 0; done < n; done += perCall) {
      await page.call(`/datasets/${label}/upload`, page.form({}, chosen.slice(done, done + perCall)));
      one("progress").value = Math.min(1, (done + perCall) / n);
    }
    page.notice(page.text("kept", { n: page.number(n, 0) }), "done");
    show([]);
    if (then === "fit" && label === "ok") document.body.addEventListener("htmx:afterSettle", learn, { once: true });
  };
  const busy = (isBusy) => {
    for (const button of area.querySelectorAll("[data-then]")) button.disabled = isBusy;
    Object.assign(one("progress"), { hidden: !isBusy, value: 0 });
  };
  page.takesImages(area, show);
  area.addEventListener("click", async ({ target: { dataset: { then } } }) => {
    if (then === undefined || then === "forget") return then && show([]);
    busy(true);
    await keep(then).catch((error) => page.notice(error.message));
    busy(false);
    htmx.trigger(document.body, "images-kept");
  });
}
