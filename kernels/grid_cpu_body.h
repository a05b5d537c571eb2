/* The arithmetic of grid_cpu.c; isa_cpu.h includes it once for each instruction set. */

#define PARTS (16 / LANES) /* vectors to 16 floats, the unit of padding and of every sum */
#define TILE_ROWS (LANES == 4 ? 4 : 6) /* of a matrix product's tile held in registers */

/* x where x > y, and else y. */
INLINE vf N(max)(vf x, vf y) {
#if LANES == 8 && !defined(__clang__)
    return __builtin_ia32_maxps256(x, y);
#else
    return (vf)(((vi)x & (x > y)) | ((vi)y & ~(x > y)));
#endif
}

/* Lane 0 of the result folds all lanes, halves first: one order for every vector width. */
INLINE vf N(swap_halves)(vf x, int half) {
    vf y;
#ifdef __clang__
    for (int i = 0; i < LANES; i++) y[i] = x[i ^ half];
#else
#if LANES == 16
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
#else
    const vi lane = {0, 1, 2, 3};
#endif
    y = __builtin_shuffle(x, lane ^ half);
#endif
    return y;
}

INLINE float N(fold_sum)(const vf *parts) {
    vf x = parts[0];
    if (PARTS == 2) x = parts[0] + parts[1 % PARTS];
    if (PARTS == 4) x = (parts[0] + parts[2 % PARTS]) + (parts[1 % PARTS] + parts[3 % PARTS]);
    UNROLL for (int half = LANES / 2; half > 0; half /= 2) x = x + N(swap_halves)(x, half);
    return x[0];
}

INLINE float N(row_max)(const float *x, int64_t n) {
    vf m = load(x);
    for (int64_t i = LANES; i < n; i += LANES) m = N(max)(m, load(x + i));
    UNROLL for (int half = LANES / 2; half > 0; half /= 2) m = N(max)(m, N(swap_halves)(m, half));
    return m[0];
}

/* C (MR, NV·LANES) = start + Σ_k A[m·a_row + k·a_col] B[k·ldb + ·]; start is C, or one row for all. */
INLINE void N(tile)(const int MR, const int NV, int64_t k_end, const float *a, int64_t a_row,
                    int64_t a_col, const float *b, int64_t ldb, float *c, int64_t ldc,
                    const float *start) {
    vf acc[TILE_ROWS][VECTORS];
    UNROLL for (int m = 0; m < MR; m++)
        UNROLL for (int v = 0; v < NV; v++)
            acc[m][v] = load((start ? start : c + m * ldc) + v * LANES);
    for (int64_t k = 0; k < k_end; k++) {
        vf row[VECTORS];
        UNROLL for (int v = 0; v < NV; v++) row[v] = load(b + k * ldb + v * LANES);
        UNROLL for (int m = 0; m < MR; m++) {
            float x = a[m * a_row + k * a_col];
            UNROLL for (int v = 0; v < NV; v++) acc[m][v] += x * row[v];
        }
    }
    UNROLL for (int m = 0; m < MR; m++)
        UNROLL for (int v = 0; v < NV; v++) store(c + m * ldc + v * LANES, acc[m][v]);
}

#define TILE_OF_ROWS(MR) \
    case MR: N(tile)(MR, NV, k, a, a_row, a_col, b, ldb, c, ldc, start); break;

INLINE void N(tile_rows)(int64_t rows, const int NV, int64_t k, const float *a, int64_t a_row,
                         int64_t a_col, const float *b, int64_t ldb, float *c, int64_t ldc,
                         const float *start) {
    switch (rows) {
#if LANES > 4
        TILE_OF_ROWS(6)
        TILE_OF_ROWS(5)
#endif
        TILE_OF_ROWS(4)
        TILE_OF_ROWS(3)
        TILE_OF_ROWS(2)
        TILE_OF_ROWS(1)
    }
}

/* C (m, n) = start + A B; n a multiple of LANES. */
static void N(matmul)(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row,
                      int64_t a_col, const float *b, int64_t ldb, float *c, int64_t ldc,
                      const float *start) {
    for (int64_t j = 0; j < n;) {
        int64_t left = (n - j) / LANES;
        int64_t vectors = left < VECTORS ? left : VECTORS;
        const float *first = start ? start + j : 0;
        for (int64_t i = 0; i < m; i += TILE_ROWS) {
            int64_t rows = m - i < TILE_ROWS ? m - i : TILE_ROWS;
            const float *ai = a + i * a_row, *bj = b + j;
            float *cij = c + i * ldc + j;
            switch (vectors) {
#if VECTORS == 4
                case 4: N(tile_rows)(rows, 4, k, ai, a_row, a_col, bj, ldb, cij, ldc, first); break;
                case 3: N(tile_rows)(rows, 3, k, ai, a_row, a_col, bj, ldb, cij, ldc, first); break;
#endif
                case 2: N(tile_rows)(rows, 2, k, ai, a_row, a_col, bj, ldb, cij, ldc, first); break;
                case 1: N(tile_rows)(rows, 1, k, ai, a_row, a_col, bj, ldb, cij, ldc, first); break;
            }
        }
        j += vectors * LANES;
    }
}

/* Columns of a (·, d) that are computed: whole vectors. Padding beyond these stays 0. */
INLINE int64_t N(columns)(int64_t d) { return (d + LANES - 1) / LANES * LANES; }

/* h and logits of one block of pairs. */
static void N(forward)(const GridModel *m, const Scratch *s, const int32_t *pairs, int64_t n) {
    int64_t dd = GRID_PAD(m->d), pp = GRID_PAD(m->p);
    const float *left = m->weights, *right = left + 2 * m->p * dd, *w = right + 2 * m->p * dd;
    for (int64_t i = 0; i < n; i++) {
        int64_t a = pairs[2 * i] * dd, b = (m->p + pairs[2 * i + 1]) * dd;
        for (int64_t k = 0; k < m->d; k += LANES) {
            vf l = load(left + a + k) + load(left + b + k);
            vf r = load(right + a + k) + load(right + b + k);
            store(s->h + i * dd + k, l * r);
        }
    }
    N(matmul)(n, pp, m->d, s->h, dd, 1, w, pp, s->g, pp, s->no_class);
}

INLINE int64_t N(label_of)(const GridModel *m, const int32_t *pair) {
    int64_t c = (int64_t)pair[0] + pair[1];
    return c < m->p ? c : c - m->p;
}

/* Logits of a block to exp(logit − shift) of the classes other than the label, and 0 for the label,
 * whose own term is kept apart in `rows`. Each stage is one short pass over all rows: rows are
 * independent, so the processor computes several at once instead of waiting for each. */
static void N(softmax)(const GridModel *m, const Scratch *s, const int32_t *pairs, int64_t n) {
    int64_t pp = GRID_PAD(m->p);
    SoftmaxRows *rows = s->rows;
    for (int64_t i = 0; i < n; i++) {
        float *label_logit = s->g + i * pp + N(label_of)(m, pairs + 2 * i);
        rows->label_logit[i] = *label_logit;
        *label_logit = GRID_NO_CLASS;
    }
    for (int64_t i = 0; i < n; i++) rows->best_other[i] = N(row_max)(s->g + i * pp, pp);
    for (int64_t i = 0; i < GRID_BLOCK; i += LANES) {
        vf label = load(rows->label_logit + i);
        vf shift = N(max)(label, load(rows->best_other + i));
        store(rows->shift + i, shift);
        store(rows->e_label + i, N(exp)(label - shift));
    }
    for (int64_t i = 0; i < n; i++) {
        float *g = s->g + i * pp;
        vf shift = splat(rows->shift[i]);
        vf total[PARTS];
        UNROLL for (int v = 0; v < PARTS; v++) total[v] = splat(0.0f);
        for (int64_t c = 0; c < pp; c += 16)
            UNROLL for (int v = 0; v < PARTS; v++) {
                vf e = N(exp)(load(g + c + v * LANES) - shift);
                store(g + c + v * LANES, e);
                total[v] += e;
            }
        rows->e_others[i] = N(fold_sum)(total);
    }
}

/* Logits of a block to the gradient of the mean cross-entropy, in place. */
static void N(loss_gradient)(const GridModel *m, const Scratch *s, const int32_t *pairs, int64_t n,
                             float inverse_count) {
    int64_t pp = GRID_PAD(m->p);
    N(softmax)(m, s, pairs, n);
    for (int64_t i = 0; i < n; i++) {
        float *g = s->g + i * pp;
        float others = s->rows->e_others[i];
        float scale = inverse_count / (s->rows->e_label[i] + others);
        for (int64_t c = 0; c < pp; c += LANES) store(g + c, load(g + c) * scale);
        g[N(label_of)(m, pairs + 2 * i)] = -others * scale;
    }
}

/* dL and dR of one block from dh; pairs in a row that share a are summed in registers. */
static void N(scatter)(const GridModel *m, const Scratch *s, const int32_t *pairs, int64_t n) {
    int64_t dd = GRID_PAD(m->d);
    const float *left = m->weights, *right = left + 2 * m->p * dd;
    float *d_left = m->gradient, *d_right = d_left + 2 * m->p * dd;
    for (int64_t from = 0; from < n;) {
        int64_t to = from + 1;
        while (to < n && pairs[2 * to] == pairs[2 * from]) to++;
        int64_t a = pairs[2 * from] * dd;
        for (int64_t k = 0; k < m->d; k += LANES) {
            vf la = load(left + a + k), ra = load(right + a + k);
            vf sum_l = load(d_left + a + k), sum_r = load(d_right + a + k);
            for (int64_t i = from; i < to; i++) {
                int64_t b = (m->p + pairs[2 * i + 1]) * dd + k;
                vf dh = load(s->dh + i * dd + k);
                vf dl = dh * (ra + load(right + b)), dr = dh * (la + load(left + b));
                sum_l += dl;
                sum_r += dr;
                store(d_left + b, load(d_left + b) + dl);
                store(d_right + b, load(d_right + b) + dr);
            }
            store(d_left + a + k, sum_l);
            store(d_right + a + k, sum_r);
        }
        from = to;
    }
}

INLINE vf N(sqrt)(vf x) {
    vf y;
    UNROLL for (int i = 0; i < LANES; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}

/* AdamW with decoupled decay, as torch.optim.AdamW orders it; t counts from 1. */
static void N(adamw)(GridModel *m, int64_t t, double lr, double weight_decay) {
    int64_t n = 4 * m->p * GRID_PAD(m->d) + m->d * GRID_PAD(m->p);
    double correction1 = 1.0 - pow(m->beta1, t), correction2 = 1.0 - pow(m->beta2, t);
    float keep = (float)(1.0 - lr * weight_decay), step = (float)(lr / correction1);
    float root = (float)(1.0 / sqrt(correction2)), eps = (float)m->eps;
    float beta1 = (float)m->beta1, new1 = (float)(1.0 - m->beta1);
    float beta2 = (float)m->beta2, new2 = (float)(1.0 - m->beta2);
    for (int64_t i = 0; i < n; i += LANES) {
        vf g = load(m->gradient + i), old1 = load(m->moment1 + i), old2 = load(m->moment2 + i);
        vf scaled1 = g * new1, scaled2 = g * g * new2;
        vf m1 = old1 * beta1 + scaled1, m2 = old2 * beta2 + scaled2;
        vf root2 = N(sqrt)(m2);
        vf update = m1 / (root2 * root + eps);
        vf decayed = load(m->weights + i) * keep;
        store(m->moment1 + i, m1);
        store(m->moment2 + i, m2);
        store(m->weights + i, decayed - update * step);
    }
}

static void N(block_gradient)(const GridModel *m, const Scratch *s, const int32_t *pairs, int64_t n,
                              float inverse_count) {
    int64_t dd = GRID_PAD(m->d), pp = GRID_PAD(m->p);
    float *d_w = m->gradient + 4 * m->p * dd;
    N(forward)(m, s, pairs, n);
    N(loss_gradient)(m, s, pairs, n, inverse_count);
    N(matmul)(m->d, pp, n, s->h, 1, dd, s->g, pp, d_w, pp, 0);
    for (int64_t i = 0; i < n; i++) memset(s->dh + i * dd, 0, 4 * dd);
    N(matmul)(n, N(columns)(m->d), m->p, s->g, pp, 1, s->w_class_major, dd, s->dh, dd, 0);
    N(scatter)(m, s, pairs, n);
}

static void N(step)(GridModel *m, int64_t t, double lr, double weight_decay) {
    int64_t dd = GRID_PAD(m->d), pp = GRID_PAD(m->p), n_weights = 4 * m->p * dd + m->d * pp;
    const float *w = m->weights + 4 * m->p * dd;
    Scratch s = scratch_of(m);
    memset(m->gradient, 0, 4 * n_weights);
    memset(s.w_class_major, 0, 4 * m->p * dd);
    for (int64_t k = 0; k < m->d; k++)
        for (int64_t c = 0; c < m->p; c++) s.w_class_major[c * dd + k] = w[k * pp + c];

    int64_t count = m->batch ? m->batch : m->n_train;
    int64_t batches = m->batch ? m->n_train / m->batch : 1; /* the last partial batch is dropped */
    int64_t epoch = t / batches, offset = t % batches * count;
    float inverse_count = (float)(1.0 / count);
    for (int64_t i = 0; i < count; i += GRID_BLOCK) {
        int64_t n = count - i < GRID_BLOCK ? count - i : GRID_BLOCK;
        const int32_t *pairs = m->pairs + 2 * i;
        if (m->batch) {
            for (int64_t j = 0; j < n; j++) {
                uint32_t index = (uint32_t)(offset + i + j);
                index = grid_shuffled(index, (uint32_t)m->n_train, m->shuffle_key, epoch);
                memcpy(s.batch_pairs + 2 * j, m->pairs + 2 * index, 8);
            }
            pairs = s.batch_pairs;
        }
        N(block_gradient)(m, &s, pairs, n, inverse_count);
    }
    N(adamw)(m, t + 1, lr, weight_decay);
}

static double N(pair_loss)(const SoftmaxRows *rows, int64_t i) {
    double others = rows->e_others[i], label = rows->e_label[i];
    if (rows->label_logit[i] >= rows->best_other[i]) return log1p(others / label);
    return log(others + label) - ((double)rows->label_logit[i] - rows->shift[i]);
}

static void N(evaluate)(GridModel *m, GridMetrics *out) {
    Scratch s = scratch_of(m);
    double loss[2] = {0, 0};
    int64_t correct[2] = {0, 0};
    float min_margin = INFINITY;
    for (int64_t i = 0; i < m->n_pairs; i += GRID_BLOCK) {
        int64_t n = m->n_pairs - i < GRID_BLOCK ? m->n_pairs - i : GRID_BLOCK;
        N(forward)(m, &s, m->pairs + 2 * i, n);
        N(softmax)(m, &s, m->pairs + 2 * i, n);
        for (int64_t j = 0; j < n; j++) {
            int is_val = i + j >= m->n_train;
            float margin = s.rows->label_logit[j] - s.rows->best_other[j];
            if (isnan(s.rows->e_others[j])) margin = NAN; /* comparisons lose it */
            loss[is_val] += N(pair_loss)(s.rows, j);
            correct[is_val] += margin > 0;
            if (!(margin >= min_margin) && !isnan(min_margin)) min_margin = margin;
        }
    }
    int64_t n_val = m->n_pairs - m->n_train;
    *out = (GridMetrics){loss[0] / m->n_train, n_val ? loss[1] / n_val : NAN, correct[0], correct[1],
                         min_margin};
}

#undef PARTS
#undef TILE_ROWS
#undef TILE_OF_ROWS
