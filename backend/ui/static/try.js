// Try: dropped images are inspected, two at a time, and stored nowhere; the table can be sorted, and saved as CSV or as a report.
const drop = document.getElementById("drop"), results = document.getElementById("results"), table = results.querySelector("table");
const progress = document.getElementById("progress"), [bar, cancel] = progress.children, [rows] = table.tBodies;
const heads = [...table.querySelectorAll("th")], digits = { score: 4, threshold: 4, n_regions: 0, area: 2, other_score: 4 };
const counted = results.querySelector("[role=status]");
let turn = 0; // another drop, and the cancel button, end the one before
const inspect = async (file, asked, tries = 0) => {
  const mm_per_px = drop.elements.mm_per_px.value.replace(",", "."), form = page.form({ mm_per_px, trial: true, ...asked, image: file });
  return page.call("/infer", form).catch(async (error) => {
    if (![429, 503].includes(error.status) || tries > 5) throw error;
    await new Promise((done) => setTimeout(done, 1000 * 2 ** tries)); // the line goes first
    return inspect(file, asked, tries + 1);
  });
};
const find = async (file, other) => {
  const word = ({ decision }) => decision ?? "none", named = Object.fromEntries(new URLSearchParams(other));
  const asked = [inspect(file, { heatmap: "overlay", overlay_px: 400 }), other && inspect(file, { heatmap: "none", ...named })];
  const [own, theirs] = await Promise.all(asked);
  const differs = theirs && word(theirs) !== word(own) && "differs", isForeign = own.reject_reason === "image" && "foreign";
  const remarks = [...[differs, isForeign].filter(Boolean).map((name) => page.text(name)), ...own.warnings].join(" ");
  return { ...own, differs, remarks, decision: word(own), n_regions: own.regions.length, area: own.regions[0]?.area_mm2,
    other_score: theirs?.score, picture: `data:image/png;base64,${own.heatmap_png_base64}`, other_decision: theirs && word(theirs) };
};
const show = (found) => {
  const row = Object.assign(rows.insertRow(), { className: found.differs || "" }), cell = row.insertCell();
  const button = Object.assign(document.createElement("button"), { type: "button", className: "thumb" });
  if (found.picture) cell.appendChild(button).append(Object.assign(new Image(), { src: found.picture, alt: found.name }));
  for (const { dataset: { key } } of heads.slice(1)) {
    const value = found[key] ?? "", isNumber = key in digits && value !== "", isWord = /decision$/.test(key);
    const textContent = isNumber ? page.number(value, digits[key]) : isWord ? page.text(value) : value;
    const shown = Object.assign(row.insertCell(), { textContent, className: key in digits ? "number" : isWord ? value : key });
    Object.assign(shown.dataset, { key, value: isNumber ? value.toFixed(digits[key]) : textContent });
  }
};
const sort = () => {
  const by = heads.findIndex((head) => head.ariaSort), way = heads[by]?.ariaSort === "descending" ? -1 : 1;
  const compare = (a, b) => way * a.cells[by].dataset.value.localeCompare(b.cells[by].dataset.value, undefined, { numeric: true });
  if (by > 0) rows.append(...[...rows.rows].sort(compare));
};
const tryAll = async (files) => {
  const mine = ++turn, [{ value: other, text: name }] = drop.elements.other.selectedOptions, waiting = [...files];
  const n = (which) => rows.querySelectorAll(which).length;
  const work = async (file = waiting.shift()) => {
    const found = file && await find(file, other).catch((error) => ({ decision: "failed", remarks: error.message }));
    if (!file || mine !== turn) return;
    show({ ...found, name: file.name });
    bar.value = rows.rows.length / files.length;
    const counts = { n: rows.rows.length, all: files.length, ok: n("[data-key=decision].ok"), ng: n("[data-key=decision].ng") };
    counted.textContent = page.text("counts", counts) + (other ? page.text("changes", { n: n(".differs"), name }) : "");
    await work();
  };
  rows.replaceChildren();
  table.classList.toggle("alone", !other);
  progress.hidden = results.hidden = !files.length;
  await Promise.all([work(), work()]);
  if (mine === turn) [progress.hidden] = [true, sort()];
};
const csv = () => { // a text that a spreadsheet would take for a formula begins with an apostrophe
  const point = page.number(0.5, 1)[1], risky = /^(?=\s*[=+\-@|%\uFF0B\uFF0D\uFF1D\uFF20])/;
  const seen = (cell) => cell.dataset.key && cell.offsetParent, safe = (text) => text.trim().replace(risky, "'").replaceAll('"', '""');
  const written = (cell) => (cell.matches("td.number") ? cell.dataset.value.replace(".", point) : `"${safe(cell.textContent)}"`);
  return [...table.rows].map((row) => [...row.cells].filter(seen).map(written).join(point === "," ? ";" : ",")).join("\r\n");
};
const report = () => {
  const copy = document.createElement("main");
  copy.append(counted.cloneNode(true), table.cloneNode(true));
  for (const button of copy.querySelectorAll("button")) button.replaceWith(...button.childNodes);
  return results.dataset.report + new XMLSerializer().serializeToString(copy);
};
page.takesImages(drop, tryAll);
cancel.addEventListener("click", () => { [turn, progress.hidden] = [turn + 1, true]; });
results.addEventListener("click", ({ target }) => {
  const head = target.closest("th"), way = head?.ariaSort === "ascending" ? "descending" : "ascending";
  if (head) heads.forEach((each) => { each.ariaSort = each === head ? way : null; });
  if (head) sort();
  const { save: type, name } = target.dataset;
  if (type) page.save(name, type, `\ufeff${type === "text/csv" ? csv() : report()}`);
});
