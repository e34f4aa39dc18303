// Trend: a chart for each figure, of what the table below says too; a click leads where the row of that time leads.
const links = [...document.querySelectorAll("#periods tbody a")].reverse();
const language = document.documentElement.lang.replace("en", "en-GB"), days = { day: "numeric", month: "short" };
const colour = (name) => getComputedStyle(document.body).getPropertyValue(`--${name}`), hours = { hour: "2-digit", minute: "2-digit" };
const shown = (wall, how) => new Intl.DateTimeFormat(language, { timeZone: "UTC", ...how }).format(wall * 1000);
const draw = (box) => {
  const { at, range, marks, lines, limit, percent, floats } = JSON.parse(box.dataset.chart);
  const size = () => ({ width: box.clientWidth, height: 200 });
  const written = (y) => (y === null ? "–" : percent ? `${page.number(100 * y, 1)} %` : page.number(y, Math.abs(y) < 10 ? 3 : 1));
  const axis = { stroke: () => colour("quiet"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false } };
  const rule = (ctx, ink, dash, ...ends) => {
    Object.assign(ctx, { strokeStyle: colour(ink), lineWidth: 2 }).setLineDash(dash);
    ctx.strokeRect(...ends);
  };
  const drawRules = ({ ctx, bbox: { left, top, width, height }, valToPos }) => {
    ctx.save();
    if (limit) rule(ctx, "ng", [6, 4], left, valToPos(limit, "y", true), width, 0);
    for (const mark of marks) rule(ctx, "quiet", mark.kind === "fit" ? [] : [3, 4], valToPos(mark.at, "x", true), top, 0, height);
    ctx.restore();
  };
  const chart = new uPlot({
    ...size(), tzDate: (wall) => uPlot.tzDate(new Date(wall * 1000), "Etc/UTC"), padding: [8, 28, 0, 0], hooks: { draw: [drawRules] },
    cursor: { sync: { key: "trend" }, drag: { x: false, y: false } },
    scales: { x: { range }, y: { range: floats ? undefined : (u, low, high) => [0, 1.1 * Math.max(high, limit ?? 0) || 1] } },
    axes: [{ ...axis, size: 28, space: 64, values: (u, all, n, space, step) => all.map((x) => shown(x, step < 86400 ? hours : days)) },
      { ...axis, size: 58, values: (u, all) => all.map(written) }],
    series: [{ label: box.dataset.time, value: (u, x) => (x === null ? "–" : shown(x, { ...days, ...hours })) }, ...lines.map((line) => (
      { label: line.name, value: (u, y) => written(y), width: 2, points: { show: true, size: 6 }, stroke: () => colour(line.colour) }))],
  }, [at, ...lines.map((line) => line.values)], box);
  chart.over.addEventListener("click", () => links[chart.cursor.idx]?.click());
  new ResizeObserver(() => chart.setSize(size())).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw());
};
document.querySelectorAll(".chart").forEach(draw);
