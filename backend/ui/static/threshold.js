"use strict";
// Threshold: a histogram of the stored images' scores, a line across it (a range input), and what a threshold there is worth.
// Scores compare by ratios, so the axis is that of their logarithms.
const showHistogram = (box) => {
  const data = JSON.parse(box.dataset.scores), { images, good, bad, promises, in_force: inForce } = data;
  const form = box.closest("form"), fields = form.elements, tried = form.querySelector("#tried"), bins = 50;
  const line = box.querySelector(".across"), picture = form.querySelector(".at-cursor");
  const colour = (name) => getComputedStyle(box).getPropertyValue(`--${name}`);
  const from = data.from_log2, to = data.to_log2, low = 2 ** from, place = (score) => Math.log2(Math.max(score, low));
  const counts = (label, sign) => images.reduce((found, image) => {
    if (image.label === label) found[Math.min(bins - 1, Math.floor((place(image.score) - from) / (to - from) * bins))] += sign;
    return found;
  }, new Array(bins).fill(null));
  const bars = (name) => ({ fill: colour(name), stroke: colour(name), points: { show: false }, paths: uPlot.paths.bars({ size: [0.9] }) });
  const axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  const drawInForce = ({ bbox, ctx, valToPos }) => {
    if (!inForce) return;
    ctx.save();
    Object.assign(ctx, { strokeStyle: colour("quiet"), lineWidth: 2 }).setLineDash([6, 5]);
    ctx.strokeRect(valToPos(place(inForce), "x", true), bbox.top - 9, 0, bbox.height + 18);
    ctx.restore();
  };
  const showImage = (at) => {
    const away = (image) => Math.abs(place(image.score) - at);
    const nearest = images.reduce((best, image) => (away(image) < away(best) ? image : best), images[0]);
    const [image, caption] = picture.children, { label, name } = nearest;
    image.hidden = !name;
    const address = `${box.dataset.preview}&${new URLSearchParams({ label, filename: name })}`;
    if (name && image.getAttribute("src") !== address) image.src = address;
    caption.children[0].textContent = name || nearest.id;
    caption.children[1].textContent = page.text(label, { value: page.number(nearest.score, 4) });
  };
  const show = () => {
    const value = fields.how.value === "rule" ? data.proposed : parseFloat(fields.threshold.value.replace(",", ".")) || low;
    const above = (scores) => scores.filter((score) => score > value).length;
    const promise = fields.how.value === "rule" ? data.by_rule : promises[good.length - above(good)];
    const said = {
      good: page.text("of", { n: above(good), all: data.n_ok }), bad: page.text("of", { n: above(bad), all: bad.length }),
      expected: page.number(1000 * promise.expected_false_alarm_rate, 1), bound: page.number(1000 * promise.false_alarm_rate_upper_95, 1),
    };
    for (const [name, text] of Object.entries(said)) form.querySelector(`[data-worth=${name}]`).textContent = text;
    line.value = place(value);
    line.setAttribute("aria-valuetext", page.number(value, 4));
    if (images.length) showImage(place(value));
  };
  const chart = new uPlot({
    width: box.clientWidth, height: 260, padding: [8, 12, 0, 0],
    legend: { show: false }, cursor: { drag: { x: false }, y: false, points: { show: false } },
    scales: { x: { time: false, range: [from, to] }, y: { range: (u, low, high) => [1.1 * low, 1.1 * high] } },
    axes: [{ ...axis, size: 32, incrs: [0.25, 0.5, 1, 2], values: (u, all) => all.map((each) => page.number(2 ** each, 2)) },
      { ...axis, size: 36, incrs: [1, 2, 5, 10, 20, 50, 100, 500, 1000],
        values: (u, all) => all.map((each) => page.number(Math.abs(each), 0)) }],
    series: [{}, bars("ok"), bars("ng")],
    hooks: { draw: [drawInForce], setCursor: [(u) => images.length && u.cursor.left >= 0 && showImage(u.posToVal(u.cursor.left, "x"))] },
  }, [Array.from({ length: bins }, (_, bin) => from + (bin + 0.5) * (to - from) / bins), counts("ok", 1), counts("ng", -1)], box);
  chart.over.append(line);
  new ResizeObserver(() => chart.setSize({ width: box.clientWidth, height: 260 })).observe(box);
  line.addEventListener("input", () => {
    [fields.how.value, fields.threshold.value] = ["hand", page.number(2 ** line.value, 4)];
    tried.replaceChildren();
    show();
  });
  box.closest("#scores").addEventListener("change", ({ target }) => {
    if (target.name === "threshold") fields.how.value = "hand";
    if (target.name === "how" && !fields.threshold.value) fields.threshold.value = page.number(data.proposed ?? 1, 4);
    if (target.name !== "reason") { tried.replaceChildren(); show(); }
  });
  fields.score_mode.value = data.mode;
  show();
};
document.body.addEventListener("htmx:load", ({ target }) => target.querySelectorAll(".histogram").forEach(showHistogram));
