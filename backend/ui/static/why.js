"use strict";
// Why: an image that is sent from here or kept with a decision, what keeping it would do, and a report of it.
const found = document.getElementById("found"), send = document.getElementById("send");
let sent = null; // the file, where it came from here
const swap = (address, target, values) => htmx.ajax("POST", address, { target, swap: "innerHTML", values });
const asForm = (fields, name, file) => {
  const form = new FormData();
  for (const [key, value] of Object.entries({ ...page.roi(), ...fields })) form.append(key, value);
  form.append(name, file, file.name);
  return form;
};
const infer = (file, heatmap) => page.call("/infer", asForm({ mm_per_px: send.dataset.mmPerPx, heatmap }, "image", file));
const dataUrl = (blob) => new Promise((done) => {
  Object.assign(new FileReader(), { onload: ({ target }) => done(target.result) }).readAsDataURL(blob);
});
const fetched = async (address) => (await fetch(address)).blob();
const attribute = (element) => (element.localName === "img" ? "src" : "href");
const kept = async () => sent ?? new File([await fetched(found.querySelector("img").src)], found.firstElementChild.dataset.name);

const inspect = async ([file]) => {
  if (!file) return;
  page.notice(page.text("inspecting"), "");
  const { heatmap_png_base64: overlay, ...answer } = await infer(file, "overlay"), image = await dataUrl(file);
  answer.regions = answer.regions.slice(0, 50).map(({ contour, ...region }) => region);
  await swap(found.dataset.show, "#found", { answer: JSON.stringify(answer), name: file.name });
  sent = file;
  for (const each of found.querySelectorAll("[data-view]")) {
    each.setAttribute(attribute(each), each.dataset.view === "image" ? image : `data:image/png;base64,${overlay}`);
  }
  document.getElementById("notices").replaceChildren();
};
const tryKeeping = async (label) => {
  let { score, mode, scoring } = found.firstElementChild.dataset;
  if (!score) ({ measured_score: score, score_mode: mode, scoring } = (await infer(await kept(), "none")).params);
  await swap(found.dataset.would, "#would", { label, score, mode, scoring });
};
const keep = async (label) => {
  page.notice(page.text("keeping"), "");
  const form = asForm({ metas: JSON.stringify({ mm_per_px: +send.dataset.mmPerPx }) }, "images", await kept());
  const { saved: [name] } = await page.call(`/datasets/${label}/upload`, form);
  await swap(found.dataset.kept, "#would", { label, name });
  document.getElementById("notices").replaceChildren();
};
const report = async (name) => {
  const copy = found.cloneNode(true), style = await (await fetched(document.querySelector("link[href$='page.css']").href)).text();
  for (const each of copy.querySelectorAll(".actions, .no-print")) each.remove();
  for (const each of copy.querySelectorAll("img, image")) {
    const address = each.getAttribute(attribute(each));
    if (!address.startsWith("data:")) each.setAttribute(attribute(each), await dataUrl(await fetched(address)));
  }
  const whole = document.implementation.createHTMLDocument(name), { lang } = document.documentElement;
  whole.documentElement.lang = lang;
  whole.head.append(Object.assign(whole.createElement("meta"), { httpEquiv: "Content-Type", content: "text/html; charset=utf-8" }),
    Object.assign(whole.createElement("style"), { textContent: style }));
  whole.body.append(copy);
  const file = new Blob(["<!doctype html>", new XMLSerializer().serializeToString(whole.documentElement)], { type: "text/html" });
  Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: name }).click();
};
if (send) page.takesImages(send, (files) => inspect(files).catch((error) => page.notice(error.message)));
found.addEventListener("input", ({ target }) => { found.querySelector(".over").style.opacity = target.value; });
found.addEventListener("click", async ({ target }) => {
  const { keep: tried, confirm, report: name } = target.dataset, act = tried ? tryKeeping : confirm ? keep : name && report;
  if (act) await act(tried || confirm || name).catch((error) => page.notice(error.message));
});
