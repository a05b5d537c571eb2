"use strict";
// Bar charts that follow the slider: one SVG path a colour, values under the pointer.

const SVG = "http://www.w3.org/2000/svg";

// Ticks at round numbers, three to six of them between low and high.
function niceTicks(low, high) {
  const raw = (high - low) / 4, ten = 10 ** Math.floor(Math.log10(raw));
  const step = ten * [1, 2, 2.5, 5, 10].find((s) => s * ten >= raw);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

class Bars {
  // spec: {n, xlabel, xticks: [[position, text]], ylabel, name, say(i) → text, tick(value) → text}
  constructor(id, spec) {
    const root = document.getElementById(id);
    this.spec = spec;
    element(root, "div", "ylabel", spec.ylabel);
    this.yticks = element(root, "div", "yticks");
    this.frame = element(root, "div", "frame");
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", spec.name);
    this.frame.append(this.svg);
    [this.grid, this.up, this.down] = ["grid", "up", "down"].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      return this.svg.appendChild(path);
    });
    const xticks = element(root, "div", "xticks");
    for (const [at, text] of spec.xticks) {
      element(xticks, "span", "", text).style.left = `${100 * at / spec.n}%`;
    }
    element(root, "div", "xlabel", spec.xlabel);
    this.hover = element(root, "div", "hover");
    const point = (e) => {
      const box = this.svg.getBoundingClientRect();
      this.at = Math.min(spec.n - 1, Math.max(0, Math.floor((e.clientX - box.left) / box.width * spec.n)));
      this.speak();
    };
    this.svg.addEventListener("pointermove", point);
    this.svg.addEventListener("pointerdown", point);
    this.svg.addEventListener("pointerleave", () => { this.at = null; this.speak(); });
    this.at = null;
  }

  // values: n numbers, null where there is none. Bars are cut at low and high.
  draw(values, low, high) {
    const { n } = this.spec, range = `${low} ${high}`;
    if (range !== this.range) {
      this.range = range;
      this.svg.setAttribute("viewBox", `0 ${-high} ${n} ${high - low}`);
      const ticks = niceTicks(low, high);
      this.grid.setAttribute("d", ticks.map((v) => `M0 ${-v}H${n}`).join(""));
      this.yticks.replaceChildren();
      for (const v of ticks) {
        const span = element(this.yticks, "span", "", this.spec.tick(v));
        span.style.top = `${100 * (high - v) / (high - low)}%`;
      }
    }
    const bars = (sign) => values.map((v, i) => v * sign > 0
      ? `M${i + 0.08} 0V${-Math.min(high, Math.max(low, v))}H${i + 0.92}V0Z` : "").join("");
    this.up.setAttribute("d", bars(1));
    this.down.setAttribute("d", bars(-1));
    this.speak();
  }

  speak() {
    this.hover.textContent = this.at === null ? "" : this.spec.say(this.at);
  }
}
