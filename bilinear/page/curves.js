"use strict";
// Charts of points and lines on logarithmic axes, in SVG.

const decades = (low, high) => every(Math.floor(high) - Math.ceil(low) + 1, 1).map((i) => Math.ceil(low) + i);
const power = (k) => k >= 0 && k <= 4 ? (10 ** k).toLocaleString("en")
  : k >= -4 && k < 0 ? String(+(10 ** k).toFixed(4)) : `10${[...String(k)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`;

class Chart extends Figure {
  // spec: {name, xlabel, ylabel, x, y: {low, high, ticks: [[value, text]]}, click(i)?}
  // points: [[x, y, text]], of which the text is shown at the pointer
  constructor(id, spec) {
    super(id, spec);
    this.svg.setAttribute("viewBox", "0 0 1 1");
    this.paths = {};
    const { x, y } = spec;
    this.x = (value) => (value - x.low) / (x.high - x.low);
    this.y = (value) => 1 - (value - y.low) / (y.high - y.low);
    this.path("grid").setAttribute("d", [...x.ticks.map(([t]) => `M${this.x(t)} 0V1`),
      ...y.ticks.map(([t]) => `M0 ${this.y(t)}H1`)].join(""));
    placeTicks(this.xticks, x.ticks, "left", this.x);
    placeTicks(this.yticks, y.ticks, "top", this.y);
    this.points = [];
    this.svg.addEventListener("pointermove", (e) => { this.at = this.nearest(e); this.showValue(); });
    this.svg.addEventListener("pointerleave", () => { this.at = -1; this.showValue(); });
    if (spec.click) {
      this.svg.addEventListener("click", (e) => {
        const at = this.nearest(e);
        if (at >= 0) spec.click(at);
      });
    }
  }

  path(name) {
    return this.paths[name] ??= this.addPath(name);
  }

  dots(points) {
    this.points = points;
    this.path("dots").setAttribute("d", points.map(([x, y]) => `M${this.x(x)} ${this.y(y)}h0`).join(""));
  }

  line(name, points) {
    this.path(`line ${name}`).setAttribute("d", points.map(([x, y], i) => `${i ? "L" : "M"}${this.x(x)} ${this.y(y)}`).join(""));
  }

  nearest(event) {
    const box = this.svg.getBoundingClientRect();
    let best = -1, least = 30 ** 2;
    this.points.forEach(([x, y], i) => {
      const far = (box.left + this.x(x) * box.width - event.clientX) ** 2 +
        (box.top + this.y(y) * box.height - event.clientY) ** 2;
      if (far < least) [best, least] = [i, far];
    });
    return best;
  }

  showValue() {
    this.hover.textContent = this.points[this.at]?.[2] ?? "";
  }
}
