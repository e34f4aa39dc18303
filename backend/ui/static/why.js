// Why: an image that is sent from here or kept with a decision, what keeping it would do, and a report of it.
const found = document.getElementById("found"), send = document.getElementById("send");
let sent = null; // the file, where it came from here
const swap = (address, target, values) => htmx.ajax("POST", address, { target, values });
const infer = (file, scale, heatmap) => page.call("/infer", page.form({ mm_per_px: scale, heatmap, trial: true, image: file }));
const dataUrl = (blob) => new Promise((done) =>
  Object.assign(new FileReader(), { onload: ({ target }) => done(target.result) }).readAsDataURL(blob));
const fetched = async (address) => (await fetch(address)).blob();
const attribute = (element) => (element.localName === "img" ? "src" : "href");
const kept = async () => sent ?? new File([await fetched(found.querySelector("img").src)], found.firstElementChild.dataset.name);
const acts = {
  async inspect([file]) {
    page.notice(page.text("inspecting"), "");
    const { heatmap_png_base64: overlay, ...answer } = await infer(file, send.dataset.mmPerPx, "overlay"), image = await dataUrl(file);
    answer.regions = answer.regions.slice(0, 50).map(({ contour, ...region }) => region);
    await swap(found.dataset.show, "#found", { answer: JSON.stringify(answer), name: file.name });
    sent = file;
    const views = { image, overlay: `data:image/png;base64,${overlay}` };
    for (const each of found.querySelectorAll("[data-view]")) each.setAttribute(attribute(each), views[each.dataset.view]);
    document.getElementById("notices").replaceChildren();
  },
  async try(label) {
    let { score, mode, digest, mmPerPx } = found.firstElementChild.dataset;
    const params = score || (await infer(await kept(), mmPerPx, "none")).params;
    if (!score) ({ measured_score: score, score_mode: mode, image_digest: digest } = params);
    await swap(found.dataset.would, "#would", { label, score, mode, digest });
  },
  async keep(label) {
    const metas = JSON.stringify({ mm_per_px: +found.firstElementChild.dataset.mmPerPx });
    const { saved: [name] } = await page.call(`/datasets/${label}/upload`, page.form({ metas, images: await kept() }));
    await swap(found.dataset.kept, "#would", { label, name });
  },
  async report(download) {
    found.querySelector(".over").removeAttribute("style");
    const copy = found.cloneNode(true), style = await (await fetched(document.querySelector("link[href$='page.css']").href)).text();
    for (const each of copy.querySelectorAll(".actions, .no-print")) each.remove();
    for (const each of copy.querySelectorAll("img, image")) {
      const address = each.getAttribute(attribute(each));
      if (!address.startsWith("data:")) each.setAttribute(attribute(each), await dataUrl(await fetched(address)));
    }
    const head = `<!doctype html><html lang="${document.documentElement.lang}"><meta charset="utf-8"><title>${document.title}</title>`;
    const text = `${head}<style>${style}</style><body class="report">${new XMLSerializer().serializeToString(copy)}`;
    page.save(download, "text/html", text);
  },
};
const act = (name, value) => acts[name](value).catch((error) => page.notice(error.message));
if (send) page.takesImages(send, (files) => files.length && act("inspect", files));
found.addEventListener("input", ({ target }) => { found.querySelector(".over").style.opacity = target.value; });
found.addEventListener("click", ({ target: { dataset } }) => dataset.act && act(dataset.act, dataset.value));
