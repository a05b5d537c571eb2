"use strict";
// SVG charts: their frame, and bar charts with the value at the pointer.

const SVG = "http://www.w3.org/2000/svg";

// Ticks at round numbers, three to six of them between low and high.
function niceTicks(low, high) {
  const raw = (high - low) / 4, ten = 10 ** Math.floor(Math.log10(raw));
  const step = ten * [1, 2, 2.5, 5, 10].find((s) => s * ten >= raw);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

// The frame of a chart: an SVG with labels and ticks, and a line of text for the value at the pointer.
class Figure {
  constructor(id, { name, xlabel, ylabel }) {
    const root = document.getElementById(id);
    element(root, "div", "ylabel", ylabel);
    this.yticks = element(root, "div", "yticks");
    this.frame = element(root, "div", "frame");
    this.svg = this.frame.appendChild(document.createElementNS(SVG, "svg"));
    for (const [key, value] of [["preserveAspectRatio", "none"], ["role", "img"], ["aria-label", name]]) {
      this.svg.setAttribute(key, value);
    }
    this.xticks = element(root, "div", "xticks");
    element(root, "div", "xlabel", xlabel);
    this.hover = element(root, "div", "hover");
  }

  addPath(className) {
    const path = this.svg.appendChild(document.createElementNS(SVG, "path"));
    path.setAttribute("class", className);
    return path;
  }
}

class Bars extends Figure {
  // spec: {n, xlabel, xticks: [[position, text]], ylabel, name, say(i) → text, tick(value) → text}
  constructor(id, spec) {
    super(id, spec);
    this.spec = spec;
    [this.grid, this.up, this.down] = ["grid", "up", "down"].map((name) => this.addPath(name));
    placeTicks(this.xticks, spec.xticks, "left", (at) => at / spec.n);
    const point = (e) => {
      const box = this.svg.getBoundingClientRect();
      this.at = cellAt((e.clientX - box.left) / box.width, spec.n);
      this.showValue();
    };
    this.svg.addEventListener("pointermove", point);
    this.svg.addEventListener("pointerdown", point);
    this.svg.addEventListener("pointerleave", () => { this.at = null; this.showValue(); });
    this.at = null;
  }

  // values: at most n numbers. Bars are cut at low and high.
  draw(values, low, high) {
    const { n } = this.spec, range = `${low} ${high}`;
    if (range !== this.range) {
      this.range = range;
      this.svg.setAttribute("viewBox", `0 ${-high} ${n} ${high - low}`);
      const ticks = niceTicks(low, high);
      this.grid.setAttribute("d", ticks.map((v) => `M0 ${-v}H${n}`).join(""));
      const labels = ticks.map((v) => [v, this.spec.tick(v)]);
      placeTicks(this.yticks, labels, "top", (v) => (high - v) / (high - low));
    }
    const bars = (sign) => values.map((v, i) => v * sign > 0
      ? `M${i + 0.08} 0V${-Math.min(high, Math.max(low, v))}H${i + 0.92}V0Z` : "").join("");
    this.up.setAttribute("d", bars(1));
    this.down.setAttribute("d", bars(-1));
    this.showValue();
  }

  showValue() {
    this.hover.textContent = this.at === null ? "" : this.spec.say(this.at);
  }
}
