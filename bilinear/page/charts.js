"use strict";
// The curve of all models, by plotly.js: made once a theme, then only its ring moves.

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

const MARGIN = { l: 62, r: 10, t: 6, b: 40 };
const WIDTH_RANGE = [Math.max(...DATA.all_rows.map((r) => r[0])) + 1.5,
  Math.min(...DATA.all_rows.map((r) => r[0])) - 1.5];
const ERROR_RANGE = [Math.log10(floor) - 0.25, 0.15];
const ring = element($("accuracy-box"), "div", "ring");

// A node over the chart, not a trace in it: moving it redraws nothing.
function moveRing() {
  const row = rowOf.get(`${state.d}-${state.seed}`);
  ring.hidden = !row;
  if (!row) return;
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
    { title: "hidden width d", range: WIDTH_RANGE, zeroline: false },
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

let chartTheme = "";
function updateCharts() {
  if (chartTheme !== state.theme) {
    chartTheme = state.theme;
    accuracyChart();
  }
  moveRing();
}

listeners.push(updateCharts);
updateCharts();
