"use strict";
// What is chosen, where it is kept (the address), and the heat maps of it.

const { p, widths, seeds, remainders } = DATA;
const $ = (id) => document.getElementById(id);
const rowOf = new Map(DATA.rows.map((row) => [`${row.d_hidden}-${row.seed}`, row]));
const VIEWS = ["full", "functional"], SCALES = ["all", "own"];
const media = matchMedia("(prefers-color-scheme: dark)");
const state = {
  d: widths[0], c: remainders[0], seed: seeds[0], view: "full", scale: "all",
  theme: media.matches ? "dark" : "light",
};
const listeners = []; // charts.js adds itself once plotly.js is there

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const take = (name, allowed, convert = Number) => {
    if (given.has(name) && allowed.includes(convert(given.get(name)))) {
      state[name] = convert(given.get(name));
    }
  };
  take("d", widths);
  take("c", remainders);
  take("seed", seeds);
  take("view", VIEWS, String);
  take("scale", SCALES, String);
}

let addressTimer = 0;
function writeAddress() { // browsers limit how often, and playing is often
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => {
    const { d, c, seed, view, scale } = state;
    history.replaceState(null, "", "#" + new URLSearchParams({ d, c, seed, view, scale }));
  }, 150);
}

const every = (n, step, from = 0) =>
  Array.from({ length: Math.ceil((n - from) / step) }, (_, i) => from + i * step);
const tickStep = (n) => [1, 2, 4, 8, 16, 32, 64].find((s) => n / s <= 8) ?? 128;
const numberTicks = (n, offset = 0, step = tickStep(n)) =>
  every(n, step).map((t) => [t + 0.5 + offset, t]);
const halfTicks = [...numberTicks(p, 0, 2 * tickStep(p)), ...numberTicks(p, p, 2 * tickStep(p))];

const matrix = new Heat("matrix", {
  kind: "diverging", unit: "logits",
  say: (i, j, value) => state.view === "full"
    ? `Q[${half(i)}, ${half(j)}] = ${format(value)}`
    : `logit of ${state.c} at a = ${i}, b = ${j}: ${format(value)}` +
      ((i + j) % p === state.c ? " (the right answer here)" : ""),
});
const half = (i) => (i < p ? `a=${i}` : `b=${i - p}`);
const eigenvectors = new Heat("eigenvectors", {
  kind: "diverging", unit: "entry",
  say: (i, j, value) => `v${i + 1}[${half(j)}] = ${format(value)}`,
});
const dft = new Heat("dft", {
  kind: "sequential", unit: "logits",
  say: (i, j, value) => `frequency ${i - mid} in a, ${j - mid} in b: ${format(value)}`,
});
const map = new Heat("map", {
  kind: "sequential", unit: "share",
  say: (i, j, value) => `d = ${widths[j]}, frequency ${n_k - i}: ${(100 * value).toFixed(1)} %`,
  click: (i, j) => choose({ d: widths[j] }),
});
const similarity = new Heat("similarity", {
  kind: "diverging", unit: "cosine",
  say: (i, j, value) => `d = ${widths[i]} and d = ${widths[j]}: ${value.toFixed(3)}`,
  click: (i, j) => choose({ d: widths[j] }),
});
const mid = Math.floor(p / 2), n_k = Math.floor(p / 2);

const MATRIX_AXES = {
  full: {
    name: "interaction matrix", columnRules: [p], rowRules: [p],
    x: { label: `input j:  a = 0 … ${p - 1}  |  b = 0 … ${p - 1}`, ticks: halfTicks },
    y: { label: "input i:  b  |  a", ticks: halfTicks },
  },
  functional: {
    name: "logits on all pairs",
    x: { label: "b", ticks: numberTicks(p) }, y: { label: "a", ticks: numberTicks(p) },
  },
};
const vectorAxes = (n) => ({
  name: "top eigenvectors", columnRules: [p],
  x: MATRIX_AXES.full.x, y: { label: "", ticks: every(n, 1).map((k) => [k + 0.5, `v${k + 1}`]) },
});
const signed = every(p, tickStep(p), mid % tickStep(p)).map((t) => [t + 0.5, t - mid]);
const DFT_AXES = {
  name: "2-D DFT of the cross block",
  x: { label: "frequency in b", ticks: signed }, y: { label: "frequency in a", ticks: signed },
};
const widthTicks = every(widths.length, tickStep(widths.length)).map((t) => [t + 0.5, widths[t]]);
const MAP_AXES = {
  name: "share of each frequency at each width",
  x: { label: "hidden width d", ticks: widthTicks },
  y: { label: "frequency k", ticks: every(n_k + 1, tickStep(n_k), tickStep(n_k)).map((k) => [n_k - k + 0.5, k]) },
};
const SIMILARITY_AXES = {
  name: "similarity of widths", x: { label: "hidden width d", ticks: widthTicks },
  y: { label: "hidden width d", ticks: widthTicks },
};

const current = () => model(state.d, state.seed);

function largest(values) {
  let most = 0;
  for (const value of values) most = Math.max(most, Math.abs(value));
  return most || 1;
}

const dText = () => `d\u00a0=\u00a0${state.d}`;

function drawMatrix(m) {
  const full = state.view === "full";
  const values = full ? interactionMatrix(m, state.c) : logitTable(m, state.c);
  const size = full ? 2 * p : p, at = remainders.indexOf(state.c);
  matrix.setAxes(size, size, MATRIX_AXES[state.view]);
  matrix.draw(values, state.scale === "all" ? DATA.limits[state.view][at] || 1 : largest(values),
    state.theme);
  $("matrix-title").textContent = full
    ? `Full interaction matrix Q of remainder ${state.c}, ${dText()}`
    : `Functional table: logit of remainder ${state.c} on all pairs, ${dText()}`;
  $("matrix-note").textContent = (full
    ? "xᵀQx is the logit. Entries off the diagonal of the aa and bb blocks never meet a pair (a, b)."
    : "What the pairs see of Q: Q_aa[a,a] + Q_bb[b,b] + 2 Q_ab[a,b].") +
    (state.scale === "all" ? " One scale for all widths; the narrowest grow beyond its ends."
      : " Full colour at this width's largest entry.");
}

const VECTOR_LIMIT = 2 / Math.sqrt(2 * p); // a flat sinusoid's entries reach √2 of 1/√(2p)

function drawVectors(m) {
  const n = 2 * p, at = remainders.indexOf(state.c) * m.nVectors * n;
  const values = m.eigenvectors.subarray(at, at + m.nVectors * n);
  eigenvectors.setAxes(m.nVectors, n, vectorAxes(m.nVectors));
  eigenvectors.draw(values, state.scale === "all" ? VECTOR_LIMIT : largest(values), state.theme);
  const first = remainders.indexOf(state.c) * m.eigenvalues.length / remainders.length;
  const strengths = m.eigenvalues.subarray(first, first + m.nVectors);
  $("vectors-title").textContent = `Top eigenvectors, λ = ${[...strengths].map(format).join(", ")}`;
}

function drawSpectrum(m) {
  const values = crossSpectrum(m, state.c);
  dft.setAxes(p, p, DFT_AXES);
  const limit = state.scale === "all" ? DATA.limits.spectrum[remainders.indexOf(state.c)] || 1
    : largest(values);
  dft.draw(values, limit, state.theme);
  $("dft-title").textContent = `Fourier picture of remainder ${state.c}, ${dText()}`;
}

// Ranges over all widths of a seed, so that the axes stand still under the slider. Models that fail
// grow without bound and would flatten the others: they don't set the scale.
const remembered = new Map();
function remember(key, make) {
  if (!remembered.has(key)) remembered.set(key, make());
  return remembered.get(key);
}
function scaleModels() {
  const there = widths.filter((d) => model(d, state.seed));
  const good = there.filter((d) => rowOf.get(`${d}-${state.seed}`).full_acc >= 0.99);
  return (good.length ? good : there).map((d) => model(d, state.seed));
}
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
const usualEigenvalue = (at) => remember(`eigenvalue ${at} ${state.seed}`, () => 2.5 * median(
  scaleModels().map((m) => Math.abs(m.eigenvalues[at * m.eigenvalues.length / remainders.length]))));
const largestShare = () => remember(`share ${state.seed}`, () => Math.max(
  0.05, ...scaleModels().map((m) => Math.max(...m.shares))));

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const rankTicks = (n) => every(n, tickStep(n), tickStep(n) - 1).map((i) => [i + 0.5, i + 1]);
const MOST_BARS = Math.min(48, 2 * Math.max(8, ...widths), 2 * p);
let shownValues = [], valuesTotal = 1;
const eigenvalueBars = new Bars("eigenvalues", {
  n: MOST_BARS, xlabel: "rank by magnitude", xticks: rankTicks(MOST_BARS),
  ylabel: "eigenvalue [logits]", name: "eigenvalues", tick: format,
  say: (i) => i in shownValues ? `λ${i + 1} = ${format(shownValues[i])}, ` +
    `${percent(Math.abs(shownValues[i]) / valuesTotal)} of Σ|λ|` : `no eigenvalue ${i + 1}`,
});
const shareBars = new Bars("shares", {
  n: n_k, xlabel: "frequency k", xticks: rankTicks(n_k), ylabel: "share of power",
  name: "share of each frequency", tick: (v) => `${+(100 * v).toFixed(1)} %`,
  say: (i) => {
    const m = current();
    return `k = ${i + 1}: ${percent(m.shares[i])}, amplitude ${format(m.amplitudes[i])} logits, ` +
      `${m.units[i]} hidden units`;
  },
});

function drawBars(m) {
  const at = remainders.indexOf(state.c), r = m.eigenvalues.length / remainders.length;
  const own = state.scale === "own";
  shownValues = Array.from(m.eigenvalues.subarray(at * r, (at + 1) * r));
  valuesTotal = shownValues.reduce((sum, v) => sum + Math.abs(v), 0) || 1;
  const most = Math.abs(shownValues[0]), limit = 1.08 * ((own ? most : usualEigenvalue(at)) || 1);
  eigenvalueBars.draw(shownValues.slice(0, MOST_BARS), -limit, limit);
  $("spectrum-title").textContent = `Eigenspectrum of remainder ${state.c}, ${dText()}` +
    (r > MOST_BARS ? `: strongest ${MOST_BARS} of ${r}` : `: ${r} eigenvalues`);
  $("spectrum-cut").textContent = most > limit ? ` Cut at the axis; the largest is ${format(most)}.` : "";
  shareBars.draw(Array.from(m.shares), 0, 1.08 * (own ? Math.max(0.01, ...m.shares) : largestShare()));
  $("shares-title").textContent = `Frequencies of the model, ${dText()}: ` +
    `${m.shares.filter((s) => s >= 0.01).length} hold ≥\u00a01\u00a0%`;
}

let mapKey = "";
function drawMaps() {
  const key = `${state.seed} ${state.theme}`, at = widths.indexOf(state.d);
  if (key !== mapKey) {
    mapKey = key;
    const columns = widths.map((d) => model(d, state.seed)), n = widths.length;
    const values = new Float32Array(n_k * n);
    columns.forEach((m, j) => m?.shares.forEach((s, k) => { values[(n_k - 1 - k) * n + j] = s; }));
    map.setAxes(n_k, n, MAP_AXES);
    map.draw(values, Math.min(1, Math.max(0.05, percentile(values, 0.995))), state.theme);
    similarity.setAxes(n, n, SIMILARITY_AXES);
    similarity.draw(unpack(DATA.similarity[state.seed]), 1, state.theme);
    $("similarity-title").textContent = `Similarity of widths, seed ${state.seed}`;
  }
  map.mark(at, at, 0, n_k - 1);
  similarity.mark(at, at, at, at);
}

function percentile(values, q) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.round(q * sorted.length))];
}

function drawWords() {
  const row = rowOf.get(`${state.d}-${state.seed}`);
  $("width").textContent = `d = ${state.d}`;
  $("slider").value = widths.indexOf(state.d);
  $("slider").setAttribute("aria-valuetext", `width ${state.d}`);
  for (const [id, name] of [["remainder", "c"], ["seed", "seed"], ["view", "view"], ["scale", "scale"]]) {
    $(id).value = state[name];
  }
  const verdict = $("verdict");
  if (!row) {
    verdict.textContent = `No model of width ${state.d} and seed ${state.seed} in these results.`;
    return;
  }
  const right = Math.round(row.full_acc * p * p), all = (p * p).toLocaleString("en");
  verdict.replaceChildren();
  element(verdict, "span", row.perfect ? "good" : "bad",
    `${right.toLocaleString("en")} of ${all} pairs right`);
  const used = [...current().shares].filter((s) => s >= 0.01).length;
  verdict.append(`${row.perfect ? ", and stays so" : ""} · smallest margin ` +
    `${format(row.min_margin)} logits · ${used} frequencies hold ≥ 1 % · ` +
    `${row.steps.toLocaleString("en")} steps`);
}

function draw() {
  drawWords();
  const m = current();
  if (m) {
    drawMatrix(m);
    drawSpectrum(m);
    drawVectors(m);
    drawBars(m);
  }
  drawMaps();
  for (const listener of listeners) listener();
}

function choose(change) {
  const [seed, theme] = [state.seed, state.theme];
  Object.assign(state, change);
  draw();
  if (theme === state.theme) writeAddress();
  return seed;
}

const move = (name, list, by) =>
  choose({ [name]: list[Math.min(list.length - 1, Math.max(0, list.indexOf(state[name]) + by))] });

let playing = 0;
function play(on) {
  clearInterval(playing);
  playing = 0;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "stop" : "play the widths");
  if (!on) return;
  if (state.d === widths.at(-1)) choose({ d: widths[0] });
  playing = setInterval(() => {
    if (state.d === widths.at(-1)) play(false);
    else move("d", widths, 1);
  }, 180);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "☀ light" : "☾ dark";
  state.theme = theme;
}

const KEYS = {
  ArrowRight: () => move("d", widths, 1),
  ArrowLeft: () => move("d", widths, -1),
  ArrowDown: () => move("c", remainders, 1),
  ArrowUp: () => move("c", remainders, -1),
  Home: () => choose({ d: widths[0] }),
  End: () => choose({ d: widths.at(-1) }),
  " ": () => play(!playing),
  m: () => choose({ view: VIEWS[1 - VIEWS.indexOf(state.view)] }),
  c: () => choose({ scale: SCALES[1 - SCALES.indexOf(state.scale)] }),
};

function start() {
  for (const r of remainders) $("remainder").add(new Option(r, r));
  for (const s of seeds) $("seed").add(new Option(s, s));
  $("slider").max = widths.length - 1;
  $("title").textContent = `(a + b) mod ${p}: what each hidden width computes`;
  document.title = $("title").textContent;
  $("lead").textContent = `Bilinear models with ${widths[0]} down to ${widths.at(-1)} hidden units, ` +
    `trained on ${Math.round(100 * DATA.train_frac)} % of all ${(p * p).toLocaleString("en")} pairs. ` +
    "Each logit is an exact quadratic form of the input, so the weights can be read.";
  $("slider").addEventListener("input", (e) => { play(false); choose({ d: widths[+e.target.value] }); });
  $("remainder").addEventListener("change", (e) => choose({ c: +e.target.value }));
  $("seed").addEventListener("change", (e) => choose({ seed: +e.target.value }));
  $("view").addEventListener("change", (e) => choose({ view: e.target.value }));
  $("scale").addEventListener("change", (e) => choose({ scale: e.target.value }));
  $("play").addEventListener("click", () => play(!playing));
  $("theme").addEventListener("click", () => {
    setTheme(state.theme === "dark" ? "light" : "dark");
    draw();
  });
  media.addEventListener("change", () => { setTheme(media.matches ? "dark" : "light"); draw(); });
  addEventListener("hashchange", () => { readAddress(); draw(); });
  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
    if (e.key === " " && e.target.tagName === "BUTTON") return;
    if (!KEYS[e.key]) return;
    e.preventDefault();
    if (e.key !== " ") play(false);
    KEYS[e.key]();
  });
  readAddress();
  setTheme(state.theme);
  draw();
}

start();
