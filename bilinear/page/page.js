"use strict";
// The state that the user chose, which the address keeps, and the pictures of it.

const { p, widths, seeds, remainders } = DATA;
const $ = (id) => document.getElementById(id);
const rowOf = new Map(DATA.rows.map((row) => [`${row.d_hidden}-${row.seed}`, row]));
const VIEWS = ["functional", "full"], SCALES = ["all", "own"];
// The id of each menu, and the part of the state that it sets.
const CHOICES = [["remainder", "c"], ["seed", "seed"], ["view", "view"], ["scale", "scale"], ["beside", "beside"]];
const media = matchMedia("(prefers-color-scheme: dark)");
// `beside` is a width that is shown to the right of the chosen one, 0 for none.
const state = {
  d: widths[0], c: remainders[0], seed: seeds[0], view: "functional", scale: "all", beside: 0,
  theme: media.matches ? "dark" : "light",
};

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
  take("beside", [0, ...widths]);
}

let addressTimer = 0;
function writeAddress() { // after a pause: browsers limit how often it may change, and playing changes it often
  if (location.protocol === "about:") return; // a notebook shows the page in a frame without an address
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => {
    const { d, c, seed, view, scale, beside } = state;
    const kept = { d, c, seed, view, scale, ...(beside ? { beside } : {}) };
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  }, 150);
}

const every = (n, step, from = 0) =>
  Array.from({ length: Math.ceil((n - from) / step) }, (_, i) => from + i * step);
const tickStep = (n) => [1, 2, 4, 8, 16, 32, 64].find((s) => n / s <= 8) ?? 128;
const numberTicks = (n, offset = 0, step = tickStep(n)) =>
  every(n, step).map((t) => [t + 0.5 + offset, t]);
const halfTicks = [...numberTicks(p, 0, 2 * tickStep(p)), ...numberTicks(p, p, 2 * tickStep(p))];

// The CSS pixels that the screen leaves for the matrix beside its labels and the cards to its right.
function heroRoom() {
  const wide = document.documentElement.clientWidth, phone = innerWidth <= 600;
  if (phone) return wide - 124;
  const labels = 145, cards = 75, beside = innerWidth > 1200 && !state.beside ? 560 : 0;
  const across = state.beside ? (wide - cards) / 2 - labels : wide - cards - labels - beside;
  return Math.max(128, Math.min(across, Math.max(300, innerHeight - 275)));
}
// In an input one a and one b are 1, so its logit depends on entries of Q on the diagonal and where a
// meets b; the other entries of aa and bb change no logit.
const meetsNoPair = (i, j) => i !== j && (i < p) === (j < p);
const faint = (i, j) => state.view === "full" && meetsNoPair(i, j);
const matrixSpec = (d) => ({
  kind: "diverging", unit: "logits", room: heroRoom, faint,
  say: (i, j, value) => (state.beside ? `d = ${d()}: ` : "") + (state.view === "full"
    ? `Q[${half(i)}, ${half(j)}] = ${format(value)}` + (faint(i, j) ? ", which no pair meets" : "")
    : `logit of ${state.c} at a = ${i}, b = ${j}: ${format(value)}` +
      ((i + j) % p === state.c ? " (the right answer here)" : "")),
});
const matrix = new Heat("matrix", matrixSpec(() => state.d));
const other = new Heat("other", matrixSpec(() => state.beside));
const wrong = new Heat("wrong", {
  kind: "sequential", unit: "",
  say: (i, j, value) => {
    const right = (i + j) % p, said = guesses(current())[i * p + j];
    return `${i} + ${j}: says ${said}` + (said === right ? ", right" : value ? `, right is ${right}` : " in a tie");
  },
});
const half = (i) => (i < p ? `a=${i}` : `b=${i - p}`);
const eigenvectors = new Heat("eigenvectors", {
  kind: "diverging", unit: "entry", aspect: 3,
  say: (i, j, value) => `v${i + 1}[${half(j)}] = ${format(value)}`,
});
const dft = new Heat("dft", {
  kind: "sequential", unit: "logits",
  say: (i, j, value) => `frequency ${i - mid} in a, ${j - mid} in b: ${format(value)}`,
});
const map = new Heat("map", {
  kind: "sequential", unit: "share", aspect: 1.6,
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
    x: { label: "a, then b", ticks: halfTicks },
    y: { label: ["a", "b"], ticks: halfTicks },
  },
  functional: {
    name: "logits on all pairs",
    x: { label: "b", ticks: numberTicks(p) }, y: { label: "a", ticks: numberTicks(p) },
  },
};
const vectorAxes = (strengths) => ({
  name: "top eigenvectors", columnRules: [p],
  x: MATRIX_AXES.full.x, y: { label: "λ", ticks: strengths.map((value, k) => [k + 0.5, format(value)]) },
});
const signed = every(p, tickStep(p), mid % tickStep(p)).map((t) => [t + 0.5, format(t - mid)]);
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
const currentRow = () => rowOf.get(`${state.d}-${state.seed}`);

function largest(values) {
  let most = 0;
  for (const value of values) most = Math.max(most, Math.abs(value));
  return most || 1;
}

const dText = () => `d\u00a0=\u00a0${state.d}`;

const matrixOf = (m) => state.view === "full" ? interactionMatrix(m, state.c) : logitTable(m, state.c);

function drawMatrix(m) {
  const full = state.view === "full", left = state.beside && model(state.beside, state.seed);
  const size = full ? 2 * p : p, values = matrixOf(m);
  const common = DATA.limits[state.view][remainders.indexOf(state.c)] || 1;
  const seen = (v) => full ? v.filter((_, at) => !meetsNoPair(Math.floor(at / size), at % size)) : v;
  const limit = (v) => state.scale === "all" ? common : largest(seen(v));
  $("other").hidden = !left;
  $("top").classList.toggle("two", Boolean(left));
  const axes = MATRIX_AXES[state.view];
  const named = (d) => ({ ...axes, name: `${axes.name}, d = ${d}`, x: { ...axes.x, label: `d = ${d}` } });
  matrix.setAxes(size, size, left ? named(state.d) : axes);
  matrix.draw(values, limit(values), state.theme);
  if (left) {
    const theirs = matrixOf(left);
    other.setAxes(size, size, named(state.beside));
    other.draw(theirs, limit(theirs), state.theme);
  }
  $("matrix-title").textContent = (full
    ? `Full interaction matrix Q of remainder ${state.c}, ${dText()}`
    : `Functional table: logit of remainder ${state.c} on all pairs, ${dText()}`) +
    (left ? `, and d\u00a0=\u00a0${state.beside}` : "");
  let beyond = 0;
  const met = seen(values);
  for (const value of met) beyond += Math.abs(value) > common;
  const share = beyond / met.length;
  $("own").hidden = state.scale === "own" || share < 0.05;
  $("matrix-note").textContent = (full
    ? "xᵀQx is the logit. Grey: off the diagonals of aa and bb, entries meet no pair."
    : "What pairs see of Q. The stripe a + b = c is the answer.") +
    (state.scale === "own" ? " Full colour at this width's largest entry."
      : share < 0.05 ? " One colour scale for all widths."
        : ` ${Math.round(100 * share)} % is beyond the scale of all widths.`);
}

const VECTOR_LIMIT = 2 / Math.sqrt(2 * p); // a sinusoid over all 2p entries has peaks of √2/√(2p)

function drawVectors(m) {
  const n = 2 * p, at = remainders.indexOf(state.c) * m.nVectors * n;
  const values = m.eigenvectors.subarray(at, at + m.nVectors * n);
  const first = remainders.indexOf(state.c) * m.eigenvalues.length / remainders.length;
  const strengths = [...m.eigenvalues.subarray(first, first + m.nVectors)];
  eigenvectors.setAxes(m.nVectors, n, vectorAxes(strengths));
  eigenvectors.draw(values, state.scale === "all" ? VECTOR_LIMIT : largest(values), state.theme);
  $("vectors-title").textContent = `Top eigenvectors of remainder ${state.c}, ${dText()}`;
}

function drawSpectrum(m) {
  const values = crossSpectrum(m, state.c);
  dft.setAxes(p, p, DFT_AXES);
  const limit = state.scale === "all" ? DATA.limits.spectrum[remainders.indexOf(state.c)] || 1
    : largest(values);
  dft.draw(values, limit, state.theme);
  $("dft-title").textContent = `Fourier picture of remainder ${state.c}, ${dText()}`;
}

// Axis ranges are computed over all widths of a seed, so that the axes don't change as the slider moves.
// Models that fail have far larger values and would flatten the others, so they are left out of the ranges.
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
  $("spectrum-title").textContent = `Eigenvalues of remainder ${state.c}, ${dText()}`;
  $("spectrum-cut").textContent = (r > MOST_BARS ? ` The strongest ${MOST_BARS} of ${r}.` : ` ${r} of them.`) +
    (most > limit ? ` Cut at the axis; the largest is ${format(most)}.` : "");
  shareBars.draw(Array.from(m.shares), 0, 1.08 * (own ? Math.max(0.01, ...m.shares) : largestShare()));
  $("shares-title").textContent = `Frequencies, ${dText()}: ` +
    `${m.shares.filter((s) => s >= 0.01).length} hold ≥\u00a01\u00a0%`;
}

function drawWrong(m) {
  const values = new Float32Array(p * p), row = currentRow();
  let n = 0;
  if (row.full_acc < 1) {
    guesses(m).forEach((said, i) => { n += values[i] = +(said !== (Math.floor(i / p) + i % p) % p); });
  }
  wrong.setAxes(p, p, WRONG_AXES);
  wrong.draw(values, 1, state.theme);
  $("wrong-title").textContent = row.full_acc === 1 ? `Wrong pairs, ${dText()}: none`
    : `Wrong pairs, ${dText()}: ${n.toLocaleString("en")}`;
}
const WRONG_AXES = { ...MATRIX_AXES.functional, name: "pairs that are wrong" };

const floor = 0.25 / (p * p); // where the logarithmic axis shows models without a wrong pair
const wrongShare = (accuracy) => Math.log10(Math.max(1 - accuracy, floor));
const sweptWidths = DATA.all_rows.map(([d]) => d), widest = Math.max(...sweptWidths);
const wrongTicks = [1, 0.1, 0.01, 0.001, 0.0001].filter((t) => t > 2 * floor).map((t) => [Math.log10(t), t]);
const accuracy = new Chart("accuracy", {
  xlabel: "hidden width d", ylabel: "share of pairs wrong", name: "pairs wrong against width",
  x: {
    low: widest + 1.5, high: Math.min(...sweptWidths) - 1.5,
    ticks: every(widest + 1, tickStep(widest)).filter((t) => t >= Math.min(...sweptWidths)).map((t) => [t, t]),
  },
  y: { low: Math.log10(floor) - 0.25, high: 0.15, ticks: [...wrongTicks, [Math.log10(floor), "none"]] },
  click: (i) => {
    const [d, seed] = DATA.all_rows[i];
    if (widths.includes(d)) choose({ d, seed: seeds.includes(seed) ? seed : state.seed });
  },
});
accuracy.dots(DATA.all_rows.map(([d, seed, acc]) => [d, wrongShare(acc),
  `d = ${d}, seed ${seed}: ${Math.round((1 - acc) * p * p).toLocaleString("en")} pairs wrong`]));
const ring = element(accuracy.frame, "div", "ring");
function moveRing() {
  const row = currentRow();
  ring.hidden = !row;
  if (!row) return;
  ring.style.left = `${100 * accuracy.x(state.d)}%`;
  ring.style.top = `${100 * accuracy.y(wrongShare(row.full_acc))}%`;
}

// Learning curves: both axes are logarithmic, and their ranges hold every width of the page.
const LEAST_LOSS = 1e-5;
const logLoss = (loss) => Math.log10(Math.max(loss, LEAST_LOSS));
const firstStep = Math.log10(DATA.eval_every);
const lastStep = Math.max(Math.log10(Math.max(...DATA.rows.map((row) => row.steps))), firstStep + 0.1);
const curve = new Chart("curve", {
  xlabel: "step", ylabel: "loss [nats]", name: "learning curve",
  x: { low: firstStep, high: lastStep, ticks: decades(firstStep, lastStep).map((k) => [k, power(k)]) },
  y: { low: Math.log10(LEAST_LOSS), high: 1.5, ticks: [-5, -3, -1, 1].map((k) => [k, power(k)]) },
});
function drawCurve(m) {
  const n = m.history.length / 3, at = (i) => Math.log10(m.history[i]);
  for (const [k, name] of [[1, "train"], [2, "val"]]) {
    const points = every(n, 1).filter((i) => isFinite(m.history[k * n + i])).map((i) => [at(i), logLoss(m.history[k * n + i])]);
    curve.line(name, points);
  }
  curve.points = every(n, 1).map((i) => [at(i), logLoss(m.history[n + i]),
    `step ${m.history[i].toLocaleString("en")}: ${format(m.history[n + i])}, others ${format(m.history[2 * n + i])}`]);
}

let mapKey = "";
function drawMaps() {
  const key = `${state.seed} ${state.theme}`, at = widths.indexOf(state.d);
  if (key !== mapKey) {
    mapKey = key;
    drawTicks();
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
  const row = currentRow();
  $("width").textContent = `d = ${state.d}`;
  $("slider").value = widths.indexOf(state.d);
  $("slider").setAttribute("aria-valuetext", `width ${state.d}`);
  for (const [id, name] of CHOICES) $(id).value = state[name];
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
    drawWrong(m);
    drawCurve(m);
  }
  drawMaps();
  chain?.draw();
  moveRing();
}

