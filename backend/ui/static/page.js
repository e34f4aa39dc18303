"use strict";
// What all screens share: the caller's selection and token, choosers that lead somewhere, dropped folders.
const page = {
  base: document.body.dataset.base, language: document.documentElement.lang, roi: JSON.parse(document.body.dataset.roi),
  headers: JSON.parse(document.body.getAttribute("hx-headers")),
  text: (name, values = {}) => Object.entries(values).reduce(
    (text, [key, value]) => text.replaceAll(`{${key}}`, value), document.getElementById(`text-${name}`)?.content.textContent ?? ""),
  number: (value, digits = 3) => value.toLocaleString(page.language, { minimumFractionDigits: digits, maximumFractionDigits: digits }),
  form(fields, images = []) {
    const form = new FormData(), entries = Object.entries({ ...page.roi, ...fields });
    for (const entry of [...entries, ...images.map((image) => ["images", image])]) form.append(...entry);
    return form;
  },
  save(download, type, text) {
    const href = URL.createObjectURL(new Blob([text], { type }));
    Object.assign(document.createElement("a"), { href, download }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
  },
  // A public call, with a form if it changes something. Throws what the service says against it.
  async call(path, body) {
    const answer = await fetch(page.base + path, { method: body ? "POST" : "GET", headers: page.headers, body });
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) throw Object.assign(new Error(content.error || `${answer.status}`), { status: answer.status });
    return content;
  },
  notice: (text, kind = "error") => document.getElementById("notices").replaceChildren(
    Object.assign(document.createElement("p"), { className: `notice ${kind}`, textContent: text })),
  // Have an area take images: dropped, whole folders too, or chosen with the file inputs in it.
  takesImages(area, take) {
    const keep = (files) => take(files.filter((file) => /\.(png|jpe?g|bmp|tiff?|webp)$/i.test(file.name)));
    area.addEventListener("change", ({ target }) => target.type === "file" && keep([...target.files]));
    const over = (event) => area.classList.toggle("over", event.preventDefault() || event.type === "dragover");
    for (const type of ["dragover", "dragleave", "drop"]) area.addEventListener(type, over);
    area.addEventListener("drop", async (event) => {
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      const files = entries.length ? (await Promise.all(entries.map(filesOf))).flat() : [...event.dataTransfer.files];
      keep(files.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true })));
    });
  },
};
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader(), found = [];
  for (let some; (some = await new Promise((done, failed) => reader.readEntries(done, failed))).length;) found.push(...some);
  return (await Promise.all(found.map(filesOf))).flat();
}
// What is no fragment comes from a public call: done, or refused with a sentence.
document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  const { xhr, elt: { dataset } } = detail, isJson = xhr.getResponseHeader("Content-Type")?.startsWith("application/json");
  if (isJson) page.notice(...(xhr.status < 400 ? [dataset.done ?? "", "done"] : [JSON.parse(xhr.responseText).error]));
  detail.shouldSwap &&= !isJson;
});
document.addEventListener("htmx:sendError", () => page.notice(page.text("no-answer")));
document.addEventListener("change", ({ target: { dataset, form, value } }) => (
  "submits" in dataset ? form.submit() : "goes" in dataset && location.assign(value)));
