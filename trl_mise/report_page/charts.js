// Draws what report_charts.py worked out. Nothing is computed here but places on the screen.

const SHAPES = ["circle", "triangle", "rect", "rectRot"];
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3], [4, 4], [1, 2], [12, 4], [3, 6]];
const charts = new Map(); // figure -> [spec, Chart or null]

function seriesColour(k) {
  return variable(`--series-${k % 8}`);
}

function transparent(hex, share) {
  return `rgba(${rgb(hex)}, ${share})`;
}

function dataset(spec, series) {
  const colour = seriesColour(series.colour);
  const base = { label: series.name, borderColor: colour, backgroundColor: colour, counts: series.n, spanGaps: true, clip: 10 };
  if (series.look === "bar") {
    return { ...base, data: series.y, backgroundColor: transparent(colour, spec.stacked ? 0.9 : 0.75), borderWidth: 0,
      categoryPercentage: spec.stacked ? 1 : 0.94, barPercentage: spec.stacked ? 0.96 : 1, pointStyle: "rect" };
  }
  const data = series.x.map((x, k) => ({ x, y: series.y[k] }));
  const shape = SHAPES[series.colour % SHAPES.length];
  const few = data.length <= 30;
  if (series.look === "diagonal") {
    return { ...base, data, borderWidth: 1.5, borderDash: [3, 4], pointRadius: 0, pointHitRadius: 0, pointStyle: "line" };
  }
  if (series.look === "faint") {
    return { ...base, data, borderWidth: 1, borderColor: transparent(colour, 0.45), pointRadius: few ? 1.5 : 0, pointStyle: "circle", backgroundColor: transparent(colour, 0.45) };
  }
  if (series.look === "dots") {
    return { ...base, data, borderWidth: 1.5, borderDash: [5, 4], pointRadius: 5, pointHoverRadius: 7, pointStyle: "rectRot" };
  }
  let radius = few ? 3 : 0;
  if (series.n.length && spec.name === "reliability") { // the more episodes, the larger
    const most = Math.max(...series.n);
    radius = series.n.map((n) => 2.5 + 6 * Math.sqrt(n / most));
  }
  return { ...base, data, borderWidth: 2, borderDash: DASHES[series.colour % DASHES.length], pointRadius: radius, pointHoverRadius: 6, pointStyle: shape, tension: 0 };
}

/** Dashed lines at the updates of warnings. */
const eventMarks = {
  id: "eventMarks",
  afterDatasetsDraw(chart, _, options) {
    const { ctx, chartArea, scales } = chart;
    if (!options.at || !options.at.length || !scales.x) return;
    ctx.save();
    ctx.strokeStyle = variable("--warn");
    ctx.lineWidth = 1.2;
    ctx.setLineDash([4, 3]);
    for (const update of options.at) {
      const x = scales.x.getPixelForValue(update);
      if (x < chartArea.left || x > chartArea.right) continue;
      ctx.beginPath();
      ctx.moveTo(x, chartArea.top);
      ctx.lineTo(x, chartArea.bottom);
      ctx.stroke();
    }
    ctx.restore();
  },
};

function settings(spec, marks) {
  const soft = variable("--soft");
  const line = variable("--line");
  const bars = spec.series.some((series) => series.look === "bar");
  const axis = (title) => ({
    title: { display: Boolean(title), text: title, color: soft, font: { size: 12 } },
    ticks: { color: soft, font: { size: 11.5 }, maxRotation: 0, autoSkipPadding: 14 },
    grid: { color: line, lineWidth: 0.7 },
    border: { color: line },
  });
  const x = { ...axis(spec.x), type: bars ? "category" : "linear", stacked: spec.stacked };
  if (bars) x.grid.display = false;
  const all = spec.series.flatMap((series) => series.x);
  if (!bars && all.length) {
    x.min = spec.name === "reliability" ? 0 : Math.min(...all);
    x.max = spec.name === "reliability" ? 1 : Math.max(...all);
    if (x.min === x.max) { x.min -= 1; x.max += 1; }
    if (spec.name !== "reliability") x.ticks.precision = 0;
  }
  const y = { ...axis(spec.y), stacked: spec.stacked };
  if (spec.unit) { y.min = 0; y.max = 1; } else { y.beginAtZero = true; y.grace = "4%"; }
  return {
    animation: false,
    responsive: true,
    maintainAspectRatio: false,
    interaction: { mode: spec.name === "reliability" ? "nearest" : "index", intersect: false },
    scales: { x, y },
    layout: { padding: { top: 4, right: 8 } },
    plugins: {
      eventMarks: { at: spec.marked ? marks : [] },
      legend: { display: false },
      tooltip: {
        usePointStyle: true,
        callbacks: {
          title: (items) => (items.length ? `${spec.x} ${items[0].label}` : ""),
          label: (item) => {
            const n = item.dataset.counts && item.dataset.counts[item.dataIndex];
            return ` ${item.dataset.label}: ${Number(item.parsed.y.toPrecision(4))}${n === undefined ? "" : ` (n = ${number(n)})`}`;
          },
        },
      },
    },
  };
}

const PATHS = {
  circle: "M12 2.5a3.5 3.5 0 1 0 .01 0z",
  triangle: "M12 2l4.2 7.4h-8.4z",
  rect: "M8.8 2.8h6.4v6.4h-6.4z",
  rectRot: "M12 1.4l4.6 4.6-4.6 4.6-4.6-4.6z",
};

function drawing(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** A piece of the curve as it is drawn: dashes and points tell as much as colour does. */
function sample(data, bars) {
  const picture = drawing("svg", { width: 24, height: 12, viewBox: "0 0 24 12", "aria-hidden": "true" });
  if (bars) {
    picture.append(drawing("rect", { x: 6, y: 0, width: 12, height: 12, rx: 2, fill: data.backgroundColor }));
    return picture;
  }
  picture.append(drawing("path", { d: "M0 6h24", stroke: data.borderColor, "stroke-width": data.borderWidth, "stroke-dasharray": (data.borderDash || []).join(" "), fill: "none" }));
  if (data.pointRadius) picture.append(drawing("path", { d: PATHS[data.pointStyle] || PATHS.circle, fill: data.backgroundColor }));
  return picture;
}

/** Names of the curves; each can be switched off and on. There before the chart is, so that nothing moves when it comes. */
function legend(figure, spec) {
  const bars = spec.series.some((series) => series.look === "bar");
  figure.querySelector(".curves").replaceChildren(...spec.series.map((series, k) => {
    const button = el("button", { type: "button", cls: "curve", attrs: { "aria-pressed": "true" } }, sample(dataset(spec, series), bars), series.name);
    button.addEventListener("click", () => {
      const chart = charts.get(figure)[1] || draw(figure, spec, []);
      chart.setDatasetVisibility(k, !chart.isDatasetVisible(k));
      chart.update();
      button.setAttribute("aria-pressed", String(chart.isDatasetVisible(k)));
    });
    return button;
  }));
}

function draw(figure, spec, marks) {
  const known = charts.get(figure);
  if (known && known[1]) known[1].destroy();
  const bars = spec.series.some((series) => series.look === "bar");
  Chart.defaults.font.family = variable("--sans");
  const chart = new Chart(figure.querySelector("canvas"), {
    type: bars ? "bar" : "line",
    data: { labels: bars ? spec.categories : undefined, datasets: spec.series.map((series) => dataset(spec, series)) },
    options: settings(spec, marks),
    plugins: [eventMarks],
  });
  charts.set(figure, [spec, chart]);
  legend(figure, spec);
  return chart;
}

/** Draws a chart when it comes near the window, and its numbers when they are asked for. */
function prepareCharts(specs, marks) {
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      if (!charts.get(entry.target)[1]) draw(entry.target, charts.get(entry.target)[0], marks);
    }
  }, { rootMargin: "400px 0px" });
  for (const spec of specs) {
    const figure = byId(`chart-${spec.name}`);
    if (!figure || !spec.series.length) continue;
    charts.set(figure, [spec, null]);
    legend(figure, spec);
    watcher.observe(figure);
    prepareNumbers(figure);
  }
  const redraw = (all) => {
    repaint();
    for (const [figure, [spec, chart]] of charts) if (chart || all) draw(figure, spec, marks);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(false));
  addEventListener("beforeprint", () => { document.documentElement.classList.add("light"); redraw(true); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("light"); redraw(false); });
}

function prepareNumbers(figure) {
  const details = figure.querySelector("details.numbers");
  details.addEventListener("toggle", () => {
    if (details.open) details.querySelector(".scroll").replaceChildren(numbersTable(charts.get(figure)[0]));
  });
}

/** What a chart shows, as a table. */
function numbersTable(spec) {
  const shown = spec.series.filter((series) => series.look !== "diagonal");
  const counted = shown.some((series) => series.n.length);
  const head = el("tr", {}, el("th", { scope: "col" }, spec.x));
  for (const series of shown) {
    head.append(el("th", { scope: "col" }, series.name));
    if (counted) head.append(el("th", { scope: "col" }, "n"));
  }
  const rows = new Map();
  shown.forEach((series, k) => series.x.forEach((x, at) => {
    if (!rows.has(x)) rows.set(x, []);
    rows.get(x)[k] = [series.y[at], series.n[at]];
  }));
  const body = [...rows.keys()].sort((a, b) => a - b).map((x, at) => {
    const row = el("tr", {}, el("th", { scope: "row" }, spec.categories.length ? spec.categories[at] : String(x)));
    shown.forEach((_, k) => {
      const cell = rows.get(x)[k];
      row.append(el("td", {}, cell ? String(cell[0]) : ""));
      if (counted) row.append(el("td", { cls: "soft" }, cell && cell[1] !== undefined ? number(cell[1]) : ""));
    });
    return row;
  });
  return el("table", { cls: "plain" }, el("thead", {}, head), el("tbody", {}, ...body));
}

/** The chart at the end, of whatever measure is chosen. */
function prepareExplorer(measures, stepName) {
  const figure = byId("explorer");
  const names = Object.keys(measures);
  if (!names.length) {
    byId("measures").hidden = true;
    return;
  }
  const select = byId("measure");
  select.append(...names.map((name) => el("option", { value: name }, name)));
  const show = () => {
    const [x, y] = measures[select.value];
    const series = { name: select.value, look: "line", colour: 0, x, y, n: [] };
    const spec = { name: "measure", title: select.value, x: stepName, y: "", unit: false, categories: [], stacked: false, marked: false, series: [series] };
    figure.querySelector("canvas").setAttribute("aria-label", `${select.value}: ${y[0]} to ${y[y.length - 1]}`);
    const details = figure.querySelector("details.numbers");
    draw(figure, spec, []);
    if (details.open) details.querySelector(".scroll").replaceChildren(numbersTable(spec));
  };
  select.addEventListener("change", show);
  prepareNumbers(figure);
  const watcher = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) { watcher.disconnect(); show(); }
  }, { rootMargin: "300px 0px" });
  watcher.observe(figure);
}
