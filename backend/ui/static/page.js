"use strict";
// What all screens share: the caller's selection and token, choosers that lead somewhere, dropped folders.
const page = {
  base: document.body.dataset.base,
  headers: JSON.parse(document.body.getAttribute("hx-headers")),
  text: (name, values = {}) => Object.entries(values).reduce(
    (text, [key, value]) => text.replaceAll(`{${key}}`, value), document.getElementById(`text-${name}`)?.content.textContent ?? ""),
  number: (value, digits = 3) => new Intl.NumberFormat(document.documentElement.lang,
    { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value),
  roi() {
    const { recipe, roleId, roiId, modelKey } = document.body.dataset;
    return { recipe_id: recipe, role_id: roleId, roi_id: roiId, ...(modelKey && { model_key: modelKey }) };
  },
  // A public call; JSON for an object, a form for FormData. Throws what the service says against it.
  async call(path, body, headers = {}) {
    const isForm = body instanceof FormData;
    const answer = await fetch(page.base + path, {
      method: body ? "POST" : "GET",
      headers: { ...page.headers, ...(body && !isForm && { "Content-Type": "application/json" }), ...headers },
      body: !body || isForm ? body : JSON.stringify(body),
    });
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) throw Object.assign(new Error(content.error || `${answer.status}`), { status: answer.status });
    return content;
  },
  notice(text, kind = "error") {
    const said = Object.assign(document.createElement("p"), { className: `notice ${kind}`, textContent: text });
    document.getElementById("notices").replaceChildren(said);
  },
  // Have an area take images: dropped, whole folders too, or chosen with the file inputs in it.
  takesImages(area, take) {
    const keep = (files) => take(files.filter((file) => /\.(png|jpe?g|bmp|tiff?|webp)$/i.test(file.name)));
    for (const input of area.querySelectorAll("input[type=file]")) {
      input.addEventListener("change", () => keep([...input.files]));
    }
    for (const [event, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
      area.addEventListener(event, (sent) => { sent.preventDefault(); area.classList.toggle("over", isOver); });
    }
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
  if (!detail.xhr.getResponseHeader("Content-Type")?.startsWith("application/json")) return;
  detail.shouldSwap = false;
  if (detail.xhr.status < 400) return page.notice(detail.elt.dataset.done ?? "", "done");
  try { page.notice(JSON.parse(detail.xhr.responseText).error); } catch { page.notice(`${detail.xhr.status}`); }
});
document.addEventListener("htmx:sendError", () => page.notice(page.text("no-answer")));

document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-submits]")) target.form.submit();
  if (target.matches("[data-goes]")) location.assign(target.value);
});
