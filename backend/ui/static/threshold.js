// Threshold: the stored images' scores by their logarithms, a line across them (a range input), and what a threshold there is worth.
const showHistogram = (box) => {
  const data = JSON.parse(box.dataset.scores), form = box.closest("form"), fields = form.elements;
  const [line] = box.children, [picture, caption] = form.querySelector(".at-cursor").children;
  const colour = (name) => getComputedStyle(box).getPropertyValue(`--${name}`), size = () => ({ width: box.clientWidth, height: 260 });
  const bars = (name) => ({ fill: colour(name), stroke: colour(name), points: { show: false }, paths: uPlot.paths.bars({ size: [0.9] }) });
  const axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  const showImage = (at) => {
    const away = (image) => Math.abs(image.at - at);
    const nearest = data.images.reduce((best, image) => (away(image) < away(best) ? image : best));
    picture.hidden = !nearest.src;
    if (nearest.src && picture.getAttribute("src") !== nearest.src) picture.src = nearest.src;
    [caption.children[0].textContent, caption.children[1].textContent] = [nearest.name, nearest.said];
  };
  const show = () => {
    const isByRule = fields.how.value === "rule", typed = parseFloat(fields.threshold.value.replace(",", ".")) || 0;
    const value = isByRule ? data.proposed : typed;
    const [good, bad] = [data.good, data.bad].map((scores) => scores.filter((score) => score <= value).length);
    const said = { good: data.worth.good[good], bad: data.worth.bad[bad], ...(isByRule ? data.by_rule : data.worth.promises[good]) };
    for (const [name, text] of Object.entries(said)) form.querySelector(`[data-worth=${name}]`).textContent = text;
    line.value = Math.log2(value || 1e-9);
    line.setAttribute("aria-valuetext", page.number(value, 4));
    if (data.images.length) showImage(+line.value);
  };
  const chart = new uPlot({
    ...size(), padding: [8, 12, 0, 0], legend: { show: false }, cursor: { drag: { x: false }, y: false, points: { show: false } },
    scales: { x: { time: false, range: [+line.min, +line.max] }, y: { range: (u, low, high) => [1.1 * low, 1.1 * high] } },
    axes: [{ ...axis, size: 32, incrs: [0.25, 0.5, 1, 2], values: (u, all) => all.map((each) => page.number(2 ** each, 2)) },
      { ...axis, size: 36, incrs: [1, 2, 5, 10, 20, 50, 100, 500, 1000], values: (u, all) => all.map((n) => page.number(Math.abs(n), 0)) }],
    series: [{}, bars("ok"), bars("ng")],
    hooks: { setCursor: [(u) => data.images.length && u.cursor.left >= 0 && showImage(u.posToVal(u.cursor.left, "x"))] },
  }, data.bars, box);
  chart.over.append(...box.querySelectorAll(".across"));
  new ResizeObserver(() => chart.setSize(size())).observe(box);
  const change = ({ target }) => {
    if (target.name === "reason") return;
    if (target === line) fields.threshold.value = page.number(2 ** line.value, 4);
    if (target === line || target.name === "threshold") fields.how.value = "hand";
    fields.threshold.value ||= page.number(data.proposed ?? 1, 4);
    form.querySelector("#tried").replaceChildren(); // it was about another threshold
    show();
  };
  line.addEventListener("input", change);
  form.querySelector(".columns").addEventListener("change", change);
  fields.score_mode.value = data.mode;
  show();
};
document.body.addEventListener("htmx:load", ({ target }) => target.querySelectorAll(".histogram:not(:has(.uplot))").forEach(showHistogram));
