// A model's weights out of the page's data, and what is read off them.
function decodeFloats(text, type) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  if (type === "float32") return new Float32Array(bytes.buffer);
  return Float32Array.from(new Uint16Array(bytes.buffer), (h) => {
    const sign = h >> 15 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  });
}

function weightsOf(model, p, type) {
  if (!model.weights) {
    const flat = decodeFloats(model.data, type), d = model.d, n = 2 * p;
    model.weights = { d, p, left: flat.subarray(0, d * n), right: flat.subarray(d * n, 2 * d * n), out: flat.subarray(2 * d * n) };
  }
  return model.weights;
}

// Q_c = ½(B + Bᵀ), B = W_lᵀ diag(W_p[c]) W_r, row-major (2p × 2p).
function interactionMatrix({ d, p, left, right, out }, c) {
  const n = 2 * p, q = new Float64Array(n * n);
  for (let h = 0; h < d; h++) {
    const scale = out[c * d + h], l = left.subarray(h * n, h * n + n), r = right.subarray(h * n, h * n + n);
    for (let i = 0; i < n; i++) {
      const li = scale * l[i], row = i * n;
      for (let j = 0; j < n; j++) q[row + j] += li * r[j];
    }
  }
  for (let i = 0; i < n; i++)
    for (let j = 0; j < i; j++) q[i * n + j] = q[j * n + i] = 0.5 * (q[i * n + j] + q[j * n + i]);
  return q;
}

// logit_c(a, b) = Q[a, a] + Q[p + b, p + b] + 2 Q[a, p + b], row-major (p × p).
function logitTable(q, p) {
  const n = 2 * p, table = new Float64Array(p * p);
  for (let a = 0; a < p; a++)
    for (let b = 0; b < p; b++) table[a * p + b] = q[a * n + a] + q[(p + b) * (n + 1)] + 2 * q[a * n + p + b];
  return table;
}

// |2-D DFT| of the cross block 2 Q[a, p + b] / p²: rows k_a = 0 … p/2, columns k_b = −p/2 … p/2.
function crossSpectrum(q, p) {
  const n = 2 * p, half = p >> 1, cos = new Float64Array(p), sin = new Float64Array(p);
  for (let i = 0; i < p; i++) { cos[i] = Math.cos((2 * Math.PI * i) / p); sin[i] = Math.sin((2 * Math.PI * i) / p); }
  const re = new Float64Array((half + 1) * p), im = new Float64Array((half + 1) * p);
  for (let k = 0; k <= half; k++)
    for (let a = 0; a < p; a++) {
      const t = (k * a) % p, row = a * n + p;
      for (let b = 0; b < p; b++) { re[k * p + b] += cos[t] * q[row + b]; im[k * p + b] -= sin[t] * q[row + b]; }
    }
  const columns = 2 * half + 1, size = new Float64Array((half + 1) * columns);
  for (let k = 0; k <= half; k++)
    for (let m = -half; m <= half; m++) {
      let x = 0, y = 0;
      for (let b = 0, t = 0, step = ((m % p) + p) % p; b < p; b++, t = t + step >= p ? t + step - p : t + step) {
        const u = re[k * p + b], v = im[k * p + b];
        x += u * cos[t] + v * sin[t];
        y += v * cos[t] - u * sin[t];
      }
      size[k * columns + m + half] = (2 * Math.hypot(x, y)) / (p * p);
    }
  return { size, rows: half + 1, columns };
}

// The value that 99.5 % of entries stay within.
function typicalLimit(values) {
  const sizes = Float64Array.from(values, Math.abs).sort();
  return sizes[Math.min(sizes.length - 1, Math.floor(0.995 * sizes.length))] || 1;
}
