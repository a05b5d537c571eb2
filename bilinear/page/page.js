// The page's state (width, seed, remainder, view, scale), its controls, and what is drawn of it.
const data = JSON.parse(byId("data").textContent);
const { p, diverging, models } = data, seeds = [...new Set(models.map((m) => m.seed))].sort((a, b) => a - b);
const widthsOf = (seed) => models.filter((m) => m.seed === seed).map((m) => m.d).sort((a, b) => b - a);
const state = { d: 0, seed: seeds[0], c: data.remainders[0], view: "q", scale: "shared" };
const plots = {
  spectrum: new Plot("spectrum", { left: 52 }), vectors: new Plot("vectors", { left: 74 }), fourier: new Plot("fourier"),
  accuracy: new Plot("accuracy", { left: 58 }), frequencies: new Plot("frequencies"),
};
let shown = null, player = null;

function readHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const whole = (name) => (/^\d+$/.test(wanted.get(name) ?? "") ? +wanted.get(name) : null);
  if (seeds.includes(whole("seed"))) state.seed = whole("seed");
  const widths = widthsOf(state.seed);
  state.d = widths.includes(whole("d")) ? whole("d") : widths.includes(state.d) ? state.d : widths[0];
  if (whole("c") !== null && whole("c") < p) state.c = whole("c");
  if (["q", "logits"].includes(wanted.get("view"))) state.view = wanted.get("view");
  if (["shared", "own"].includes(wanted.get("scale"))) state.scale = wanted.get("scale");
}

function change(part) {
  Object.assign(state, part);
  const widths = widthsOf(state.seed);
  if (!widths.includes(state.d)) state.d = widths.reduce((best, d) => (Math.abs(d - state.d) < Math.abs(best - state.d) ? d : best));
  history.replaceState(null, "", "#" + new URLSearchParams(state));
  draw();
}

function compute() {
  const model = models.find((m) => m.d === state.d && m.seed === state.seed);
  const q = interactionMatrix(weightsOf(model, p, data.dtype), state.c);
  const table = state.view === "q" ? q : logitTable(q, p);
  const limit = state.scale === "shared" ? data.limits[state.seed][state.view] : typicalLimit(table);
  return { model, q, table, limit, n: state.view === "q" ? 2 * p : p, eigen: symmetricEigen(q, 2 * p), cross: crossSpectrum(q, p) };
}

function draw() {
  const start = performance.now();
  shown = compute();
  drawControls();
  drawMatrix();
  drawSpectrum();
  drawVectors();
  drawFourier();
  drawAccuracy();
  drawFrequencies();
  window.lastDraw = performance.now() - start;
}

function drawControls() {
  const widths = widthsOf(state.seed), slider = byId("width"), m = shown.model;
  slider.max = widths.length - 1;
  slider.value = widths.indexOf(state.d);
  slider.setAttribute("aria-valuetext", `hidden width ${state.d}`);
  byId("shown-width").textContent = state.d;
  for (const [id, value] of [["seed", state.seed], ["remainder", state.c], ["view", state.view], ["scale", state.scale]]) byId(id).value = value;
  const wrong = m.wrong === 0 ? `all ${(p * p).toLocaleString("en")} pairs right` : `${m.wrong.toLocaleString("en")} of ${(p * p).toLocaleString("en")} pairs wrong`;
  const used = usedBy(m);
  byId("facts").textContent = `${wrong} · smallest margin ${number(m.margin)} logits · ` +
    (used.length ? `${used.length} ${used.length === 1 ? "frequency" : "frequencies"}: ${used.join(", ")}` : "no frequency");
}

const sequential = () => data.sequential[document.documentElement.dataset.theme];
const usedBy = (model) => [...model.shares.keys()].filter((i) => model.shares[i] >= data.threshold).sort((i, j) => model.shares[j] - model.shares[i]).map((i) => i + 1);
const sideOf = (i) => (i < p ? `a = ${i}` : `b = ${i - p}`);

function drawMatrix() {
  const { table, limit, n } = shown, isQ = state.view === "q";
  paint(byId("matrix"), table, n, n, diverging, (v) => 0.5 + v / (2 * limit));
  byId("matrix").parentElement.dataset.split = isQ ? 1 : 0;
  const which = state.scale === "shared" ? "the same colours at every width" : "colours of this width alone";
  byId("matrix-title").innerHTML = isQ
    ? `<b>Full interaction matrix Q</b> of remainder ${state.c}, width ${state.d}: x<sup>⊤</sup>Qx is its logit; ${which}`
    : `<b>Functional table</b>: logit of remainder ${state.c} on every pair, width ${state.d}; ${which}`;
  byId("matrix-axes").textContent = isQ ? "rows and columns: a, then b (lines between)" : "rows: a, columns: b";
  byId("low").textContent = number(-limit);
  byId("high").textContent = number(limit) + " logits or more";
  const ramp = Float64Array.from({ length: 129 }, (_, i) => i / 128);
  paint(byId("colours"), ramp, 1, 129, diverging, (v) => v);
}

function hoverMatrix(event) {
  const box = byId("matrix").getBoundingClientRect(), { n, table } = shown;
  const i = Math.floor(((event.clientY - box.top) / box.height) * n), j = Math.floor(((event.clientX - box.left) / box.width) * n);
  if (i < 0 || j < 0 || i >= n || j >= n) return tip(null);
  const where = state.view === "q" ? `Q[${sideOf(i)}, ${sideOf(j)}]` : `logit of ${state.c} at a = ${i}, b = ${j} (sum ${(i + j) % p})`;
  tip(`${where}\n${number(table[i * n + j])}`, event);
}

function drawSpectrum() {
  const plot = plots.spectrum, { values } = shown.eigen, n = values.length, squares = values.reduce((s, v) => s + v * v, 0) || 1;
  const most = Math.max(...values.map(Math.abs)) * 1.08 || 1;
  plot.begin(-1, n, -most, most);
  plot.axes(ticks(0, n - 1), ticks(-most, most, 4), "rank, from most positive", "eigenvalue");
  plot.line([[-1, 0], [n, 0]], colour("--line"), 1);
  values.forEach((v, i) => { if (Math.abs(v) > 1e-6 * most) plot.line([[i, 0], [i, v]], v > 0 ? colour("--plus") : colour("--minus"), Math.max(1.5, Math.min(5, 260 / n))); });
  const four = [...values].sort((a, b) => b * b - a * a).slice(0, 4).reduce((s, v) => s + v * v, 0);
  const rank = values.filter((v) => Math.abs(v) > 1e-6 * most).length;
  byId("spectrum-title").innerHTML = `<b>Eigenspectrum of Q</b>: rank ${rank} of ${n}; the top four hold ${((100 * four) / squares).toFixed(1)} % of the sum of squares`;
  plot.hover = (x, _, event) => {
    const i = Math.max(0, Math.min(n - 1, Math.round(x)));
    tip(`eigenvalue ${i + 1} of ${n}\n${number(values[i])}  (${((100 * values[i] ** 2) / squares).toFixed(2)} % of squares)`, event);
  };
}

function drawVectors() {
  const plot = plots.vectors, { values, vector } = shown.eigen, n = 2 * p;
  const top = [...values.keys()].sort((i, j) => Math.abs(values[j]) - Math.abs(values[i])).slice(0, 4);
  const rows = top.map((i) => { const v = vector(i), big = v.reduce((m, x) => (Math.abs(x) > Math.abs(m) ? x : m), 0); return Array.from(v, (x) => (big < 0 ? -x : x)); });
  const most = Math.max(...rows.flat().map(Math.abs)) || 1;
  plot.begin(-0.5, n - 0.5, -rows.length, 0);
  plot.axes([[p / 2, "a"], [1.5 * p, "b"], [0, "0"], [p - 1, p - 1], [n - 1, p - 1]], rows.map((_, r) => [-r - 0.5, "λ " + number(+values[top[r]].toPrecision(3))]), "token", "");
  plot.line([[p - 0.5, 0], [p - 0.5, -rows.length]], colour("--soft"), 1);
  rows.forEach((v, r) => {
    plot.line([[-0.5, -r - 0.5], [n - 0.5, -r - 0.5]], colour("--line"), 1);
    for (const [from, to] of [[0, p], [p, n]]) plot.line(v.slice(from, to).map((x, i) => [from + i, -r - 0.5 + (0.45 * x) / most]), values[top[r]] > 0 ? colour("--plus") : colour("--minus"));
  });
  byId("vectors-title").innerHTML = "<b>Top eigenvectors of Q</b> by |λ|, unit length, over the inputs a and b; red: raises the logit, blue: lowers it";
  plot.hover = (x, y, event) => {
    const i = Math.round(x), r = Math.floor(-y);
    if (rows[r] && i >= 0 && i < n) tip(`eigenvector ${r + 1}, λ ${number(values[top[r]])}\n${sideOf(i)}: ${number(rows[r][i])}`, event);
  };
}

function drawFourier() {
  const plot = plots.fourier, { size, rows, columns } = shown.cross, half = rows - 1, most = size.reduce((m, v) => Math.max(m, v), 0) || 1;
  plot.begin(-half - 0.5, half + 0.5, -0.5, half + 0.5);
  plot.image(size, rows, columns, sequential(), (v) => v / most);
  plot.axes(ticks(-half, half, 6), ticks(0, half, 4), "frequency in b", "frequency in a");
  byId("fourier-title").innerHTML = `<b>2-D Fourier transform of the a–b block</b> of remainder ${state.c}, |coefficient| up to ${number(most)}; a circuit of a + b lies on the rising diagonal`;
  plot.hover = (x, y, event) => {
    const kb = Math.round(x), ka = Math.round(y);
    if (ka >= 0 && ka <= half && Math.abs(kb) <= half) tip(`frequency a ${ka}, b ${kb}\n|coefficient| ${number(size[ka * columns + kb + half])}`, event);
  };
}

function drawAccuracy() {
  const plot = plots.accuracy, widths = [...new Set(models.map((m) => m.d))], low = Math.min(...widths), high = Math.max(...widths);
  const up = (wrong) => Math.log10(1 + wrong), most = up(p * p), reach = high === low ? 1 : 0.03 * (high - low) + 0.5;
  plot.begin(high + reach, low - reach, -0.12, most * 1.04);
  const marks = [0, 1, 10, 100, 1000, 10000, 100000].filter((v) => v < p * p);
  plot.axes(ticks(low, high, 8), marks.map((v) => [up(v), v.toLocaleString("en")]), "hidden width (narrower to the right)", "pairs wrong");
  plot.line([[state.d, -0.12], [state.d, most * 1.04]], colour("--accent"), 2);
  models.filter((m) => m.seed !== state.seed).forEach((m) => plot.dot(m.d, up(m.wrong), 2.2, colour("--soft"), true));
  const mine = models.filter((m) => m.seed === state.seed).sort((a, b) => b.d - a.d);
  plot.line(mine.map((m) => [m.d, up(m.wrong)]), colour("--curve"), 1.5);
  mine.forEach((m) => plot.dot(m.d, up(m.wrong), 2.6, colour("--curve")));
  plot.dot(state.d, up(shown.model.wrong), 5, colour("--accent"));
  byId("accuracy-title").innerHTML = `<b>Pairs wrong against width</b>, of all ${(p * p).toLocaleString("en")}: line, seed ${state.seed}` + (seeds.length > 1 ? "; rings, the other seeds" : "");
  const nearest = (x) => mine.reduce((best, m) => (Math.abs(m.d - x) < Math.abs(best.d - x) ? m : best));
  plot.hover = (x, _, event) => { const m = nearest(x); tip(`width ${m.d}, seed ${m.seed}\n${m.wrong} pairs wrong (${(100 * (1 - m.wrong / (p * p))).toFixed(2)} % right)`, event); };
  plot.click = (x) => change({ d: nearest(x).d });
}

function drawFrequencies() {
  const plot = plots.frequencies, widths = widthsOf(state.seed), n = widths.length, half = p >> 1;
  const values = new Float64Array(half * n);
  widths.forEach((d, j) => models.find((m) => m.d === d && m.seed === state.seed).shares.forEach((s, k) => { values[k * n + j] = s; }));
  plot.begin(-0.5, n - 0.5, 0.5, half + 0.5);
  plot.image(values, half, n, sequential(), Math.sqrt);
  const every = Math.max(1, Math.ceil(n / 9)), here = widths.indexOf(state.d);
  plot.axes(widths.map((d, j) => [j, d]).filter((_, j) => j % every === 0), ticks(1, half, 6), "hidden width (narrower to the right)", "frequency");
  plot.c.strokeStyle = colour("--accent");
  plot.c.lineWidth = 2;
  plot.c.strokeRect(plot.x(here - 0.5), plot.y(half + 0.5), plot.x(here + 0.5) - plot.x(here - 0.5), plot.y(0.5) - plot.y(half + 0.5));
  byId("frequencies-title").innerHTML = "<b>Frequencies each width computes with</b>, all remainders: share of the power of a–b interaction (colour: its square root, 0 to 1)";
  plot.hover = (x, y, event) => {
    const j = Math.round(x), k = Math.round(y);
    if (j >= 0 && j < n && k >= 1 && k <= half) tip(`width ${widths[j]}, frequency ${k}\n${(100 * values[(k - 1) * n + j]).toFixed(2)} % of the power`, event);
  };
  plot.click = (x) => { const j = Math.round(x); if (j >= 0 && j < n) change({ d: widths[j] }); };
}

function step(by) {
  const widths = widthsOf(state.seed), to = Math.max(0, Math.min(widths.length - 1, widths.indexOf(state.d) + by));
  change({ d: widths[to] });
}

function play(on) {
  clearInterval(player);
  player = null;
  byId("play").textContent = on ? "❚❚" : "▶";
  byId("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on) return;
  if (widthsOf(state.seed).at(-1) === state.d) change({ d: widthsOf(state.seed)[0] });
  player = setInterval(() => (widthsOf(state.seed).at(-1) === state.d ? play(false) : step(1)), 250);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

function connect() {
  byId("modulus").textContent = p;
  byId("about").textContent = data.about;
  byId("seed").innerHTML = seeds.map((s) => `<option>${s}</option>`).join("");
  byId("remainder").innerHTML = Array.from({ length: p }, (_, c) => `<option>${c}</option>`).join("");
  byId("width").addEventListener("input", (e) => change({ d: widthsOf(state.seed)[+e.target.value] }));
  byId("seed").addEventListener("change", (e) => change({ seed: +e.target.value }));
  byId("remainder").addEventListener("change", (e) => change({ c: +e.target.value }));
  byId("view").addEventListener("change", (e) => change({ view: e.target.value }));
  byId("scale").addEventListener("change", (e) => change({ scale: e.target.value }));
  byId("play").addEventListener("click", () => play(player === null));
  byId("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); draw(); });
  byId("matrix").addEventListener("pointermove", hoverMatrix);
  byId("matrix").addEventListener("pointerleave", () => tip(null));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const widths = widthsOf(state.seed), actions = {
      ArrowRight: () => step(1), ArrowLeft: () => step(-1), Home: () => change({ d: widths[0] }), End: () => change({ d: widths.at(-1) }),
      ",": () => change({ c: (state.c + p - 1) % p }), ".": () => change({ c: (state.c + 1) % p }), " ": () => play(player === null),
    };
    if (!actions[event.key] || (event.key === " " && event.target.tagName === "BUTTON")) return;
    event.preventDefault();
    actions[event.key]();
  });
  window.addEventListener("hashchange", () => { readHash(); draw(); });
  window.addEventListener("resize", () => requestAnimationFrame(draw));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { setTheme(dark.matches ? "dark" : "light"); draw(); });
}

connect();
readHash();
draw();
