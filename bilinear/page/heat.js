"use strict";
// Heat maps: one canvas pixel an entry, axes and a colour bar around it, and the value at the pointer.

// Blue below zero, red above, the page's background at zero: distinct with any colour vision.
// "faint" is for entries that no input meets: pale grey, which is no colour of the scale.
const STOPS = {
  light: {
    diverging: ["#053061", "#2a71b2", "#8fc3de", "#ffffff", "#f6a582", "#c53a3f", "#67001f"],
    sequential: ["#ffffff", "#cfe1f2", "#93c4de", "#4a97c9", "#1763a9", "#08306b"],
    faint: ["#d0d0ce", "#ffffff", "#d0d0ce"],
  },
  dark: {
    diverging: ["#b8e2ff", "#5fb0f0", "#2a5f8f", "#1a1d20", "#96492a", "#f0894f", "#ffdcc2"],
    sequential: ["#1a1d20", "#1f3f5f", "#2a6a9e", "#4f9ed8", "#97cdf5", "#eef8ff"],
    faint: ["#43484d", "#1a1d20", "#43484d"],
  },
};

const LEVELS = 511; // odd, so that the middle level is the colour of 0

function lookup(stops) {
  const rgb = stops.map((s) => [1, 3, 5].map((i) => parseInt(s.slice(i, i + 2), 16)));
  const table = new Uint32Array(LEVELS);
  for (let level = 0; level < LEVELS; level++) {
    const at = level / (LEVELS - 1) * (rgb.length - 1);
    const i = Math.min(Math.floor(at), rgb.length - 2), f = at - i;
    const [r, g, b] = [0, 1, 2].map((k) => Math.round(rgb[i][k] * (1 - f) + rgb[i + 1][k] * f));
    table[level] = 0xff000000 | (b << 16) | (g << 8) | r;
  }
  return table;
}

const LOOKUPS = Object.fromEntries(Object.entries(STOPS).map(([theme, maps]) =>
  [theme, Object.fromEntries(Object.entries(maps).map(([name, stops]) => [name, lookup(stops)]))]));

// The level of a value's colour: the diverging map spans −limit … limit, the sequential one 0 … limit.
function levelOf(value, limit, kind) {
  const x = kind === "diverging" ? (value / limit + 1) / 2 : value / limit;
  return Math.round(Math.min(1, Math.max(0, x)) * (LEVELS - 1));
}

function element(parent, tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Labels [position, text] along one side of a chart; share(position) is 0 at its start and 1 at its end.
function placeTicks(parent, ticks, side, share) {
  parent.replaceChildren();
  for (const [at, text] of ticks) element(parent, "span", "", text).style[side] = `${100 * share(at)}%`;
}

// The index of the cell at a share 0 … 1 of n cells.
const cellAt = (share, n) => Math.min(n - 1, Math.max(0, Math.floor(share * n)));

function format(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(3));
  return text.replaceAll("-", "−");
}

class Heat {
  // spec: {kind, unit, say(i, j, value) → text, click(i, j)?, faint(i, j)? → whether to draw it pale}
  // room() → the CSS pixels there are for the picture; if left out, the width of its grid cell
  constructor(id, spec) {
    this.root = document.getElementById(id);
    this.spec = spec;
    this.ylabel = element(this.root, "div", "ylabel");
    this.yticks = element(this.root, "div", "yticks");
    this.frame = element(this.root, "div", "frame");
    this.canvas = element(this.frame, "canvas", "");
    this.marks = element(this.frame, "div", "");
    const bar = this.scaleBar = element(this.root, "div", "bar");
    this.barCanvas = element(element(bar, "div", "ramp"), "canvas", "");
    this.ends = element(bar, "div", "ends");
    element(bar, "div", "unit", spec.unit);
    this.xticks = element(this.root, "div", "xticks");
    this.xlabel = element(this.root, "div", "xlabel");
    this.hover = element(this.root, "div", "hover");
    this.canvas.setAttribute("role", "img");
    this.canvas.addEventListener("pointermove", (e) => this.point(e));
    this.canvas.addEventListener("pointerdown", (e) => this.point(e));
    this.canvas.addEventListener("pointerleave", () => { this.at = null; this.showValue(); });
    new ResizeObserver(() => this.fit()).observe(this.root);
    if (spec.click) {
      this.canvas.addEventListener("click", (e) => spec.click(...this.entry(e)));
    }
  }

  // axes: {x: {label, ticks: [[position, text]]}, y: …, columnRules: [position], rowRules: …, name}
  setAxes(rows, columns, axes) {
    const key = JSON.stringify([rows, columns, axes]);
    if (key === this.axesKey) return;
    this.axesKey = key;
    [this.rows, this.columns] = [rows, columns];
    this.canvas.width = columns;
    this.canvas.height = rows;
    this.image = new ImageData(columns, rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.xlabel.textContent = axes.x.label;
    this.halves(axes.y.label);
    this.canvas.setAttribute("aria-label", axes.name);
    this.place(this.xticks, axes.x.ticks, columns, "left");
    this.place(this.yticks, axes.y.ticks, rows, "top");
    for (const rule of this.frame.querySelectorAll(".rule")) rule.remove();
    const rule = (style) => { element(this.frame, "div", "rule").style.cssText = style; };
    for (const at of axes.columnRules ?? []) rule(`left:${100 * at / columns}%;width:1px;top:0;bottom:0`);
    for (const at of axes.rowRules ?? []) rule(`top:${100 * at / rows}%;height:1px;left:0;right:0`);
  }

  // Shows one label, or a label for each half of the axis.
  halves(label) {
    const parts = Array.isArray(label) ? label : [label];
    this.ylabel.classList.toggle("halves", parts.length > 1);
    this.ylabel.replaceChildren();
    for (const text of parts.toReversed()) element(this.ylabel, "span", "", text);
  }

  // Sets the picture's size. A cell is a whole number of screen pixels, so that all cells look alike.
  fit() {
    if (!this.columns || !this.root.offsetParent) return;
    const dense = devicePixelRatio || 1, { aspect = 0, room } = this.spec;
    const wide = room?.() ?? parseFloat(getComputedStyle(this.root).gridTemplateColumns.split(" ")[2]);
    const whole = (space, n) => Math.max(1, Math.floor(space * dense / n)) / dense;
    const cell = Math.min(whole(wide, this.columns), wide / this.columns);
    const width = cell * this.columns;
    const height = aspect ? whole(wide / aspect, this.rows) * this.rows : cell * this.rows;
    for (const [node, w, h] of [[this.frame, width, height], [this.xticks, width], [this.xlabel, width],
      [this.scaleBar, 0, height], [this.ylabel, 0, height], [this.yticks, 0, height]]) {
      if (w) node.style.width = `${w}px`;
      if (h) node.style.height = `${h}px`;
    }
    this.thin(this.xticks, width / this.columns, 26);
    this.thin(this.yticks, height / this.rows, 13);
  }

  // Hides tick labels that would overlap.
  thin(parent, cell, least) {
    const places = parent.at ?? [];
    const gap = places.length > 1 ? (places[1] - places[0]) * cell : least;
    const step = Math.max(1, Math.ceil(least / gap));
    [...parent.children].forEach((span, i) => { span.hidden = i % step > 0; });
  }

  place(parent, ticks, n, side) {
    parent.at = ticks.map(([at]) => at);
    placeTicks(parent, ticks, side, (at) => at / n);
  }

  draw(values, limit, theme) {
    if (this.fitted !== this.axesKey) {
      this.fitted = this.axesKey;
      this.fit();
    }
    this.limit = limit;
    const { kind, faint } = this.spec, table = LOOKUPS[theme][kind], pale = LOOKUPS[theme].faint;
    this.values = values;
    for (let at = 0; at < values.length; at++) {
      const colours = faint?.(Math.floor(at / this.columns), at % this.columns) ? pale : table;
      this.pixels[at] = colours[levelOf(values[at], limit, kind)];
    }
    this.canvas.getContext("2d").putImageData(this.image, 0, 0);
    const bar = `${kind} ${limit} ${theme}`;
    if (bar !== this.bar) this.drawBar(limit, table, kind);
    this.bar = bar;
    this.showValue();
  }

  drawBar(limit, table, kind) {
    [this.barCanvas.width, this.barCanvas.height] = [1, LEVELS];
    const image = new ImageData(1, LEVELS), pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < LEVELS; i++) pixels[i] = table[LEVELS - 1 - i];
    this.barCanvas.getContext("2d").putImageData(image, 0, 0);
    this.ends.replaceChildren();
    const ends = kind === "diverging" ? [limit, 0, -limit] : [limit, 0];
    for (const end of ends) element(this.ends, "span", "", format(end));
  }

  // Outlines columns i0 … i1 and rows j0 … j1.
  mark(i0, i1, j0, j1) {
    this.marks.className = "mark";
    const [x, y] = [100 / this.columns, 100 / this.rows];
    this.marks.style.cssText =
      `left:calc(${i0 * x}% - 2px);width:calc(${(i1 - i0 + 1) * x}% + 4px);` +
      `top:calc(${j0 * y}% - 2px);height:calc(${(j1 - j0 + 1) * y}% + 4px)`;
  }

  entry(event) {
    const box = this.canvas.getBoundingClientRect();
    return [cellAt((event.clientY - box.top) / box.height, this.rows),
      cellAt((event.clientX - box.left) / box.width, this.columns)];
  }

  point(event) {
    this.at = this.entry(event);
    this.showValue();
  }

  showValue() {
    const text = this.at && this.values
      ? this.spec.say(...this.at, this.values[this.at[0] * this.columns + this.at[1]]) : "";
    if (this.hover.textContent !== text) this.hover.textContent = text;
  }
}
