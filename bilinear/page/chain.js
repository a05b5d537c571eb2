"use strict";
// The hidden units of a narrowed model, a row each, from the widest width to the narrowest.

const unitsOf = (d) => DATA.models[`${d}-${state.seed}`]?.units_kept;
const CELL = 1.6; // a cell's width over its height
const LEAST = 0.01; // a unit whose amplitude never reaches this share of the largest gets no row
const colourOf = (k) => `hsl(${k * 137.5 % 360} 65% 48%)`; // neighbours k, k + 1 are far apart in hue

class Chain extends Figure {
  constructor(id) {
    super(id, { name: "hidden units by width", xlabel: "hidden width d", ylabel: "hidden units" });
    placeTicks(this.xticks, widthTicks, "left", (at) => at / widths.length);
    this.svg.addEventListener("pointermove", (e) => this.showValue(...this.cell(e)));
    this.svg.addEventListener("pointerleave", () => { this.hover.textContent = ""; });
    this.svg.addEventListener("click", (e) => choose({ d: widths[this.cell(e)[0]] }));
  }

  cell(event) {
    const box = this.svg.getBoundingClientRect();
    return [cellAt((event.clientX - box.left) / box.width, widths.length),
      cellAt((event.clientY - box.top) / box.height, this.rows.size)];
  }

  // Draws a tick for each unit and width: its colour is the frequency, its length the amplitude, its
  // angle the phase. A unit without amplitude gets a dot.
  setSeed() {
    this.seed = state.seed;
    const last = new Map(), lines = new Map();
    const seen = new Set();
    widths.forEach((d, j) => {
      const units = unitsOf(d), amplitudes = units && unpack(units.amplitudes);
      units?.names.forEach((name, i) => {
        last.set(name, j);
        if (amplitudes[i] >= LEAST) seen.add(name);
      });
    });
    const longestFirst = [...seen].sort((a, b) => last.get(b) - last.get(a) || a - b);
    this.rows = new Map(longestFirst.map((name, y) => [name, y]));
    widths.forEach((d, j) => {
      const units = unitsOf(d);
      if (!units) return;
      const phases = unpack(units.phases), amplitudes = unpack(units.amplitudes);
      units.names.forEach((name, i) => {
        if (!this.rows.has(name)) return;
        const y = this.rows.get(name) + 0.5, half = 0.45 * Math.sqrt(amplitudes[i]);
        const [dx, dy] = [half * Math.cos(phases[i]) / CELL, -half * Math.sin(phases[i])];
        const k = amplitudes[i] > 0 ? units.frequencies[i] : -1;
        const tick = k < 0 ? `M${j + 0.5} ${y}h0` : `M${j + 0.5 - dx} ${y - dy}l${2 * dx} ${2 * dy}`;
        lines.set(k, (lines.get(k) ?? "") + tick);
      });
    });
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${widths.length} ${this.rows.size}`);
    this.frame.style.aspectRatio = `${CELL * widths.length} / ${this.rows.size}`;
    for (const [k, some] of lines) {
      const path = this.addPath(k < 0 ? "silent" : "tick");
      path.setAttribute("d", some);
      if (k >= 0) path.style.stroke = colourOf(k);
    }
    [this.chosen, this.leaving] = ["chosen", "leaving"].map((name) => this.addPath(name));
  }

  // Names of the units that are dropped before the next narrower width.
  droppedAfter(d) {
    const next = unitsOf(widths[widths.indexOf(d) + 1]);
    return next ? unitsOf(d)?.names.filter((name) => !next.names.includes(name)) ?? [] : [];
  }

  draw() {
    if (this.seed !== state.seed) this.setSeed();
    const j = widths.indexOf(state.d), box = (y, height) => `M${j} ${y}h1v${height}h-1Z`;
    this.chosen.setAttribute("d", box(0, this.rows.size));
    const shown = this.droppedAfter(state.d).filter((name) => this.rows.has(name));
    this.leaving.setAttribute("d", shown.map((name) => box(this.rows.get(name), 1)).join(""));
  }

  showValue(j, y) {
    const d = widths[j], units = unitsOf(d), name = [...this.rows.keys()][y], i = units?.names.indexOf(name) ?? -1;
    const size = i < 0 ? 0 : unpack(units.amplitudes)[i];
    this.hover.textContent = `d = ${d}, unit ${name}: ` + (i < 0 ? "not there" : (size > 0
      ? `k = ${units.frequencies[i]}, amplitude ${percent(size)} of the largest, phase ${(unpack(units.phases)[i] / Math.PI).toFixed(2)} π`
      : "without amplitude") + (this.droppedAfter(d).includes(name) ? ", goes next" : ""));
  }
}

const chain = DATA.narrowed ? new Chain("chain") : null;
$("chain-card").hidden = !chain;
