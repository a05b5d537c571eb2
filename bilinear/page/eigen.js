// Eigenpairs of a real symmetric matrix: Householder reflections to tridiagonal form, then implicit
// QR steps with Wilkinson's shift (Golub & Van Loan, Matrix Computations, §8.3). Vectors are rows,
// so that every rotation runs along memory.
function symmetricEigen(matrix, n) {
  const a = Float64Array.from(matrix), d = new Float64Array(n), e = new Float64Array(n);
  const reflectors = [], w = new Float64Array(n);
  for (let k = 0; k < n - 2; k++) {
    let norm2 = 0;
    for (let i = k + 1; i < n; i++) norm2 += a[i * n + k] ** 2;
    const first = a[(k + 1) * n + k], alpha = first > 0 ? -Math.sqrt(norm2) : Math.sqrt(norm2);
    if (norm2 - first * first === 0) { reflectors.push(null); continue; }
    const v = new Float64Array(n), beta = 1 / (norm2 - first * alpha);
    for (let i = k + 1; i < n; i++) v[i] = a[i * n + k];
    v[k + 1] -= alpha;
    let wv = 0;
    for (let i = k + 1; i < n; i++) {
      let sum = 0;
      for (let j = k + 1; j < n; j++) sum += a[i * n + j] * v[j];
      w[i] = beta * sum;
      wv += w[i] * v[i];
    }
    for (let i = k + 1; i < n; i++) w[i] -= 0.5 * beta * wv * v[i];
    for (let i = k + 1; i < n; i++) {
      const vi = v[i], wi = w[i], row = i * n;
      for (let j = k + 1; j < n; j++) a[row + j] -= vi * w[j] + wi * v[j];
    }
    a[(k + 1) * n + k] = alpha;
    reflectors.push([v, beta]);
  }
  let size = 0;
  for (let i = 0; i < n; i++) {
    d[i] = a[i * n + i];
    if (i < n - 1) e[i] = a[(i + 1) * n + i];
    size = Math.max(size, Math.abs(d[i]) + Math.abs(e[i]));
  }
  const z = new Float64Array(n * n);
  for (let i = 0; i < n; i++) z[i * n + i] = 1;
  for (let k = n - 3; k >= 0; k--) {
    if (!reflectors[k]) continue;
    const [v, beta] = reflectors[k];
    for (let i = k + 1; i < n; i++) {
      let sum = 0;
      const row = i * n;
      for (let j = k + 1; j < n; j++) sum += z[row + j] * v[j];
      sum *= beta;
      for (let j = k + 1; j < n; j++) z[row + j] -= sum * v[j];
    }
  }
  for (let hi = n - 1, guard = 60 * n; hi > 0 && guard > 0; guard--) {
    if (Math.abs(e[hi - 1]) <= 1e-15 * size) { e[hi - 1] = 0; hi--; continue; }
    let lo = hi - 1;
    while (lo > 0 && Math.abs(e[lo - 1]) > 1e-15 * size) lo--;
    const half = (d[hi - 1] - d[hi]) / 2, last = e[hi - 1];
    const shift = d[hi] - (last * last) / (half + (half < 0 ? -1 : 1) * Math.hypot(half, last));
    let x = d[lo] - shift, y = e[lo];
    for (let k = lo; k < hi; k++) {
      const r = Math.sqrt(x * x + y * y), c = r ? x / r : 1, s = r ? y / r : 0;
      if (k > lo) e[k - 1] = r;
      const dk = d[k], dn = d[k + 1], ek = e[k];
      d[k] = c * c * dk + 2 * c * s * ek + s * s * dn;
      d[k + 1] = s * s * dk - 2 * c * s * ek + c * c * dn;
      e[k] = c * s * (dn - dk) + (c * c - s * s) * ek;
      if (k < hi - 1) { x = e[k]; y = s * e[k + 1]; e[k + 1] *= c; }
      const p = k * n, q = p + n;
      for (let j = 0; j < n; j++) {
        const u = z[p + j], v = z[q + j];
        z[p + j] = c * u + s * v;
        z[q + j] = c * v - s * u;
      }
    }
  }
  const order = Array.from(d.keys()).sort((i, j) => d[j] - d[i]);
  return {
    values: order.map((i) => d[i]),
    vector: (rank) => z.subarray(order[rank] * n, (order[rank] + 1) * n),
  };
}
