"use strict";
// Curves and bars, by plotly.js: made once a theme, then only their numbers change.

const CONFIG = { displayModeBar: false, responsive: true };
const BLUE = () => css("--accent"), WARM = () => css("--warm");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(x, y, more = {}) {
  const axis = (given) => ({
    gridcolor: css("--line"), zerolinecolor: css("--soft"), linecolor: css("--line"),
    fixedrange: true, automargin: false, ...given, title: { text: given.title, standoff: 6 },
  });
  return {
    margin: MARGIN, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: false,
    font: { family: "system-ui, sans-serif", size: 12, color: css("--soft") },
    xaxis: axis(x), yaxis: axis(y), ...more,
  };
}

const floor = 0.25 / (p * p); // where "none wrong" is drawn on a logarithmic axis
const wrong = (accuracy) => Math.max(1 - accuracy, floor);
const wrongText = (accuracy) => `${Math.round((1 - accuracy) * p * p)} of ${p * p} wrong`;

const MARGIN = { l: 54, r: 10, t: 6, b: 40 };
const WIDTH_RANGE = [Math.max(...DATA.all_rows.map((r) => r[0])) + 1.5,
  Math.min(...DATA.all_rows.map((r) => r[0])) - 1.5];
const ERROR_RANGE = [Math.log10(floor) - 0.25, 0.15];
const ring = element($("accuracy-box"), "div", "ring");

// A node over the chart, not a trace in it: moving it redraws nothing.
function moveRing() {
  const row = rowOf.get(`${state.d}-${state.seed}`);
  const x = (state.d - WIDTH_RANGE[0]) / (WIDTH_RANGE[1] - WIDTH_RANGE[0]);
  const y = (Math.log10(wrong(row.full_acc)) - ERROR_RANGE[0]) / (ERROR_RANGE[1] - ERROR_RANGE[0]);
  ring.style.left = `calc(${MARGIN.l}px + ${x} * (100% - ${MARGIN.l + MARGIN.r}px))`;
  ring.style.top = `calc(${MARGIN.t}px + ${1 - y} * (100% - ${MARGIN.t + MARGIN.b}px))`;
}

function accuracyChart() {
  const rows = DATA.all_rows;
  const ticks = [1, 0.1, 0.01, 0.001, 0.0001].filter((t) => t > 2 * floor);
  Plotly.newPlot("accuracy", [
    {
      x: rows.map((r) => r[0]), y: rows.map((r) => wrong(r[2])), mode: "markers", type: "scatter",
      marker: { color: BLUE(), size: 6, opacity: 0.65 }, customdata: rows,
      text: rows.map((r) => `d = ${r[0]}, seed ${r[1]}: ${wrongText(r[2])}`),
      hovertemplate: "%{text}<extra></extra>",
    },
  ], layout(
    { title: "hidden width d", range: WIDTH_RANGE },
    {
      title: "share of pairs wrong", type: "log", range: ERROR_RANGE,
      tickvals: [...ticks, floor], ticktext: [...ticks.map(String), "none"],
    },
  ), CONFIG);
  $("accuracy").on("plotly_click", (event) => {
    const [d, seed] = event.points[0].customdata ?? [];
    if (widths.includes(d)) choose({ d, seed: seeds.includes(seed) ? seed : state.seed });
  });
}

function barChart(id, at, x, y, template) {
  const bars = { type: "bar", x: at, y: at.map(() => 0), marker: { color: BLUE() } };
  const range = [0.3, at.length + 0.7];
  Plotly.newPlot(id, [{ ...bars, hovertemplate: template }],
    layout({ ...x, range }, y, { bargap: 0.15 }), CONFIG);
}

function makeCharts() {
  accuracyChart();
  barChart("eigenvalues", BAR_RANKS, { title: "rank by magnitude" }, { title: "eigenvalue, logits" },
    "λ<sub>%{x}</sub> = %{y:.4g}<br>%{customdata:.1%} of Σ|λ|<extra></extra>");
  barChart("shares", Array.from({ length: n_k }, (_, k) => k + 1), { title: "frequency k" },
    { title: "share of power", tickformat: ".0%", rangemode: "tozero" },
    "k = %{x}: %{y:.1%}<br>amplitude %{customdata[0]:.3g} logits<br>" +
    "%{customdata[1]} hidden units<extra></extra>");
}

const MOST_BARS = 48;
const BAR_RANKS = Array.from({ length: Math.min(MOST_BARS, 2 * Math.max(8, ...widths), 2 * p) }, (_, i) => i + 1);

// Ranges over all widths of a seed, so that the axes stand still under the slider.
const remembered = new Map();
function remember(key, make) {
  if (!remembered.has(key)) remembered.set(key, make());
  return remembered.get(key);
}
const allModels = () => widths.map((d) => model(d, state.seed)).filter(Boolean);
const largestEigenvalue = (at) => remember(`eigenvalue ${at} ${state.seed}`, () => Math.max(
  ...allModels().map((m) => Math.abs(m.eigenvalues[at * m.eigenvalues.length / remainders.length]))));
const largestShare = () => remember(`share ${state.seed}`, () => Math.max(
  0.05, ...allModels().map((m) => Math.max(...m.shares))));

// A range that stays costs a chart far less than one that changes.
const ranges = {};
function restyle(id, traces, range) {
  const key = `${range} ${chartTheme}`;
  if (ranges[id] === key) return Plotly.restyle(id, traces);
  ranges[id] = key;
  return Plotly.update(id, traces, { "yaxis.range": range });
}

function drawCharts(m) {
  if (!m) return;
  const at = remainders.indexOf(state.c), r = m.eigenvalues.length / remainders.length;
  const values = Array.from(m.eigenvalues.subarray(at * r, (at + 1) * r)), own = state.scale === "own";
  const total = values.reduce((sum, v) => sum + Math.abs(v), 0) || 1;
  const shown = BAR_RANKS.map((rank) => values[rank - 1] ?? null);
  const limit = 1.08 * ((own ? Math.abs(values[0]) : largestEigenvalue(at)) || 1);
  restyle("eigenvalues", {
    y: [shown], customdata: [shown.map((v) => Math.abs(v) / total)],
    "marker.color": [shown.map((v) => (v > 0 ? WARM_NOW : BLUE_NOW))],
  }, [-limit, limit]);
  $("spectrum-title").textContent = `Eigenspectrum of remainder ${state.c}, d = ${state.d}` +
    (r > BAR_RANKS.length ? `: strongest ${BAR_RANKS.length} of ${r}` : `: ${r} eigenvalues`);

  const shares = Array.from(m.shares);
  restyle("shares", {
    y: [shares], customdata: [shares.map((_, k) => [m.amplitudes[k], m.units[k]])],
  }, [0, 1.08 * (own ? Math.max(0.01, ...shares) : largestShare())]);
  $("shares-title").textContent = `Frequencies of the model, d = ${state.d}: ` +
    `${shares.filter((s) => s >= 0.01).length} hold ≥ 1 %`;

  moveRing();
}

let BLUE_NOW = "", WARM_NOW = "", chartTheme = "";
function updateCharts(m) {
  if (chartTheme !== state.theme) {
    chartTheme = state.theme;
    [BLUE_NOW, WARM_NOW] = [BLUE(), WARM()];
    makeCharts();
  }
  drawCharts(m);
}

listeners.push(updateCharts);
updateCharts(current());
