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
    margin: { l: 54, r: 10, t: 6, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: false,
    font: { family: "system-ui, sans-serif", size: 12, color: css("--soft") },
    xaxis: axis(x), yaxis: axis(y), ...more,
  };
}

const floor = 0.25 / (p * p); // where "none wrong" is drawn on a logarithmic axis
const wrong = (accuracy) => Math.max(1 - accuracy, floor);
const wrongText = (accuracy) => `${Math.round((1 - accuracy) * p * p)} of ${p * p} wrong`;

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
    {
      x: [0], y: [1], mode: "markers", type: "scatter", hoverinfo: "skip",
      marker: { symbol: "circle-open", color: WARM(), size: 15, line: { width: 3, color: WARM() } },
    },
  ], layout(
    { title: "hidden width d", range: [widths[0] + 1.5, widths.at(-1) - 1.5] },
    {
      title: "share of pairs wrong", type: "log", range: [Math.log10(floor) - 0.25, 0.15],
      tickvals: [...ticks, floor], ticktext: [...ticks.map(String), "none"],
    },
  ), CONFIG);
  $("accuracy").on("plotly_click", (event) => {
    const [d, seed] = event.points[0].customdata ?? [];
    if (widths.includes(d)) choose({ d, seed: seeds.includes(seed) ? seed : state.seed });
  });
}

function barChart(id, x, y, template) {
  Plotly.newPlot(id, [{ type: "bar", x: [0], y: [0], marker: { color: BLUE() }, hovertemplate: template }],
    layout(x, y, { bargap: 0.15 }), CONFIG);
}

const MOST = Math.max(...widths.map((d) => model(d, seeds[0])?.nVectors ?? 0));

function vectorChart() {
  const x = Array.from({ length: 2 * p }, (_, i) => i);
  const traces = [], axes = {};
  const gap = 0.05, height = (1 - gap * (MOST - 1)) / MOST;
  for (let k = 0; k < MOST; k++) {
    const n = k ? k + 1 : "", top = 1 - k * (height + gap);
    traces.push({
      type: "scatter", mode: "lines", x, y: x.map(() => 0), yaxis: `y${n}`,
      line: { color: BLUE(), width: 1.5 }, customdata: x.map(half),
      hovertemplate: `v${k + 1}[%{customdata}] = %{y:.3f}<extra></extra>`,
    });
    axes[`yaxis${n}`] = {
      domain: [Math.max(0, top - height), top], range: [-0.6, 0.6], fixedrange: true, nticks: 3,
      gridcolor: css("--line"), zerolinecolor: css("--soft"), title: { text: `v${k + 1}`, standoff: 4 },
    };
  }
  const ticks = [...numberTicks(p), ...numberTicks(p, p)].map(([at, text]) => [at - 0.5, text]);
  Plotly.newPlot("eigenvectors", traces, {
    ...layout({
      title: "input:  a = 0 … p−1  |  b = 0 … p−1", range: [-0.5, 2 * p - 0.5],
      tickvals: ticks.map((t) => t[0]), ticktext: ticks.map((t) => t[1]),
      anchor: `y${MOST > 1 ? MOST : ""}`,
    }, {}), ...axes,
    shapes: [{
      type: "line", x0: p - 0.5, x1: p - 0.5, yref: "paper", y0: 0, y1: 1,
      line: { color: css("--ink"), width: 1 },
    }],
  }, CONFIG);
}

function makeCharts() {
  accuracyChart();
  barChart("eigenvalues", { title: "rank by magnitude" }, { title: "eigenvalue, logits" },
    "λ<sub>%{x}</sub> = %{y:.4g}<br>%{customdata:.1%} of Σ|λ|<extra></extra>");
  barChart("shares", { title: "frequency k", range: [0.3, n_k + 0.7] },
    { title: "share of power", tickformat: ".0%", rangemode: "tozero" },
    "k = %{x}: %{y:.1%}<br>amplitude %{customdata[0]:.3g} logits<br>" +
    "%{customdata[1]} hidden units<extra></extra>");
  vectorChart();
}

const widestRange = new Map(); // stable axes: remainder and seed → largest eigenvalue of any width
function eigenRange(at) {
  const key = `${at} ${state.seed}`;
  if (!widestRange.has(key)) {
    let most = 0;
    for (const d of widths) {
      const m = model(d, state.seed);
      if (m) most = Math.max(most, Math.abs(m.eigenvalues[at * (m.eigenvalues.length / remainders.length)]));
    }
    widestRange.set(key, 1.08 * most || 1);
  }
  return widestRange.get(key);
}
const mostShare = () => Math.max(0.05, ...widths.map((d) => {
  const m = model(d, state.seed);
  return m ? Math.max(...m.shares) : 0;
}));

function drawCharts(m) {
  if (!m) return;
  const at = remainders.indexOf(state.c), r = m.eigenvalues.length / remainders.length;
  const values = Array.from(m.eigenvalues.subarray(at * r, (at + 1) * r));
  const total = values.reduce((sum, v) => sum + Math.abs(v), 0) || 1;
  const shown = values.slice(0, 48), own = state.scale === "own";
  const limit = own ? 1.08 * (Math.abs(values[0]) || 1) : eigenRange(at);
  Plotly.update("eigenvalues", {
    x: [shown.map((_, i) => i + 1)], y: [shown], customdata: [shown.map((v) => Math.abs(v) / total)],
    "marker.color": [shown.map((v) => (v > 0 ? WARM_NOW : BLUE_NOW))],
  }, { "yaxis.range": [-limit, limit], "xaxis.range": [0.3, Math.max(8, Math.min(48, r)) + 0.7] });
  $("spectrum-title").textContent = `Eigenspectrum of remainder ${state.c}, d = ${state.d}` +
    (r > 48 ? `: strongest 48 of ${r}` : `: ${r} eigenvalues`);

  const n = 2 * p, first = at * m.nVectors * n, ys = [], names = [];
  for (let k = 0; k < MOST; k++) {
    ys.push(k < m.nVectors ? m.eigenvectors.subarray(first + k * n, first + (k + 1) * n) : []);
    names.push(k < m.nVectors ? (values[k] > 0 ? WARM_NOW : BLUE_NOW) : BLUE_NOW);
  }
  Plotly.restyle("eigenvectors", { y: ys, "line.color": names });
  $("vectors-title").textContent = `Top eigenvectors, λ = ` +
    values.slice(0, m.nVectors).map((v) => format(v)).join(", ");

  const shares = Array.from(m.shares);
  Plotly.update("shares", {
    x: [shares.map((_, k) => k + 1)], y: [shares],
    customdata: [shares.map((_, k) => [m.amplitudes[k], m.units[k]])],
  }, { "yaxis.range": [0, 1.08 * (own ? Math.max(0.01, ...shares) : mostShare())] });
  $("shares-title").textContent = `Frequencies of the model, d = ${state.d}: ` +
    `${shares.filter((s) => s >= 0.01).length} hold ≥ 1 %`;

  const row = rowOf.get(`${state.d}-${state.seed}`);
  Plotly.restyle("accuracy", { x: [[state.d]], y: [[wrong(row.full_acc)]] }, [1]);
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
