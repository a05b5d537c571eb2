"use strict";
// The slider, the menus, the keys, and the buttons that save a picture or a table.

function choose(change) {
  Object.assign(state, change);
  draw();
  writeAddress();
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
  b: () => choose({ beside: state.beside === state.d ? 0 : state.d }),
  c: () => choose({ scale: SCALES[1 - SCALES.indexOf(state.scale)] }),
};

// Draws the widths under the slider, and a strip whose colour says which of them are perfect.
function drawTicks() {
  const n = widths.length, thumb = 8, place = (i) => `calc(${thumb}px + ${n > 1 ? i / (n - 1) : 0} * (100% - ${2 * thumb}px))`;
  const step = Math.ceil(n / (innerWidth > 600 ? 16 : 8));
  $("ticks").querySelectorAll("span").forEach((span) => span.remove());
  widths.forEach((d, i) => {
    if (i % step === 0 || i === n - 1 && i % step > step / 2) element($("ticks"), "span", "", d).style.left = place(i);
  });
  const canvas = $("ticks").querySelector("canvas"), cell = `(100% - ${2 * thumb}px) / ${Math.max(1, n - 1)}`;
  [canvas.width, canvas.height] = [n, 1];
  canvas.style.left = `calc(${thumb}px - ${cell} / 2)`;
  canvas.style.width = `calc(100% - ${2 * thumb}px + ${cell})`;
  const context = canvas.getContext("2d"), css = getComputedStyle(document.documentElement);
  widths.forEach((d, i) => {
    const row = rowOf.get(`${d}-${state.seed}`);
    context.fillStyle = css.getPropertyValue(!row ? "--line" : row.perfect ? "--accent" : "--warm");
    context.globalAlpha = row?.perfect === false ? 0.35 + 0.65 * Math.min(1, 1 - row.full_acc) : 1;
    context.fillRect(i, 0, 1, 1);
  });
}

function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
const fileName = () => `${state.view === "full" ? "Q" : "logits"}-p${p}-d${state.d}-s${state.seed}-c${state.c}`;

// The canvas that the PNG button saves: title, matrix with whole pixels an entry, colour scale in words.
function picture() {
  const { rows, columns } = matrix, cell = Math.max(1, Math.round(1024 / rows)), head = 60;
  const canvas = document.createElement("canvas"), css = getComputedStyle(document.documentElement);
  [canvas.width, canvas.height] = [columns * cell + 40, rows * cell + head + 60];
  const context = canvas.getContext("2d");
  context.fillStyle = css.getPropertyValue("--panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(matrix.canvas, 20, head, columns * cell, rows * cell);
  context.fillStyle = css.getPropertyValue("--ink");
  context.font = "26px system-ui, sans-serif";
  context.fillText($("matrix-title").textContent, 20, 40, canvas.width - 40);
  context.font = "20px system-ui, sans-serif";
  const grey = state.view === "full" ? "; grey: meets no pair" : "";
  context.fillText(`(a + b) mod ${p}; full colour ±${format(matrix.limit)} logits${grey}`, 20, canvas.height - 24);
  return canvas;
}
function table() {
  const { rows, columns, values } = matrix;
  return every(rows, 1).map((i) => values.subarray(i * columns, (i + 1) * columns).join(",")).join("\n") + "\n";
}

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
  for (const [id, name] of CHOICES) {
    const convert = state[name].constructor; // Number or String
    $(id).addEventListener("change", (e) => choose({ [name]: convert(e.target.value) }));
  }
  $("play").addEventListener("click", () => play(!playing));
  $("beside").add(new Option("nothing", 0));
  for (const d of widths) $("beside").add(new Option(`d = ${d}`, d));
  $("own").addEventListener("click", () => choose({ scale: "own" }));
  $("png").addEventListener("click", () => picture().toBlob((blob) => save(`${fileName()}.png`, blob)));
  $("csv").addEventListener("click", () => save(`${fileName()}.csv`, new Blob([table()], { type: "text/csv" })));
  const useTheme = (theme) => { setTheme(theme); draw(); };
  $("theme").addEventListener("click", () => useTheme(state.theme === "dark" ? "light" : "dark"));
  media.addEventListener("change", () => useTheme(media.matches ? "dark" : "light"));
  addEventListener("resize", () => { drawTicks(); matrix.fit(); other.fit(); });
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
