/* The arithmetic of layer_cpu.c; isa_cpu.h includes it once for each instruction set. */

/* Whether sums over rows are formed a panel of their rows at a time, and not a tile's columns: these are
 * one panel, too, where a vector is 8 floats, and then memory is written in order. */
#define ONE_PANEL_OF_SUMS (VECTORS * LANES <= PANEL)

/* Of L and of R, the columns that lie side by side in a panel of Wᵀ: a tile reads vectors of both, and
 * whole cache lines. */
#define PACKED (LANES == PANEL ? PANEL : PANEL / 2)

typedef float N(loose) __attribute__((vector_size(4 * LANES), aligned(4)));
INLINE vf N(load_anywhere)(const float *x) { return *(const N(loose) *)x; }
INLINE void N(store_anywhere)(float *x, vf v) { *(N(loose) *)x = v; }
/* Writes past the caches where the compiler offers it; x must be aligned to 64 bytes. */
INLINE void N(stream)(float *x, vf v) {
#if LANES == 16 && !defined(__clang__)
    __builtin_ia32_movntps512(x, v);
#else
    N(store_anywhere)(x, v);
#endif
}
INLINE vf N(pick)(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* --- Elements of the caller's matrices: any dtype, any stride. --- */

/* Reads `count` ≤ 16 elements as floats; the rest of the 16 is set to 0. */
static void N(read16)(float *to, const char *at, int64_t index, int64_t stride, int64_t count,
                      int dtype) {
    if (dtype == FLOAT32) {
        const float *from = (const float *)at + index;
        if (stride == 1 && count == PANEL) {
            UNROLL for (int i = 0; i < PANEL; i += LANES) store(to + i, N(load_anywhere)(from + i));
            return;
        }
        for (int64_t i = 0; i < count; i++) to[i] = from[i * stride];
    } else if (dtype == BFLOAT16) {
        const uint16_t *from = (const uint16_t *)at + index;
        uint32_t bits[PANEL];
        for (int64_t i = 0; i < count; i++) bits[i] = (uint32_t)from[i * stride] << 16;
        memcpy(to, bits, (size_t)count * 4);
    } else {
        const float16 *from = (const float16 *)at + index;
        for (int64_t i = 0; i < count; i++) to[i] = (float)from[i * stride];
    }
    for (int64_t i = count; i < PANEL; i++) to[i] = 0.0f;
}

/* Writes the first `count` floats of a vector to contiguous elements, rounded to nearest even. */
static void N(write_part)(char *at, int64_t index, const float *from, int64_t count, int dtype) {
    if (dtype == FLOAT32) {
        float *to = (float *)at + index;
        for (int64_t i = 0; i < count; i++) to[i] = from[i];
    } else if (dtype == BFLOAT16) {
        uint16_t *to = (uint16_t *)at + index;
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits;
            memcpy(&bits, from + i, 4);
            uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
            to[i] = (uint16_t)(from[i] == from[i] ? rounded : 0x7fc0);
        }
    } else {
        float16 *to = (float16 *)at + index;
        for (int64_t i = 0; i < count; i++) to[i] = (float16)from[i];
    }
}

INLINE void N(write)(char *at, int64_t index, vf v, int64_t count, int dtype) {
    if (dtype == FLOAT32 && count >= LANES) {
        N(store_anywhere)((float *)at + index, v);
        return;
    }
    float part[LANES] __attribute__((aligned(64)));
    store(part, v);
    N(write_part)(at, index, part, count < LANES ? count : LANES, dtype);
}

/* --- Panels. --- */

/* Copies (rows, columns) at `from` to panels of 16 columns, row by row: memory is read in order. */
static void N(pack)(float *to, int64_t stride, View from, int64_t rows, int64_t columns, int dtype) {
    int64_t whole = dtype == FLOAT32 && from.column == 1 ? columns / PANEL : 0;
    for (int64_t r = 0; r < rows; r++, to += PANEL) {
        const float *row = (const float *)from.at + r * from.row;
        for (int64_t p = 0; p < whole; p++)
            UNROLL for (int i = 0; i < PANEL; i += LANES)
                store(to + p * stride + i, N(load_anywhere)(row + p * PANEL + i));
        for (int64_t c = whole * PANEL; c < columns; c += PANEL) {
            int64_t count = columns - c < PANEL ? columns - c : PANEL;
            N(read16)(to + c / PANEL * stride, from.at, r * from.row + c * from.column, from.column,
                      count, dtype);
        }
    }
}

/* A step of a transpose: rows that are HALF apart exchange elements that are. The constants are written
 * out, because from variables, known or not, the compiler makes them element by element. */
#define LOW(i, HALF) ((i) & (HALF) ? LANES + ((i) ^ (HALF)) : (i))
#define HIGH(i, HALF) ((i) & (HALF) ? LANES + (i) : (i) ^ (HALF))
#ifdef __clang__
#define SHUFFLED(a, b, f, HALF) __builtin_shufflevector(a, b, EACH_LANE(f, HALF))
#else
#define SHUFFLED(a, b, f, HALF) __builtin_shuffle(a, b, (vi){EACH_LANE(f, HALF)})
#endif
#define EXCHANGE(HALF)                                 \
    UNROLL for (int i = 0; i < LANES; i++) {           \
        if (i & (HALF)) continue;                      \
        vf a = rows[i], b = rows[i + (HALF)];          \
        rows[i] = SHUFFLED(a, b, LOW, HALF);           \
        rows[i + (HALF)] = SHUFFLED(a, b, HIGH, HALF); \
    }

/* Square of LANES × LANES at `from`, its rows `stride` apart, transposed to `to`, 16 apart. */
INLINE void N(transpose)(float *to, const float *from, int64_t stride) {
    vf rows[LANES];
    UNROLL for (int i = 0; i < LANES; i++) rows[i] = N(load_anywhere)(from + i * stride);
    EXCHANGE(1)
    EXCHANGE(2)
#if LANES >= 8
    EXCHANGE(4)
#endif
#if LANES == 16
    EXCHANGE(8)
#endif
    UNROLL for (int i = 0; i < LANES; i++) store(to + i * PANEL, rows[i]);
}

/* Rows of a contiguous matrix, at most PACKED from `first` on, as so many columns of a panel of its
 * transpose; zeros in place of missing rows. */
static void N(pack_transposed)(float *to, const char *from, int64_t first, int64_t rows,
                               int64_t columns, int dtype) {
    float square[PACKED * PANEL] __attribute__((aligned(64))) = {0};
    float turned[PANEL * PANEL] __attribute__((aligned(64)));
    for (int64_t c = 0; c < columns; c += PANEL) {
        int64_t count = columns - c < PANEL ? columns - c : PANEL, stride = PANEL;
        const float *source = square;
        if (dtype == FLOAT32 && count == PANEL && rows == PACKED) {
            source = (const float *)from + first * columns + c;
            stride = columns;
        } else {
            for (int64_t r = 0; r < rows; r++)
                N(read16)(square + r * PANEL, from, (first + r) * columns + c, 1, count, dtype);
        }
        float *here = count == PANEL ? to + c * PANEL : turned;
        UNROLL for (int r = 0; r < PACKED; r += LANES)
            UNROLL for (int k = 0; k < PANEL; k += LANES)
                N(transpose)(here + k * PANEL + r, source + r * stride + k, stride);
        for (int64_t k = 0; here == turned && k < count; k++)
            memcpy(to + (c + k) * PANEL, turned + k * PANEL, PACKED * 4);
    }
}

/* --- Gates. --- */

/* σ(x) = 1/(1 + e⁻ˣ) and its derivative, without subtractions, which would cancel for large |x|. */
INLINE vf N(sigmoid)(vf x, vf *slope) {
    vf e = N(exp)((vf)((vi)x | INT32_MIN)); /* of −|x| */
    vf over = 1.0f / (1.0f + e);
    *slope = e * over * over;
    return N(pick)(x < 0.0f, e * over, over);
}

/* Φ(x) = erfc(−x/√2)/2. erf(z) = z + z·P(z²) for z ≤ 0.9, and log erfc = Q(z) above, both fitted. */
INLINE vf N(normal_cdf)(vf x) {
    vf z = (vf)((vi)x & INT32_MAX) * 0.70710678118654752f, s = z * z;
    vf p = s * -0.0006090390379540622f + 0.0050119697116315365f;
    p = p * s - 0.026778914034366608f;
    p = p * s + 0.11282140761613846f;
    p = p * s - 0.3761252462863922f;
    p = p * s + 0.12837915122509003f;
    vf half_erf = (p * z + z) * 0.5f;
    vf q = z * 1.5460002487088786e-06f - 4.429357431945391e-05f;
    q = q * z + 0.0005822897655889392f;
    q = q * z - 0.004693458788096905f;
    q = q * z + 0.026238998398184776f;
    q = q * z - 0.10977021604776382f;
    q = q * z - 0.6321436762809753f;
    q = q * z - 1.130054235458374f;
    q = q * z + 0.00027749495347961783f;
    vf tail = (vf)((vi)(N(exp)(q) * 0.5f) & ~(z > 4.2f)); /* 0 where it is below 2e-9 */
    vf below = N(pick)(z > 0.9f, tail, 0.5f - half_erf);
    vf above = N(pick)(z > 0.9f, 1.0f - tail, 0.5f + half_erf);
    return N(pick)(x < 0.0f, below, above);
}

/* g(x), and in `slope` g′(x), which is wrong where `is_cut` says that it is 0. */
static vf N(gated)(vf x, int gate, vf *slope) {
    vf s, ds;
    switch (gate) {
        case SILU:
            s = N(sigmoid)(x, &ds);
            *slope = s + x * ds;
            return x * s;
        case GELU:
            s = N(normal_cdf)(x);
            *slope = s + x * (0.3989422804014327f * N(exp)(x * x * -0.5f));
            return x * s;
        case GELU_TANH: { /* (1 + tanh u)/2 = σ(2u) */
            vf u2 = x * 1.5957691216057308f * (x * x * 0.044715f + 1.0f);
            s = N(sigmoid)(u2, &ds);
            *slope = s + x * ds * (1.5957691216057308f * (x * x * 0.134145f + 1.0f));
            return x * s;
        }
        case SIGMOID:
            s = N(sigmoid)(x, &ds);
            *slope = ds;
            return s;
        case RELU:
            *slope = splat(1.0f);
            return (vf)((vi)x & ~(x <= 0.0f));
        case RELU2:
            s = (vf)((vi)x & ~(x <= 0.0f));
            *slope = s * 2.0f;
            return s * s;
        default:
            *slope = splat(1.0f);
            return x;
    }
}

/* Where g′ is exactly 0: there the gradient is 0 even if a factor of it is Inf or NaN. */
INLINE vi N(is_cut)(vf x, int gate) {
    return gate == RELU || gate == RELU2 ? (vi)(x <= 0.0f) : (vi){0};
}

INLINE vf N(product)(vf left, vf right, int gate) {
    vf slope;
    return gate == IDENTITY ? left * right : N(gated)(left, gate, &slope) * right;
}

/* Replaces [L, R] by [dL, dR], given dh; returns h. */
INLINE vf N(product_backward)(vf *left, vf *right, vf dh, int gate) {
    vf l = *left, r = *right, slope, g = l, dg = dh * r;
    if (gate != IDENTITY) {
        g = N(gated)(l, gate, &slope);
        dg = (vf)((vi)(dg * slope) & ~N(is_cut)(l, gate));
    }
    *left = dg;
    *right = dh * g;
    return g * r;
}

/* --- Products of panels. --- */

/* acc (MR, NV) += a[m, k] b[k, v]; ROW and STEP floats of A to the next row and the next k. */
#define MULTIPLY_ADD(K_END, ROW, STEP)                                       \
    for (int64_t k = 0; k < (K_END); k++) {                                  \
        vf row[VECTORS];                                                     \
        UNROLL for (int v = 0; v < NV; v++) row[v] = N(load_anywhere)(b[v] + k * b_row); \
        UNROLL for (int m = 0; m < MR; m++) {                                \
            float x = a[m * (ROW) + k * (STEP)];                             \
            UNROLL for (int v = 0; v < NV; v++) acc[m][v] += x * row[v];     \
        }                                                                    \
    }

/* c (MR, NV) = A B over one chunk of k, or += unless it is the first; and then + `last`, if given. */
INLINE void N(tile)(const int MR, const int NV, const enum Form FORM, int64_t k_end, const float *a,
                    int64_t a_stride, const float *const *columns, int64_t b_row, int is_first,
                    const float *const *last, float *c, int64_t c_row) {
    vf acc[TILE_ROWS][VECTORS];
    const float *b[VECTORS];
    UNROLL for (int v = 0; v < NV; v++) b[v] = columns[v];
    UNROLL for (int m = 0; m < MR; m++)
        UNROLL for (int v = 0; v < NV; v++) acc[m][v] = splat(0.0f);
    if (FORM == TURNED) {
        MULTIPLY_ADD(k_end, 1, PANEL)
    } else if (FORM == ROWS) {
        MULTIPLY_ADD(k_end, a_stride, 1)
    } else {
        for (; k_end >= PANEL; k_end -= PANEL) {
            MULTIPLY_ADD(PANEL, PANEL, 1)
            a += a_stride;
            UNROLL for (int v = 0; v < NV; v++) b[v] += PANEL * b_row;
        }
        MULTIPLY_ADD(k_end, PANEL, 1)
    }
    UNROLL for (int m = 0; m < MR; m++)
        UNROLL for (int v = 0; v < NV; v++) {
            float *to = c + m * c_row + v * LANES;
            if (!is_first) acc[m][v] += N(load_anywhere)(to);
            if (last) acc[m][v] += load(last[v]);
            N(store_anywhere)(to, acc[m][v]);
        }
}

#define TILE(MR, NV)                                                               \
    if (form == TURNED) N(tile)(MR, NV, TURNED, k, a, a_stride, columns, b_row, is_first, last, c, c_row); \
    else if (form == ROWS) N(tile)(MR, NV, ROWS, k, a, a_stride, columns, b_row, is_first, last, c, c_row); \
    else N(tile)(MR, NV, PANELS, k, a, a_stride, columns, b_row, is_first, last, c, c_row);                 \
    break;
#define TILE_OF(NV)                    \
    switch (rows) {                    \
        case 6: TILE(6, NV)            \
        case 5: TILE(5, NV)            \
        case 4: TILE(4, NV)            \
        case 3: TILE(3, NV)            \
        case 2: TILE(2, NV)            \
        default: TILE(1, NV)           \
    }                                  \
    break;

static __attribute__((noinline)) void N(any_tile)(int64_t rows, int64_t vectors, enum Form form,
                                                  int64_t k, const float *a, int64_t a_stride,
                                                  const float *const *columns, int64_t b_row,
                                                  int is_first, const float *const *last, float *c,
                                                  int64_t c_row) {
    switch (vectors) {
#if VECTORS == 4
        case 4: TILE_OF(4)
        case 3: TILE_OF(3)
#endif
        case 2: TILE_OF(2)
        default: TILE_OF(1)
    }
}

/* C (rows ≤ 6, vectors), its rows `c_row` apart, = A B + start, for A's rows from `a` on and B's
 * vectors at `columns`; += unless `is_first`. Long sums go in chunks, which are then added: they
 * round less. */
static void N(multiply)(const Factors *f, int64_t rows, int64_t vectors, const float *a,
                        const float *const *columns, const float *const *start, int is_first,
                        float *c, int64_t c_row) {
    for (int64_t part = 0; part < f->parts; part++)
        for (int64_t k = 0; k < f->k; k += CHUNK) {
            const float *at[VECTORS] = {0};
            for (int64_t v = 0; v < vectors; v++) at[v] = columns[v] + part * f->b_part + k * f->b_row;
            const float *a_at = a + part * f->a_part;
            a_at += f->form == TURNED ? k * PANEL : f->form == ROWS ? k : k / PANEL * f->a_stride;
            int64_t length = f->k - k < CHUNK ? f->k - k : CHUNK;
            int is_last = part == f->parts - 1 && k + CHUNK >= f->k;
            N(any_tile)(rows, vectors, f->form, length, a_at, f->a_stride, at, f->b_row,
                        is_first && part == 0 && k == 0, is_last ? start : 0, c, c_row);
        }
}

INLINE const float *N(row_of_a)(const Factors *f, int64_t row) {
    return f->a + row * (f->form == ROWS ? f->a_stride : PANEL);
}

INLINE const float *N(column_of_b)(const Factors *f, int64_t vector) {
    int64_t column = vector * LANES;
    return f->b + column / PANEL * f->b_stride + column % PANEL;
}

/* --- Blocks of rows. --- */

static Block N(block_of)(const Task *t, float *scratch, int64_t index) {
    Block b;
    b.stride = t->block_stride;
    b.x = scratch;
    b.h = b.x + t->d_in16 / PANEL * b.stride; /* what follows is backward's */
    b.preact = b.h + (t->layer.d_out ? t->d16 / PANEL * b.stride : 0);
    b.dout = b.preact + 2 * t->d16 / PANEL * b.stride;
    b.first = index * t->block;
    b.rows = least(t->block, t->layer.m - b.first);
    return b;
}

/* At most `rows` rows of a block, from its row `first` on. */
static Block N(part_of)(const Block *b, int64_t first, int64_t rows) {
    int64_t skipped = first * PANEL;
    return (Block){b->x + skipped, b->preact + skipped, b->dout + skipped, b->h + skipped,
                   b->stride, b->first + first, least(rows, b->rows - first)};
}

static void N(pack_rows)(const Task *t, const Block *b, float *to, View from, int64_t columns) {
    int dtype = t->layer.dtype;
    N(pack)(to, b->stride, rows_of(from, b->first, dtype), b->rows, columns, dtype);
}

/* A panel's column of LANES at row r. */
INLINE float *N(in_panels)(float *panels, int64_t stride, int64_t row, int64_t column) {
    return panels + column / PANEL * stride + row * PANEL + column % PANEL;
}

/* A tile of C, before it is written to memory in another dtype or layout. */
#define BUFFER_ROW (VECTORS * LANES)
#define BUFFER __attribute__((aligned(64))) float c[TILE_ROWS * BUFFER_ROW]

/* [L, R] of a vector of rows to memory if asked to, and h to memory or to panels. */
INLINE void N(take_forward)(const Task *t, const Block *b, const float *left, const float *right,
                            int64_t row, int64_t rows, int64_t column) {
    const Layer *l = &t->layer;
    int64_t index = b->first + row, count = l->d - column;
    float *h = l->d_out ? N(in_panels)(b->h, b->stride, row, column) : 0;
    if (count <= 0) return; /* padding */
    if (l->dtype == FLOAT32 && count >= LANES && l->gate == IDENTITY) {
        float *preact = (float *)l->preact + index * 2 * l->d + column;
        float *to = h ? h : (float *)l->out + index * l->d + column;
        int64_t to_row = h ? PANEL : l->d;
        for (int64_t i = 0; i < rows; i++, left += BUFFER_ROW, right += BUFFER_ROW) {
            vf x = load(left), y = load(right);
            if (l->preact && t->streams) {
                N(stream)(preact + i * 2 * l->d, x);
                N(stream)(preact + (i * 2 + 1) * l->d, y);
            } else if (l->preact) {
                N(store_anywhere)(preact + i * 2 * l->d, x);
                N(store_anywhere)(preact + (i * 2 + 1) * l->d, y);
            }
            if (t->streams && !h) N(stream)(to + i * to_row, x * y);
            else N(store_anywhere)(to + i * to_row, x * y);
        }
        return;
    }
    for (int64_t i = 0; i < rows; i++, index++, left += BUFFER_ROW, right += BUFFER_ROW) {
        vf x = load(left), y = load(right);
        if (l->preact) {
            N(write)(l->preact, index * 2 * l->d + column, x, count, l->dtype);
            N(write)(l->preact, (index * 2 + 1) * l->d + column, y, count, l->dtype);
        }
        if (h) store(h + i * PANEL, N(product)(x, y, l->gate));
        else N(write)(l->out, index * l->d + column, N(product)(x, y, l->gate), count, l->dtype);
    }
}

INLINE void N(take_panels)(const Task *t, const Block *b, const float *left, const float *right,
                           int64_t row, int64_t rows, int64_t column) {
    float *to_left = N(in_panels)(b->preact, b->stride, row, column);
    float *to_right = N(in_panels)(b->preact, b->stride, row, t->d16 + column);
    for (int64_t i = 0; i < rows; i++) {
        store(to_left + i * PANEL, load(left + i * BUFFER_ROW));
        store(to_right + i * PANEL, load(right + i * BUFFER_ROW));
    }
}

/* Prefetches the cache lines that a tile will be written to, while it is computed: otherwise the
 * stores would wait for each of them. */
INLINE void N(fetch)(const char *at, int64_t index, int64_t row, int64_t rows, int64_t columns) {
    for (int64_t r = 0; at && r < rows; r++)
        for (int64_t c = 0; c < columns; c += 16)
            __builtin_prefetch((const float *)at + index + r * row + c, 1);
}

INLINE void N(fetch_outputs)(const Task *t, const Block *b, int64_t row, int64_t rows,
                             int64_t column, int64_t columns) {
    const Layer *l = &t->layer;
    if (t->streams || l->dtype != FLOAT32 || column + columns > l->d) return;
    int64_t index = b->first + row;
    if (!l->d_out) N(fetch)(l->out, index * l->d + column, l->d, rows, columns);
    N(fetch)(l->preact, 2 * index * l->d + column, 2 * l->d, rows, columns);
    N(fetch)(l->preact, (2 * index + 1) * l->d + column, 2 * l->d, rows, columns);
}

/* A vector of W_lᵀ (half 0) or W_rᵀ (half 1): LANES columns from `unit` on. */
INLINE const float *N(column_of_w_t)(const Task *t, int64_t half, int64_t unit) {
    if (PACKED == PANEL) return t->w_t + (half * t->d16 + unit) / PANEL * t->w_t_stride;
    return t->w_t + unit / PACKED * t->w_t_stride + half * PACKED + unit % PACKED;
}

/* [L, R] = x Wᵀ + bias of the units in some panels; a tile has as many vectors of L as of R. */
static void N(form_preact)(const Task *t, const Block *b, Range panels, int is_forward) {
    BUFFER;
    Factors f = {b->x, t->w_t, b->stride, t->w_t_stride, PANEL, t->layer.d_in, 1, 0, 0, PANELS};
    if (reads_rows(&t->layer)) {
        f.a = (const float *)rows_of(t->layer.x, b->first, FLOAT32).at;
        f.a_stride = t->layer.x.row;
        f.form = ROWS;
    }
    int64_t end = panels.end * PANEL / LANES;
    for (int64_t j = panels.first * PANEL / LANES; j < end; j += VECTORS / 2) {
        int64_t n = least(end - j, VECTORS / 2);
        const float *columns[VECTORS], *start[VECTORS];
        for (int64_t v = 0; v < 2 * n; v++) {
            int64_t half = v >= n, unit = (j + v - half * n) * LANES;
            columns[v] = N(column_of_w_t)(t, half, unit);
            start[v] = t->bias + half * t->d16 + unit;
        }
        for (int64_t i = 0; i < b->rows; i += TILE_ROWS) {
            int64_t rows = least(b->rows - i, TILE_ROWS);
            if (is_forward) N(fetch_outputs)(t, b, i, rows, j * LANES, n * LANES);
            N(multiply)(&f, rows, 2 * n, N(row_of_a)(&f, i), columns, start, 1, c, BUFFER_ROW);
            for (int64_t v = 0; v < n; v++) {
                const float *left = c + v * LANES, *right = left + n * LANES;
                if (is_forward) N(take_forward)(t, b, left, right, i, rows, (j + v) * LANES);
                else N(take_panels)(t, b, left, right, i, rows, (j + v) * LANES);
            }
        }
    }
}

/* C = A B + start for a block's rows to memory, (m, width), the columns in some panels. */
static void N(product_to_memory)(const Task *t, const Block *b, const Factors *f, const float *first,
                                 char *to, int64_t width, Range panels) {
    BUFFER;
    int64_t end = least((width + LANES - 1) / LANES, panels.end * PANEL / LANES);
    for (int64_t j = panels.first * PANEL / LANES; j < end; j += VECTORS) {
        int64_t n = least(end - j, VECTORS);
        int in_place = t->layer.dtype == FLOAT32 && (j + n) * LANES <= width;
        const float *at[VECTORS], *start[VECTORS];
        for (int64_t v = 0; v < n; v++) {
            at[v] = N(column_of_b)(f, j + v);
            start[v] = first + (j + v) * LANES;
        }
        for (int64_t i = 0; i < b->rows; i += TILE_ROWS) {
            int64_t rows = least(b->rows - i, TILE_ROWS), index = (b->first + i) * width + j * LANES;
            if (in_place) N(fetch)(to, index, width, rows, n * LANES);
            N(multiply)(f, rows, n, N(row_of_a)(f, i), at, first ? start : 0, 1,
                        in_place ? (float *)to + index : c, in_place ? width : BUFFER_ROW);
            for (int64_t r = 0; !in_place && r < rows; r++)
                for (int64_t v = 0; v < n; v++)
                    N(write)(to, index + r * width + v * LANES,
                             load(c + r * BUFFER_ROW + v * LANES), width - (j + v) * LANES,
                             t->layer.dtype);
        }
    }
}

/* Replaces [L, R] by [dL, dR] in one vector of each of `rows` rows; rows of dh are `dh_row` apart. */
INLINE void N(take_dh)(const Task *t, const Block *b, const float *dh, int64_t dh_row, int64_t row,
                       int64_t rows, int64_t column) {
    float *left = N(in_panels)(b->preact, b->stride, row, column);
    float *right = N(in_panels)(b->preact, b->stride, row, t->d16 + column);
    float *h = t->layer.dw_p ? N(in_panels)(b->h, b->stride, row, column) : 0;
    for (int64_t i = 0; i < rows; i++, left += PANEL, right += PANEL) {
        vf l = load(left), r = load(right);
        vf some = N(product_backward)(&l, &r, N(load_anywhere)(dh + i * dh_row), t->layer.gate);
        store(left, l);
        store(right, r);
        if (h) store(h + i * PANEL, some);
    }
}

/* --- Forward. --- */

/* out = h W_pᵀ + b_p, the columns in some panels. */
static void N(form_out)(const Task *t, const Block *b, Range panels) {
    const Layer *l = &t->layer;
    Factors f = {b->h, t->w_p_t, b->stride, t->w_p_t_stride, PANEL, l->d, 1, 0, 0, PANELS};
    N(product_to_memory)(t, b, &f, t->b_p, l->out, l->d_out, panels);
}

static void N(forward_block)(const Task *t, const Block *b) {
    const Layer *l = &t->layer;
    if (!reads_rows(l)) N(pack_rows)(t, b, b->x, l->x, l->d_in);
    N(form_preact)(t, b, (Range){0, t->d16 / PANEL}, 1);
    if (l->d_out) N(form_out)(t, b, (Range){0, t->d_out16 / PANEL});
}

/* The two panels of Wᵀ that hold 16 units, of both halves. */
static void N(pack_w_t)(const Task *t, int64_t index) {
    const Layer *l = &t->layer;
    for (int64_t unit = index * PANEL; unit < (index + 1) * PANEL; unit += PACKED)
        for (int64_t half = 0; half < 2; half++)
            N(pack_transposed)((float *)N(column_of_w_t)(t, half, unit), l->weight, half * l->d + unit,
                               most(0, least(PACKED, l->d - unit)), l->d_in, l->dtype);
}

/* One panel of W_pᵀ. */
static void N(pack_w_p_t)(const Task *t, int64_t panel) {
    const Layer *l = &t->layer;
    for (int64_t c = 0; c < PANEL; c += PACKED)
        N(pack_transposed)(t->w_p_t + panel * t->w_p_t_stride + c, l->w_p, panel * PANEL + c,
                           most(0, least(PACKED, l->d_out - panel * PANEL - c)), l->d, l->dtype);
}

/* A bias to float32, zeros where there is none. */
static void N(pack_bias)(float *to, const char *from, int64_t first, int64_t n, int64_t padded,
                         int dtype) {
    if (!from) memset(to, 0, (size_t)padded * 4);
    for (int64_t i = 0; from && i < padded; i += PANEL)
        N(read16)(to + i, from, first + i, 1, least(PANEL, n - i), dtype);
}

static void N(pack_biases)(const Task *t) {
    const Layer *l = &t->layer;
    N(pack_bias)(t->bias, l->bias, 0, l->d, t->d16, l->dtype);
    N(pack_bias)(t->bias + t->d16, l->bias, l->d, l->d, t->d16, l->dtype);
    N(pack_bias)(t->b_p, l->b_p, 0, l->d_out, t->d_out16, l->dtype);
}

/* Packs the weights of some units, and forms their [L, R] and h. */
static void N(form_units)(const Task *t, const Block *b, Range units) {
    const Layer *l = &t->layer;
    for (int64_t i = units.first; i < units.end; i++) {
        N(pack_w_t)(t, i);
        for (int64_t half = 0; half < 2; half++)
            N(pack_bias)(t->bias + half * t->d16 + i * PANEL, l->bias, half * l->d + i * PANEL,
                         l->d - i * PANEL, PANEL, l->dtype);
    }
    N(form_preact)(t, b, units, 1);
}

/* Packs the part of W_p of some columns of out, and forms them. */
static void N(form_outs)(const Task *t, const Block *b, Range outs) {
    const Layer *l = &t->layer;
    for (int64_t i = outs.first; i < outs.end; i++) {
        N(pack_w_p_t)(t, i);
        N(pack_bias)(t->b_p + i * PANEL, l->b_p, i * PANEL, l->d_out - i * PANEL, PANEL, l->dtype);
    }
    N(form_out)(t, b, outs);
}

/* Forward of few rows, one block: a thread packs the weights that it alone reads, so it waits for no
 * cache lines that another wrote but those of h. A range is taken as blocks are, not given to a thread:
 * OpenMP may run fewer threads than it was asked for. */
static void N(forward_units)(Task *t, int64_t thread, float *scratch) {
    const Layer *l = &t->layer;
    Block b = N(block_of)(t, scratch, 0);
    b.h = N(block_of)(t, t->scratch, 0).h;
    if (!reads_rows(l)) N(pack_rows)(t, &b, b.x, l->x, l->d_in);
    for (int64_t i; (i = take_unit(t, thread, t->threads)) >= 0;)
        N(form_units)(t, &b, range_of(t, i, t->d16 / PANEL));
    if (!l->d_out) return;
    wait_for_all(t);
    for (int64_t i; (i = take(&t->add)) < t->threads;)
        N(form_outs)(t, &b, range_of(t, i, t->d_out16 / PANEL));
}

static void N(forward_rows)(Task *t, int64_t thread, float *scratch) {
    int64_t units = t->d16 / PANEL, packs = units + t->d_out16 / PANEL;
    for (int64_t i; (i = take(&t->pack)) <= packs;) {
        if (i == packs) N(pack_biases)(t);
        else if (i < units) N(pack_w_t)(t, i);
        else N(pack_w_p_t)(t, i - units);
    }
    wait_for_all(t);
    for (int64_t i; (i = take_unit(t, thread, t->blocks)) >= 0;) {
        Block b = N(block_of)(t, scratch, i);
        N(forward_block)(t, &b);
    }
}

static void N(forward)(void *task) {
    Task *t = task;
    int64_t thread = thread_of(t);
    float *scratch = t->scratch + thread * t->thread_floats;
    if (t->divides_units) N(forward_units)(t, thread, scratch);
    else N(forward_rows)(t, thread, scratch);
#if LANES == 16 && !defined(__clang__)
    __builtin_ia32_sfence(); /* so that streamed writes are visible to others once this thread ends */
#endif
}

/* --- Backward. --- */

/* sums (a_columns, b_columns), its rows `sums_row` apart, += Aᵀ B over a block, or = for the first. */
static void N(add_products)(const Block *b, const float *a, int64_t a_columns, const float *from,
                            int64_t b_stride, int64_t b_row, int64_t b_columns, float *sums, int64_t sums_row, int is_first) {
    int64_t vectors = (b_columns + LANES - 1) / LANES, at_once = ONE_PANEL_OF_SUMS ? PANEL : a_columns;
    Factors f = {0, from, 0, b_stride, b_row, b->rows, 1, 0, 0, TURNED};
    for (int64_t from_row = 0; from_row < a_columns; from_row += at_once)
        for (int64_t j = 0; j < vectors; j += VECTORS) {
            int64_t n = least(vectors - j, VECTORS), end = least(a_columns, from_row + at_once);
            const float *at[VECTORS];
            for (int64_t v = 0; v < n; v++) at[v] = N(column_of_b)(&f, j + v);
            for (int64_t i = from_row, rows; i < end; i += rows) {
                rows = least(least(end - i, PANEL - i % PANEL), TILE_ROWS);
                N(multiply)(&f, rows, n, a + i / PANEL * b->stride + i % PANEL, at, 0, is_first,
                            sums + i * sums_row + j * LANES, sums_row);
            }
        }
}

/* sums += the columns of panels, 16 rows at a time: shorter sums round less. */
static void N(add_columns)(const Block *b, const float *panels, int64_t columns, float *sums,
                           int is_first) {
    for (int64_t c = 0; c < columns; c += LANES) {
        const float *at = panels + c / PANEL * b->stride + c % PANEL;
        vf total = splat(0.0f);
        for (int64_t first = 0; first < b->rows; first += 16) {
            int64_t end = least(first + 16, b->rows);
            vf some = load(at + first * PANEL);
            for (int64_t r = first + 1; r < end; r++) some += load(at + r * PANEL);
            total += some;
        }
        store(sums + c, is_first ? total : load(sums + c) + total);
    }
}

/* Whether backward's products take the rows of a weight, `columns` long, where they lie: for few rows
 * of x a copy in panels would be read too few times to pay. Rows of 1, 2, … kB compete for four sets of the
 * first-level cache: on Zen 3 with AVX2 products then took a seventh longer; on Zen 4 they did not. */
INLINE int N(reads_weight)(const Layer *l, int64_t columns) {
    int competes = LANES <= 8 && columns % 256 == 0;
    return l->dtype == FLOAT32 && l->m <= FEW_ROWS && columns % PANEL == 0 && columns <= MOST_ROW && !competes;
}

/* dh = dout where there is no projection. */
static void N(take_dout)(const Task *t, const Block *b) {
    const Layer *l = &t->layer;
    View from = rows_of(l->dout, b->first, l->dtype);
    float dh[PANEL] __attribute__((aligned(64)));
    for (int64_t r = 0; r < b->rows; r++)
        for (int64_t c = 0; c < l->d; c += PANEL) {
            int64_t index = r * from.row + c * from.column;
            N(read16)(dh, from.at, index, from.column, least(PANEL, l->d - c), l->dtype);
            UNROLL for (int i = 0; i < PANEL; i += LANES)
                N(take_dh)(t, b, dh + i, 0, r, 1, c + i);
        }
}

/* The same for [L, R] that forward saved, where whole vectors of it can be read in place. */
static void N(take_saved_and_dout)(const Task *t, const Block *b) {
    const Layer *l = &t->layer;
    const float *dh = (const float *)rows_of(l->dout, b->first, FLOAT32).at;
    const float *saved = (const float *)l->saved_preact + b->first * 2 * l->d;
    float *to = b->preact, *to_right = to + l->d / PANEL * b->stride;
    for (int64_t r = 0; r < b->rows; r++, dh += l->dout.row, saved += 2 * l->d)
        for (int64_t c = 0; c < l->d; c += LANES) {
            vf left = N(load_anywhere)(saved + c), right = N(load_anywhere)(saved + l->d + c);
            N(product_backward)(&left, &right, N(load_anywhere)(dh + c), l->gate);
            store(N(in_panels)(to, b->stride, r, c), left);
            store(N(in_panels)(to_right, b->stride, r, c), right);
        }
}

/* dh = dout W_p, a tile at a time. */
static void N(form_dh)(const Task *t, const Block *b) {
    BUFFER;
    const Layer *l = &t->layer;
    Factors f = {b->dout, t->w_p_n, b->stride, t->w_p_n_stride, PANEL, l->d_out, 1, 0, 0, PANELS};
    if (N(reads_weight)(l, l->d)) f.b = (const float *)l->w_p, f.b_stride = PANEL, f.b_row = l->d;
    int64_t vectors = t->d16 / LANES;
    for (int64_t j = 0; j < vectors; j += VECTORS) {
        int64_t n = least(vectors - j, VECTORS);
        const float *at[VECTORS];
        for (int64_t v = 0; v < n; v++) at[v] = N(column_of_b)(&f, j + v);
        for (int64_t i = 0; i < b->rows; i += TILE_ROWS) {
            int64_t rows = least(b->rows - i, TILE_ROWS);
            N(multiply)(&f, rows, n, N(row_of_a)(&f, i), at, 0, 1, c, BUFFER_ROW);
            for (int64_t v = 0; v < n; v++)
                N(take_dh)(t, b, c + v * LANES, BUFFER_ROW, i, rows, (j + v) * LANES);
        }
    }
}

/* [L, R] of the block, then h where it is needed, and [dL, dR] in their place. */
static void N(form_dpreact)(const Task *t, const Block *b) {
    const Layer *l = &t->layer;
    if (l->saved_preact && !l->d_out && l->dtype == FLOAT32 && l->d % PANEL == 0 &&
        l->dout.column == 1) {
        N(take_saved_and_dout)(t, b);
        return;
    }
    if (l->saved_preact) {
        int64_t element = l->dtype == FLOAT32 ? 4 : 2;
        View left = {l->saved_preact, 2 * l->d, 1};
        View right = {l->saved_preact + l->d * element, 2 * l->d, 1};
        N(pack_rows)(t, b, b->preact, left, l->d);
        N(pack_rows)(t, b, b->preact + t->d16 / PANEL * b->stride, right, l->d);
    } else {
        N(form_preact)(t, b, (Range){0, t->d16 / PANEL}, 0);
    }
    if (l->d_out) N(form_dh)(t, b);
    else N(take_dout)(t, b);
}

static void N(form_dx)(const Task *t, const Block *b) {
    const Layer *l = &t->layer;
    int64_t d = l->d, half = t->d16 / PANEL * b->stride;
    Factors f = {b->preact, t->w_n, b->stride, t->w_n_stride, PANEL, d, 2, half, t->d16 * PANEL, PANELS};
    if (N(reads_weight)(l, l->d_in)) {
        f.b = (const float *)l->weight;
        f.b_stride = PANEL, f.b_row = l->d_in, f.b_part = d * l->d_in;
    }
    if (d == t->d16) f.k = 2 * d, f.parts = 1; /* no padding between dL and dR */
    N(product_to_memory)(t, b, &f, 0, l->dx, l->d_in, (Range){0, t->d_in16 / PANEL});
}

static void N(backward_block)(const Task *t, const Block *b, float *sums, int is_first) {
    const Layer *l = &t->layer;
    int64_t half = t->d16 / PANEL * b->stride;
    int x_stays = reads_rows(l) && N(reads_weight)(l, l->d_in);
    const float *x = x_stays ? (const float *)rows_of(l->x, b->first, FLOAT32).at : b->x;
    int64_t x_stride = x_stays ? PANEL : b->stride, x_row = x_stays ? l->x.row : PANEL;
    if ((l->dweight && !x_stays) || (!l->saved_preact && !reads_rows(l)))
        N(pack_rows)(t, b, b->x, l->x, l->d_in);
    if (l->d_out) N(pack_rows)(t, b, b->dout, l->dout, l->d_out);
    for (int64_t first = 0; first < b->rows; first += t->part) {
        Block part = N(part_of)(b, first, t->part);
        if (l->dx || l->dweight || l->dbias || l->dw_p) N(form_dpreact)(t, &part);
        if (l->dx) N(form_dx)(t, &part);
    }
    for (int64_t side = 0; side < 2; side++) {
        const float *dpreact = b->preact + side * half;
        if (l->dweight)
            N(add_products)(b, dpreact, l->d, x, x_stride, x_row, l->d_in,
                            sums + side * t->d16 * t->d_in16, t->d_in16, is_first);
        if (l->dbias)
            N(add_columns)(b, dpreact, t->d16, sums + t->sums_dbias + side * t->d16, is_first);
    }
    if (l->dw_p)
        N(add_products)(b, b->dout, l->d_out, b->h, b->stride, PANEL, l->d, sums + t->sums_dw_p,
                        t->d16, is_first);
    if (l->db_p) N(add_columns)(b, b->dout, t->d_out16, sums + t->sums_db_p, is_first);
}

static void N(backward_share)(const Task *t, float *scratch, int64_t share) {
    int64_t first = share * t->blocks / t->shares, end = (share + 1) * t->blocks / t->shares;
    for (int64_t i = first; i < end; i++) {
        Block b = N(block_of)(t, scratch, i);
        N(backward_block)(t, &b, t->sums + share * t->sums_floats, i == first);
    }
}

/* One row of a gradient: the shares' sums from `offset` on, added in order. */
static void N(add_row)(const Task *t, int64_t offset, char *to, int64_t row, int64_t columns) {
    for (int64_t c = 0; c < columns; c += LANES) {
        const float *at = t->sums + offset + c;
        vf total = splat(0.0f);
        for (int64_t share = 0; share < t->shares; share++, at += t->sums_floats) total += load(at);
        N(write)(to, row * columns + c, total, columns - c, t->layer.dtype);
    }
}

/* Everything summed over rows; a unit is 16 rows of [dW; dW_p] or all biases. */
static void N(add_unit)(const Task *t, int64_t unit) {
    const Layer *l = &t->layer;
    int64_t w_units = 2 * t->d16 / PANEL, w_p_units = t->d_out16 / PANEL;
    if (unit < w_units) {
        int64_t half = unit * PANEL >= t->d16, first = unit * PANEL - half * t->d16;
        for (int64_t r = first; l->dweight && r < least(first + PANEL, l->d); r++)
            N(add_row)(t, (half * t->d16 + r) * t->d_in16, l->dweight, half * l->d + r, l->d_in);
    } else if (unit < w_units + w_p_units) {
        int64_t first = (unit - w_units) * PANEL;
        for (int64_t r = first; l->dw_p && r < least(first + PANEL, l->d_out); r++)
            N(add_row)(t, t->sums_dw_p + r * t->d16, l->dw_p, r, l->d);
    } else {
        for (int64_t half = 0; l->dbias && half < 2; half++)
            N(add_row)(t, t->sums_dbias + half * t->d16, l->dbias, half, l->d);
        if (l->db_p) N(add_row)(t, t->sums_db_p, l->db_p, 0, l->d_out);
    }
}

/* Packs panels that backward's products read: of Wᵀ (unless [L, R] was saved), of W, or of W_p. */
static void N(pack_for_backward)(const Task *t, int64_t unit) {
    const Layer *l = &t->layer;
    int64_t of_w_t = l->saved_preact ? 0 : t->d16 / PANEL;
    int64_t element = l->dtype == FLOAT32 ? 4 : 2;
    if (unit < of_w_t) {
        N(pack_w_t)(t, unit);
        return;
    }
    unit -= of_w_t;
    if (unit < t->d_in16 / PANEL) {
        int64_t column = unit * PANEL, columns = least(PANEL, l->d_in - column);
        float *to = t->w_n + unit * t->w_n_stride;
        for (int64_t half = 0; l->dx && !N(reads_weight)(l, l->d_in) && half < 2; half++) {
            View from = {l->weight + (half * l->d * l->d_in + column) * element, l->d_in, 1};
            N(pack)(to + half * t->d16 * PANEL, 0, from, l->d, columns, l->dtype);
        }
        return;
    }
    int64_t panel = unit - t->d_in16 / PANEL, column = panel * PANEL;
    if (N(reads_weight)(l, l->d)) return;
    View from = {l->w_p + column * element, l->d, 1};
    N(pack)(t->w_p_n + panel * t->w_p_n_stride, 0, from, l->d_out, least(PANEL, l->d - column),
            l->dtype);
}

static void N(backward)(void *task) {
    Task *t = task;
    const Layer *l = &t->layer;
    int64_t thread = thread_of(t);
    float *scratch = t->scratch + thread * t->thread_floats;
    int64_t packs = (l->saved_preact ? 0 : t->d16 / PANEL) + t->d_in16 / PANEL +
                    (l->d_out ? t->d16 / PANEL : 0);
    for (int64_t i; (i = take(&t->pack)) <= packs;) {
        if (i == packs) N(pack_biases)(t);
        else N(pack_for_backward)(t, i);
    }
    wait_for_all(t);
    for (int64_t i; (i = take_unit(t, thread, t->shares)) >= 0;) N(backward_share)(t, scratch, i);
    wait_for_all(t);
    int64_t units = (2 * t->d16 + t->d_out16) / PANEL;
    for (int64_t i; (i = take(&t->add)) <= units;) N(add_unit)(t, i);
}

/* --- Elementwise, between products that are torch's. --- */

typedef uint16_t N(halves) __attribute__((vector_size(2 * LANES), aligned(2)));

/* A vector of contiguous float32 or bfloat16. */
INLINE vf N(widened)(const char *at, int64_t index, const int dtype) {
    if (dtype == FLOAT32) return N(load_anywhere)((const float *)at + index);
    N(halves) bits = *(const N(halves) *)((const uint16_t *)at + index);
    return (vf)(__builtin_convertvector(bits, vu) << 16);
}

INLINE void N(write_narrowed)(char *at, int64_t index, vf v, const int dtype) {
    if (dtype == FLOAT32) {
        N(store_anywhere)((float *)at + index, v);
        return;
    }
    vu bits = (vu)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = (vu)N(pick)(v == v, (vf)rounded, (vf)((vu){0} + 0x7fc0u));
    *(N(halves) *)((uint16_t *)at + index) = __builtin_convertvector(rounded, N(halves));
}

/* One vector of a row: h, and with dh also dL and dR. */
INLINE void N(pointwise_vector)(const Pointwise *p, int64_t row, int64_t c, const int dtype) {
    vf left = N(widened)(p->left, row * p->left_row + c, dtype), h;
    vf right = N(widened)(p->right, row * p->right_row + c, dtype);
    if (p->dh) {
        h = N(product_backward)(&left, &right, N(widened)(p->dh, row * p->d + c, dtype), p->gate);
        N(write_narrowed)(p->dleft, row * p->gradient_row + c, left, dtype);
        N(write_narrowed)(p->dright, row * p->gradient_row + c, right, dtype);
    } else {
        h = N(product)(left, right, p->gate);
    }
    if (p->h) N(write_narrowed)(p->h, row * p->d + c, h, dtype);
}

/* The same for the last `count` < LANES elements of a row, in float32 beside it. */
static void N(pointwise_rest)(const Pointwise *p, int64_t row, int64_t c, int64_t count) {
    float left[PANEL] __attribute__((aligned(64))), right[PANEL] __attribute__((aligned(64)));
    float dh[PANEL] __attribute__((aligned(64))), h[PANEL] __attribute__((aligned(64)));
    char *dleft = (char *)left, *dright = (char *)right; /* in the memory of L and R */
    Pointwise part = {.gate = p->gate, .left = dleft, .right = dright, .dh = p->dh ? (char *)dh : 0,
                      .h = (char *)h, .dleft = dleft, .dright = dright};
    N(read16)(left, p->left, row * p->left_row + c, 1, count, p->dtype);
    N(read16)(right, p->right, row * p->right_row + c, 1, count, p->dtype);
    if (p->dh) N(read16)(dh, p->dh, row * p->d + c, 1, count, p->dtype);
    N(pointwise_vector)(&part, 0, 0, FLOAT32);
    if (p->dh) {
        N(write_part)(p->dleft, row * p->gradient_row + c, left, count, p->dtype);
        N(write_part)(p->dright, row * p->gradient_row + c, right, count, p->dtype);
    }
    if (p->h) N(write_part)(p->h, row * p->d + c, h, count, p->dtype);
}

INLINE void N(pointwise_row)(const Pointwise *p, int64_t row, const int dtype) {
    int64_t c = 0;
    for (; c + LANES <= p->d; c += LANES) N(pointwise_vector)(p, row, c, dtype);
    if (c < p->d) N(pointwise_rest)(p, row, c, p->d - c);
}

static void N(pointwise)(void *task) {
    Pointwise *p = task;
    for (int64_t first; (first = take(&p->taken) * p->rows) < p->m;)
        for (int64_t row = first; row < least(p->m, first + p->rows); row++) {
            if (p->dtype == FLOAT32) N(pointwise_row)(p, row, FLOAT32);
            else N(pointwise_row)(p, row, BFLOAT16);
        }
}

#undef ONE_PANEL_OF_SUMS
#undef PACKED
#undef LOW
#undef HIGH
#undef SHUFFLED
#undef EXCHANGE
#undef MULTIPLY_ADD
#undef TILE
#undef TILE_OF
#undef BUFFER
#undef BUFFER_ROW
