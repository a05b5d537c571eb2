"use strict";
// The models in the page, and what the browser computes from their weights.

const DATA = JSON.parse(document.getElementById("data").textContent);

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const unpack = (text) => new Float32Array(bytesOf(text).buffer);

// Decodes numbers stored as the upper 24 bits of float32.
function unpack24(text) {
  const bytes = bytesOf(text), bits = new Uint32Array(bytes.length / 3);
  for (let i = 0; i < bits.length; i++) {
    bits[i] = bytes[3 * i] << 8 | bytes[3 * i + 1] << 16 | bytes[3 * i + 2] << 24;
  }
  return new Float32Array(bits.buffer);
}

// Decodes numbers from −1 to 1 stored in 16 bits.
const unpackUnit = (text) => Float32Array.from(new Int16Array(bytesOf(text).buffer), (x) => x / 32767);

const models = new Map();

// One model, decoded at its first use: l and r are d rows of 2p numbers, w_p p rows of d.
function model(d, seed) {
  const key = `${d}-${seed}`;
  if (!models.has(key)) {
    const raw = DATA.models[key];
    if (!raw) return null;
    const w = unpack24(raw.weights), n = d * 2 * DATA.p;
    models.set(key, {
      d, l: w.subarray(0, n), r: w.subarray(n, 2 * n), w_p: w.subarray(2 * n),
      eigenvalues: unpack(raw.eigenvalues), eigenvectors: unpackUnit(raw.eigenvectors),
      nVectors: raw.n_vectors, shares: unpack(raw.shares), amplitudes: unpack(raw.amplitudes),
      units: raw.units, coefficients: null, guesses: null,
      history: unpack(raw.history),
    });
  }
  return models.get(key);
}

// Q_c = ½ Σ_h w_p[c, h] (l_h r_hᵀ + r_h l_hᵀ), (2p, 2p)
function interactionMatrix(m, c) {
  const n = 2 * DATA.p, q = new Float32Array(n * n);
  for (let h = 0; h < m.d; h++) {
    const half = m.w_p[c * m.d + h] / 2, at = h * n;
    for (let i = 0; i < n; i++) {
      const l = half * m.l[at + i], r = half * m.r[at + i], row = i * n;
      for (let j = 0; j < n; j++) q[row + j] += l * m.r[at + j] + r * m.l[at + j];
    }
  }
  return q;
}

// logit c on every pair: Σ_h w_p[c, h] (l_h[a] + l_h[p + b]) (r_h[a] + r_h[p + b]), (p, p)
function logitTable(m, c) {
  const p = DATA.p, table = new Float32Array(p * p);
  for (let h = 0; h < m.d; h++) {
    const w = m.w_p[c * m.d + h], at = h * 2 * p;
    for (let a = 0; a < p; a++) {
      const l = m.l[at + a], r = m.r[at + a];
      for (let b = 0; b < p; b++) {
        table[a * p + b] += w * (l + m.l[at + p + b]) * (r + m.r[at + p + b]);
      }
    }
  }
  return table;
}

// The class with the largest logit for every pair, (p, p); computed once for each model.
function guesses(m) {
  if (m.guesses) return m.guesses;
  const { p } = DATA, best = new Float32Array(p * p).fill(-Infinity);
  m.guesses = new Uint16Array(p * p);
  for (let c = 0; c < p; c++) {
    const table = logitTable(m, c);
    for (let i = 0; i < table.length; i++) {
      if (table[i] > best[i]) [best[i], m.guesses[i]] = [table[i], c];
    }
  }
  return m.guesses;
}

const turns = (() => {
  const p = DATA.p, cos = new Float64Array(p), sin = new Float64Array(p);
  for (let t = 0; t < p; t++) {
    cos[t] = Math.cos(2 * Math.PI * t / p);
    sin[t] = Math.sin(2 * Math.PI * t / p);
  }
  return { cos, sin };
})();

// DFT of each row's a and b half at frequencies 0 … ⌊p/2⌋: Float64Array pairs (re, im).
function rowCoefficients(rows, d) {
  const p = DATA.p, half = Math.floor(p / 2) + 1, n = 2 * d * half;
  const re = new Float64Array(n), im = new Float64Array(n);
  for (let s = 0; s < 2 * d; s++) {
    for (let k = 0; k < half; k++) {
      let x = 0, y = 0;
      for (let t = 0, turn = 0; t < p; t++, turn = (turn + k) % p) {
        x += rows[s * p + t] * turns.cos[turn];
        y -= rows[s * p + t] * turns.sin[turn];
      }
      re[s * half + k] = x;
      im[s * half + k] = y;
    }
  }
  return { re, im };
}

// |2-D DFT| of 2 Q_ab over p², zero frequency at ⌊p/2⌋: (p, p). The DFT of
// real numbers is symmetric, so half of the rows are computed and the others copied.
function crossSpectrum(m, c) {
  const p = DATA.p, half = Math.floor(p / 2) + 1, mid = Math.floor(p / 2);
  m.coefficients ??= { l: rowCoefficients(m.l, m.d), r: rowCoefficients(m.r, m.d) };
  const { l, r } = m.coefficients, out = new Float32Array(p * p);
  const x = new Float64Array(p), y = new Float64Array(p);
  for (let ka = 0; ka < half; ka++) {
    x.fill(0);
    y.fill(0);
    for (let h = 0; h < m.d; h++) {
      const w = m.w_p[c * m.d + h], a = 2 * h * half + ka, b0 = (2 * h + 1) * half;
      const lx = w * l.re[a], ly = w * l.im[a], rx = w * r.re[a], ry = w * r.im[a];
      for (let kb = 0; kb < p; kb++) {
        const folded = kb < half ? kb : p - kb, sign = kb < half ? 1 : -1, b = b0 + folded;
        const sx = r.re[b], sy = sign * r.im[b], tx = l.re[b], ty = sign * l.im[b];
        x[kb] += lx * sx - ly * sy + rx * tx - ry * ty;
        y[kb] += lx * sy + ly * sx + rx * ty + ry * tx;
      }
    }
    for (let kb = 0; kb < p; kb++) {
      const size = Math.hypot(x[kb], y[kb]) / (p * p);
      out[((ka + mid) % p) * p + ((kb + mid) % p)] = size;
      out[((p - ka + mid) % p) * p + ((p - kb + mid) % p)] = size;
    }
  }
  return out;
}
