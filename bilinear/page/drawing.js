// Drawing on canvases: heat maps of one pixel an entry, and plots with axes.
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4))).replace("-", "−");

function paint(canvas, values, rows, columns, map, toUnit) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d", { willReadFrequently: true }), image = context.createImageData(columns, rows);
  for (let i = 0; i < values.length; i++) {
    const entry = 3 * Math.round(Math.min(1, Math.max(0, toUnit(values[i]))) * (map.length / 3 - 1));
    image.data[4 * i] = map[entry];
    image.data[4 * i + 1] = map[entry + 1];
    image.data[4 * i + 2] = map[entry + 2];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

class Plot {
  // A canvas with margins in CSS pixels, linear axes x and y, and a hover.
  constructor(id, { left = 46, right = 10, top = 8, bottom = 36 } = {}) {
    this.canvas = byId(id);
    this.margin = { left, right, top, bottom };
    this.canvas.addEventListener("pointermove", (event) => this.point(event, this.hover));
    this.canvas.addEventListener("pointerleave", () => tip(null));
    this.canvas.addEventListener("click", (event) => this.point(event, this.click));
  }
  begin(x0, x1, y0, y1) {
    const ratio = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    this.w = box.width; this.h = box.height;
    this.canvas.width = Math.round(this.w * ratio);
    this.canvas.height = Math.round(this.h * ratio);
    this.c = this.canvas.getContext("2d");
    this.c.scale(ratio, ratio);
    this.c.font = "12px system-ui, sans-serif";
    const { left, right, top, bottom } = this.margin;
    this.x = (v) => left + ((v - x0) / (x1 - x0)) * (this.w - left - right);
    this.y = (v) => this.h - bottom - ((v - y0) / (y1 - y0)) * (this.h - top - bottom);
    this.inverse = (px, py) => [x0 + ((px - left) / (this.w - left - right)) * (x1 - x0), y0 + ((this.h - bottom - py) / (this.h - top - bottom)) * (y1 - y0)];
  }
  point(event, use) {
    if (!use || !this.inverse) return;
    const box = this.canvas.getBoundingClientRect();
    use(...this.inverse(event.clientX - box.left, event.clientY - box.top), event);
  }
  line(points, stroke, width = 1.5) {
    this.c.beginPath();
    points.forEach(([x, y], i) => (i ? this.c.lineTo(this.x(x), this.y(y)) : this.c.moveTo(this.x(x), this.y(y))));
    this.c.strokeStyle = stroke;
    this.c.lineWidth = width;
    this.c.stroke();
  }
  dot(x, y, radius, fill, hollow = false) {
    this.c.beginPath();
    this.c.arc(this.x(x), this.y(y), radius, 0, 7);
    this.c.lineWidth = 1.5;
    this.c.fillStyle = this.c.strokeStyle = fill;
    hollow ? this.c.stroke() : this.c.fill();
  }
  image(values, rows, columns, map, toUnit) {
    // Row 0 at the bottom; the axes must run half a cell past the first and last centres.
    const source = document.createElement("canvas");
    paint(source, values, rows, columns, map, toUnit);
    const { left, right, top, bottom } = this.margin;
    this.c.imageSmoothingEnabled = false;
    this.c.save();
    this.c.translate(left, this.h - bottom);
    this.c.scale(1, -1);
    this.c.drawImage(source, 0, 0, this.w - left - right, this.h - top - bottom);
    this.c.restore();
  }
  axes(xTicks, yTicks, xName, yName) {
    const { left, right, top, bottom } = this.margin, c = this.c;
    c.strokeStyle = colour("--soft"); c.fillStyle = colour("--soft"); c.lineWidth = 1;
    c.strokeRect(left, top, this.w - left - right, this.h - top - bottom);
    c.textAlign = "center"; c.textBaseline = "top";
    for (const [v, text = v] of xTicks) { c.fillRect(this.x(v), this.h - bottom, 1, 4); c.fillText(text, this.x(v), this.h - bottom + 6); }
    c.fillText(xName, left + (this.w - left - right) / 2, this.h - 15);
    c.textAlign = "right"; c.textBaseline = "middle";
    for (const [v, text = v] of yTicks) { c.fillRect(left - 4, this.y(v), 4, 1); c.fillText(text, left - 6, this.y(v)); }
    c.save(); c.translate(9, top + (this.h - top - bottom) / 2); c.rotate(-Math.PI / 2); c.textAlign = "center"; c.fillText(yName, 0, 0); c.restore();
  }
}

function ticks(low, high, count = 5) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw)), step = power * [1, 2, 5, 10].find((s) => s * power >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) found.push([+v.toPrecision(12), number(+v.toPrecision(6))]);
  return found;
}

function tip(text, event) {
  const box = byId("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  box.style.left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 6) + "px";
  box.style.top = Math.max(4, event.clientY - box.offsetHeight - 12) + "px";
}
