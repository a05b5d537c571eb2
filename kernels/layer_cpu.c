/* The bilinear layer on the CPU, forward and backward, over blocks of rows that stay in the cache.
 *
 * Algebra, for x (m, d_in), weight (2d, d_in) = [W_l; W_r] and W_p (d_out, d); g is the gate
 *
 *   [L, R] = x Wᵀ + bias     h = g(L) ∘ R     out = h W_pᵀ + b_p    (h itself without W_p)
 *   dh = dout W_p            dL = dh ∘ R ∘ g′(L)    dR = dh ∘ g(L)
 *   dx = [dL, dR] W          dW = [dL, dR]ᵀ x       dW_p = doutᵀ h    dbias, db_p = column sums
 *
 * Panels: a matrix (rows, columns) that a product reads lies in scratch memory as panels of 16
 * columns, (columns/16, rows, 16), in float32 and padded with zeros: rows of 64 bytes one after the
 * other, whatever the strides and the dtype (float32, bfloat16, float16) outside. Weights are
 * packed once a call, x and dout a block at a time; forward's products read rows of float32 in place.
 * With vectors of 4 or 8 floats a panel of Wᵀ holds 8 columns of W_lᵀ and the 8 of W_rᵀ that they meet.
 *
 * Threads divide the rows, in blocks; in forward of few rows they divide the units, then the outputs.
 *
 * Between products that are torch's, `product_forward` and `product_backward` make one pass over rows:
 * they read L and R (m, d), and dh; they write h, and [dL, dR]; float32 or bfloat16, formed in float32.
 *
 * Tiles: 6 rows and 64 bytes times 1..4 of C stay in registers while k runs over a whole block.
 * Reads: x, dout, weights, biases, and [L, R] where forward saved it. Writes: out and [L, R] if
 * asked to; gradients. h, dh and [dL, dR] never leave the cache.
 *
 * Sums over rows: the blocks are cut into shares, and each share's sums are kept apart and added in
 * order. Blocks and shares follow from the sizes alone, and every sum has one order whatever the
 * vector width: the same bits on any number of threads, and on AVX2 and AVX-512. */

#define _GNU_SOURCE /* RTLD_DEFAULT */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PANEL 16
#define PADDED(n) (((n) + PANEL - 1) / PANEL * PANEL)
/* A panel gets one row more than it holds: with a stride of 4096 bytes, its rows would compete for a
 * few sets of the cache. */
#define PANEL_FLOATS(rows) (((rows) + 1) * PANEL)

#define TILE_ROWS 6
#define CHUNK 192 /* terms that are summed before they are added to the total; a multiple of 16 */
#define MOST_BLOCK_ROWS 384
#define FEWEST_BLOCK_ROWS 16
/* What a block may take of a core's second-level cache; twice as much with large weights. */
#define BLOCK_BYTES (384 * 1024)
#define MOST_ROW 1024 /* floats from row to row of x that products read in place */
#ifndef FEW_ROWS
#define FEW_ROWS 128
#endif
#define MOST_ROWS_BY_UNITS 256 /* of a forward that threads divide by units */
#define MOST_SHARES 16
#define MOST_THREADS 64
#define SHARE_ROWS 256
#define LARGE_WEIGHTS (INT64_C(1) << 17) /* floats */
#define LARGE_OUTPUT (INT64_C(1) << 23) /* floats; about the size of a last-level cache */
/* In multiplications. With less work for each thread, another one costs more time than it saves. */
#define LEAST_WORK_A_THREAD (INT64_C(1) << 18)
/* The same for elementwise work, in elements of h; and how many a thread takes at a time. */
#define LEAST_ELEMENTS_A_THREAD (INT64_C(1) << 14)
#define ELEMENTS_AT_ONCE (INT64_C(1) << 13)
#ifndef MOST_KEPT_FLOATS /* of scratch that is kept between calls; the sanitizers' tests keep none */
#define MOST_KEPT_FLOATS (INT64_C(1) << 24)
/* A huge page with the header, so that small calls of several sizes share one. */
#define LEAST_SCRATCH_FLOATS ((HUGE_PAGE - HEADER) / 4)
#endif
#define HUGE_PAGE (2 * 1024 * 1024) /* bytes; the system makes one in the time of a few small ones */
#define HEADER 64 /* bytes */

#ifdef __FLT16_MAX__
#define HAS_FLOAT16 1
typedef _Float16 float16;
#else
#define HAS_FLOAT16 0
typedef uint16_t float16; /* a stand-in: the launcher refuses float16 then */
#endif

static inline __attribute__((always_inline)) int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

enum Dtype { FLOAT32, BFLOAT16, FLOAT16 };
/* How the left factor of C = A B is stored. PANELS: C's rows are the panels' rows, k their columns.
 * TURNED: one transposed panel, k its rows. ROWS: the caller's own rows of float32. */
enum Form { PANELS, TURNED, ROWS };
enum Gate { IDENTITY, SILU, GELU, GELU_TANH, RELU, SIGMOID, RELU2 };

/* A matrix of the caller, its strides in elements. */
typedef struct {
    const char *at;
    int64_t row, column;
} View;

typedef struct {
    int64_t m, d_in, d, d_out; /* d_out is 0 without W_p */
    int dtype, gate;
    View x, dout;
    const char *weight, *bias, *w_p, *b_p, *saved_preact; /* contiguous; null where there is none */
    char *out, *preact;                                   /* of forward */
    char *dx, *dweight, *dbias, *dw_p, *db_p;             /* null where not asked for */
} Layer;

/* The same matrix from row `first` on. */
static View rows_of(View v, int64_t first, int dtype) {
    return (View){v.at + first * v.row * (dtype == FLOAT32 ? 4 : 2), v.row, v.column};
}

/* Whether products read x's rows without a copy: they must be contiguous, and no longer than a page of
 * memory. */
static int reads_rows(const Layer *l) {
    return l->dtype == FLOAT32 && l->x.column == 1 && l->x.row <= MOST_ROW;
}

/* The factors of C = A B. A lies as `form` says; B in panels that hold k as rows, or in rows as outside,
 * whose panels are 16 floats apart. k goes through `parts` of A and B, `k` long each. */
typedef struct {
    const float *a, *b;
    int64_t a_stride, b_stride; /* from panel to panel; of A in rows, from row to row */
    int64_t b_row;              /* from row to row of B */
    int64_t k, parts, a_part, b_part;
    enum Form form;
} Factors;

/* A thread's scratch: panels of the block's rows. */
typedef struct {
    float *x, *preact, *dout, *h; /* preact: [L, R], then [dL, dR]; each half padded by itself */
    int64_t stride, first, rows;  /* rows first..first+rows-1 of the call */
} Block;

/* How many units of work threads have taken. Padded to cache lines of its own, so that threads that
 * write different counters do not wait for each other. */
typedef struct {
    int64_t taken;
    char rest[120];
} Counter;

typedef struct {
    Layer layer;
    int threads;
    int64_t d_in16, d16, d_out16;
    int64_t block, blocks, shares;
    int64_t part; /* rows of a block for which backward forms [dL, dR] and dx at a time */
    int divides_units; /* whether threads divide forward's units among them, and not its rows */
    int streams; /* whether [L, R] and h are written past the caches, being larger than they */
    /* Weights in panels: _t for products with Wᵀ (panels of W's rows), _n for products with W. */
    float *w_t, *w_n, *w_p_t, *w_p_n, *bias, *b_p;
    int64_t w_t_stride, w_n_stride, w_p_t_stride, w_p_n_stride; /* from panel to panel */
    float *scratch; /* of the threads, `thread_floats` each */
    int64_t thread_floats, block_stride;
    float *sums; /* of the shares, `sums_floats` each: dW, dW_p, dbias, db_p */
    int64_t sums_floats, sums_dw_p, sums_dbias, sums_db_p;
    Counter pack, add, unit[MOST_THREADS]; /* `unit`: of the blocks or shares of each thread */
} Task;

/* Panels from `first` to before `end`. */
typedef struct {
    int64_t first, end;
} Range;

/* The i-th of as many ranges as there are threads. */
static Range range_of(const Task *t, int64_t i, int64_t panels) {
    return (Range){i * panels / t->threads, (i + 1) * panels / t->threads};
}

/* h of L and R, and with dh also dL and dR, without any product; float32 or bfloat16. */
typedef struct {
    int64_t m, d, rows; /* `rows` are taken at a time */
    int dtype, gate;
    const char *left, *right, *dh;
    int64_t left_row, right_row, gradient_row; /* from row to row; d for dh and h */
    char *h, *dleft, *dright; /* h: null where it is not asked for. One of them may be dh's memory, h left's */
    Counter taken;
} Pointwise;

static int64_t take(Counter *counter) {
    return __atomic_fetch_add(&counter->taken, 1, __ATOMIC_RELAXED);
}

/* The next block or share for a thread, -1 if none is left. A thread takes its own first, the same at
 * every call of these sizes, because its caches may still hold their memory; then those of others. */
static int64_t take_unit(Task *t, int64_t thread, int64_t units) {
    for (int64_t i = 0; i < t->threads; i++) {
        int64_t whose = (thread + i) % t->threads, first = whose * units / t->threads;
        int64_t unit = first + take(&t->unit[whose]);
        if (unit < (whose + 1) * units / t->threads) return unit;
    }
    return -1;
}

/* The threads are those of the OpenMP runtime that PyTorch brought into the process, found by name:
 * a second runtime's threads would compete with them for the cores. In a forked child those threads
 * do not exist, and waiting for them would hang, so the child computes on one thread. */

static void (*omp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static void (*omp_barrier)(void);
static int (*omp_thread)(void);
static int is_forked_child = 0;

static void note_fork(void) { is_forked_child = 1; }

static void find_threads(void) {
    *(void **)&omp_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&omp_barrier = dlsym(RTLD_DEFAULT, "GOMP_barrier");
    *(void **)&omp_thread = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    pthread_atfork(NULL, NULL, note_fork);
}

static int can_share_work(void) { return omp_parallel && omp_barrier && omp_thread && !is_forked_child; }

static int64_t thread_of(const Task *t) { return t->threads > 1 ? omp_thread() : 0; }

static void wait_for_all(const Task *t) {
    if (t->threads > 1) omp_barrier();
}

static void run(void *task, int threads, void (*work)(void *)) {
    if (threads > 1)
        omp_parallel(work, task, (unsigned)threads, 0);
    else
        work(task);
}

#define BODY "layer_cpu_body.h"
#include "isa_cpu.h"
#ifdef IS_X86
#include <cpuid.h>
#endif

/* What each thread runs, by instruction set. */
static const struct {
    void (*forward)(void *), (*backward)(void *), (*pointwise)(void *);
} WORK[] = {
    {forward_baseline, backward_baseline, pointwise_baseline},
#ifdef IS_X86
    {forward_avx2, backward_avx2, pointwise_avx2},
    {forward_avx512, backward_avx512, pointwise_avx512},
#endif
};

/* Whether the weights, and the sums of their gradients, are larger than a block: each block reads the
 * weights and adds to the sums once, so fewer and larger blocks move less. */
static int has_large_weights(const Task *t) {
    return 2 * t->d16 * t->d_in16 + t->d16 * t->d_out16 > LARGE_WEIGHTS;
}

/* The number of shares. A share's sums are as large as the weights, so shares are few enough that
 * computing one takes longer than writing and adding its sums. */
static int64_t shares_of(const Task *t) {
    const Layer *l = &t->layer;
    int64_t rows = has_large_weights(t) ? 2 * SHARE_ROWS : SHARE_ROWS;
    int64_t fewest = l->m >= 4 * FEWEST_BLOCK_ROWS ? 2 : 1;
    return least(MOST_SHARES, most(fewest, l->m / rows));
}

/* Rows of a block, which takes `row_floats` a row: a share is cut into equal blocks that fit the cache. */
static int64_t block_rows(const Task *t, int64_t row_floats) {
    int64_t fitting = BLOCK_BYTES / (4 * row_floats) * (has_large_weights(t) ? 2 : 1);
    fitting = most(FEWEST_BLOCK_ROWS, least(MOST_BLOCK_ROWS, fitting));
    int64_t rows = most(1, (t->layer.m + t->shares - 1) / t->shares);
    int64_t blocks = (rows + fitting - 1) / fitting;
    return ((rows + blocks - 1) / blocks + 1) / 2 * 2;
}

/* Of a core's second-level cache; 0 where the system does not tell. Asked once: under a hypervisor the
 * instruction that tells takes microseconds. */
static int64_t cache_bytes = 0;

static void find_cache(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    cache_bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
}

/* Rows of a part of a block: all of them if these fit the cache. Parts change no bits, so they may depend
 * on the machine. */
static int64_t part_rows(int64_t rows, int64_t row_bytes) {
    int64_t bytes = rows * row_bytes;
    if (cache_bytes <= 0 || bytes <= cache_bytes / 4 * 3) return most(1, rows);
    int64_t parts = (bytes + cache_bytes / 2 - 1) / (cache_bytes / 2);
    return ((rows + parts - 1) / parts + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
}

static int streams(const Layer *l) {
    int64_t floats = l->m * ((l->preact ? 2 * l->d : 0) + (l->d_out ? 0 : l->d));
    int is_aligned = l->d % PANEL == 0 && ((uintptr_t)l->out | (uintptr_t)l->preact) % 64 == 0;
    return is_aligned && floats > LARGE_OUTPUT;
}

static void plan(Task *t, int threads, int is_backward) {
    const Layer *l = &t->layer;
    t->d_in16 = PADDED(l->d_in);
    t->d16 = PADDED(l->d);
    t->d_out16 = PADDED(l->d_out);
    t->shares = shares_of(t);
    int64_t row_floats = t->d_in16 + (l->d_out ? t->d16 : 0);
    if (is_backward) row_floats += 2 * t->d16 + t->d_out16;
    /* Units of a row of other lengths would share cache lines, for which threads that write them compete. */
    t->divides_units = !is_backward && l->m <= MOST_ROWS_BY_UNITS && l->d % PANEL == 0 &&
                       4 * l->m * row_floats <= 2 * BLOCK_BYTES;
    t->block = t->divides_units ? most(1, l->m) : block_rows(t, row_floats);
    t->blocks = (l->m + t->block - 1) / t->block;
    t->part = part_rows(t->block, 4 * row_floats);
    t->block_stride = PANEL_FLOATS(t->block);
    t->streams = streams(l);
    t->w_t_stride = PANEL_FLOATS(l->d_in);
    t->w_n_stride = PANEL_FLOATS(2 * t->d16);
    t->w_p_t_stride = PANEL_FLOATS(l->d);
    t->w_p_n_stride = PANEL_FLOATS(l->d_out);
    t->thread_floats = row_floats / PANEL * t->block_stride + 64;
    t->sums_dw_p = l->dweight ? 2 * t->d16 * t->d_in16 : 0;
    t->sums_dbias = t->sums_dw_p + (l->dw_p ? t->d_out16 * t->d16 : 0);
    t->sums_db_p = t->sums_dbias + 2 * t->d16;
    t->sums_floats = t->sums_db_p + t->d_out16;
    t->shares = least(t->shares, t->blocks);
    int64_t work = l->m * l->d * (2 * l->d_in + l->d_out) * (is_backward ? 2 : 1);
    int64_t units = is_backward ? t->shares : t->divides_units ? t->d16 / PANEL : t->blocks;
    t->threads = (int)least(least(threads, units), work / LEAST_WORK_A_THREAD);
    t->threads = (int)least(t->threads, MOST_THREADS);
    if (t->threads < 1 || !can_share_work()) t->threads = 1;
}

/* Scratch is kept for the next call, unless it is very large: it is still in the caches, and malloc might
 * return memory that the system must map again, page by page, which for large weights took as long as the
 * products. In front of it, a cache line with its size. */
static void *kept = NULL;

static int64_t *size_of(void *memory) { return (int64_t *)((char *)memory - HEADER); }

static void release(void *memory) {
    if (memory && *size_of(memory) <= MOST_KEPT_FLOATS)
        memory = __atomic_exchange_n(&kept, memory, __ATOMIC_ACQ_REL);
    if (memory) free(size_of(memory));
}

static void *scratch_memory(int64_t floats) {
    void *memory = __atomic_exchange_n(&kept, NULL, __ATOMIC_ACQ_REL);
    if (memory && *size_of(memory) >= floats) return memory;
    if (memory) free(size_of(memory));
    floats = most(floats, LEAST_SCRATCH_FLOATS);
    size_t bytes = HEADER + (size_t)floats * 4;
    if (posix_memalign(&memory, HUGE_PAGE, bytes)) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    memory = (char *)memory + HEADER;
    *size_of(memory) = floats;
    return memory;
}

/* Cuts one allocation into the task's parts. Returns 0 if there is no memory. */
static int allocate(Task *t, int is_backward, void **memory) {
    const Layer *l = &t->layer;
    int64_t halves = 2 * t->d16 / PANEL;
    int64_t w_t = halves * t->w_t_stride, w_n = is_backward ? t->d_in16 / PANEL * t->w_n_stride : 0;
    int64_t w_p_t = is_backward || !l->d_out ? 0 : t->d_out16 / PANEL * t->w_p_t_stride;
    int64_t w_p_n = is_backward && l->d_out ? t->d16 / PANEL * t->w_p_n_stride : 0;
    int64_t biases = 2 * t->d16 + t->d_out16;
    int64_t sums = is_backward ? t->shares * t->sums_floats : 0;
    int64_t floats = w_t + w_n + w_p_t + w_p_n + biases + sums + t->threads * t->thread_floats;
    if (!(*memory = scratch_memory(floats))) return 0;
    t->w_t = *memory;
    t->w_n = t->w_t + w_t;
    t->w_p_t = t->w_n + w_n;
    t->w_p_n = t->w_p_t + w_p_t;
    t->bias = t->w_p_n + w_p_n;
    t->b_p = t->bias + 2 * t->d16;
    t->sums = t->bias + biases;
    t->scratch = t->sums + sums;
    return 1;
}

#ifndef WITHOUT_PYTHON /* the sanitizers' tests define it */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "exchange.h"

/* The module reads tensors and makes those it returns in C, because a call of few rows takes
 * microseconds. */

enum { CPU = 1, FLOATS = 2, BFLOATS = 4 }; /* DLPack's numbers */

static const Exchange *exchange;
static PyObject *empty, *empty_like, *get_num_threads;
static PyObject *options[FLOAT16 + 1]; /* of `empty`, by dtype */
static PyObject *is_neg, *resolve_neg, *contiguous;

enum Operand { X, WEIGHT, BIAS, W_P, B_P, PREACT, DOUT, LEFT, RIGHT, DH, OPERANDS };
static const char *const NAMES[] = {"x",      "weight", "bias", "w_p",   "b_p",
                                    "preact", "dout",   "left", "right", "dh"};

typedef struct {
    PyObject *held[OPERANDS]; /* null where there is none */
    Seen seen[OPERANDS];
} Operands;

static void let_go(Operands *o) {
    for (int i = 0; i < OPERANDS; i++) Py_XDECREF(o->held[i]);
}

static int is_dense(const Seen *s) {
    int64_t stride = 1;
    for (int i = s->dims - 1; i >= 0; stride *= s->shape[i--])
        if (s->strides[i] != stride && s->shape[i] > 1) return 0;
    return 1;
}

/* Replaces an operand by the tensor that its method returns. */
static int become(Operands *o, enum Operand which, PyObject *method) {
    PyObject *made = PyObject_CallMethodObjArgs(o->held[which], method, NULL);
    if (!made) return 0;
    Py_DECREF(o->held[which]);
    o->held[which] = made;
    return exchange->see(made, &o->seen[which]) == 0;
}

/* A tensor of `dims` sizes, of x's dtype; None stays null. Weights, biases and preact are made contiguous;
 * the others may have strides. A lazy minus sign, which a pointer does not show (a conjugate's imaginary
 * part may have one), is formed. */
static int read_tensor(Operands *o, enum Operand which, PyObject *given, int dims, int64_t rows,
                       int64_t columns) {
    Seen *s = &o->seen[which];
    if (given == Py_None) return 1;
    o->held[which] = Py_NewRef(given);
    if (exchange->see(given, s)) return 0;
    PyObject *negated = PyObject_CallMethodObjArgs(given, is_neg, NULL);
    if (!negated) return 0;
    Py_DECREF(negated);
    if (negated == Py_True && !become(o, which, resolve_neg)) return 0;
    if (s->dims != dims || s->shape[0] != rows || (dims == 2 && s->shape[1] != columns) ||
        s->device != CPU || s->kind != o->seen[X].kind || s->bits != o->seen[X].bits) {
        PyErr_Format(PyExc_ValueError, "%s: expected (%lld, %lld) of x's dtype on the CPU",
                     NAMES[which], (long long)rows, (long long)columns);
        return 0;
    }
    return which == X || which >= DOUT || is_dense(s) || become(o, which, contiguous);
}

static int dtype_of(const Seen *s) {
    if (s->kind == FLOATS && s->bits == 32) return FLOAT32;
    if (s->kind == FLOATS && s->bits == 16 && HAS_FLOAT16) return FLOAT16;
    return s->kind == BFLOATS && s->bits == 16 ? BFLOAT16 : -1;
}

/* The arguments that forward and backward share: `isa, gate, x, weight, bias, w_p`. */
static int read_layer(PyObject *const *args, Operands *o, Layer *l, int *isa) {
    Seen x, weight, w_p = {0};
    *isa = (int)PyLong_AsLong(args[0]);
    l->gate = (int)PyLong_AsLong(args[1]);
    if (PyErr_Occurred() || exchange->see(args[2], &x) || exchange->see(args[3], &weight) ||
        (args[5] != Py_None && exchange->see(args[5], &w_p)))
        return 0;
    l->dtype = dtype_of(&x);
    int has_sizes = x.dims == 2 && weight.dims == 2 && weight.shape[0] > 0 && weight.shape[0] % 2 == 0 &&
                    weight.shape[1] > 0 && (args[5] == Py_None || (w_p.dims == 2 && w_p.shape[0] > 0));
    if (*isa < 0 || *isa > best_isa() || l->gate < 0 || l->gate > RELU2 || l->dtype < 0 || !has_sizes) {
        PyErr_SetString(PyExc_ValueError, "a size, a dtype, a gate or an instruction set that cannot be");
        return 0;
    }
    l->m = x.shape[0], l->d_in = x.shape[1], l->d = weight.shape[0] / 2;
    l->d_out = args[5] == Py_None ? 0 : w_p.shape[0];
    o->seen[X] = x;
    if (!read_tensor(o, X, args[2], 2, l->m, l->d_in) ||
        !read_tensor(o, WEIGHT, args[3], 2, 2 * l->d, l->d_in) ||
        !read_tensor(o, BIAS, args[4], 1, 2 * l->d, 1) ||
        !read_tensor(o, W_P, args[5], 2, l->d_out, l->d))
        return 0;
    l->x = (View){o->seen[X].data, o->seen[X].strides[0], o->seen[X].strides[1]};
    l->weight = o->seen[WEIGHT].data, l->bias = o->seen[BIAS].data, l->w_p = o->seen[W_P].data;
    return 1;
}

/* Returns the new tensor `made` and sets `at` to its memory; null for null. */
static PyObject *new_at(PyObject *made, char **at) {
    Seen s = {0};
    if (made && exchange->see(made, &s)) Py_CLEAR(made);
    *at = s.data;
    return made;
}

/* Of `sizes`, a new tuple that is given up here; null for null. */
static PyObject *new_sized(int dtype, PyObject *sizes, char **at) {
    PyObject *made = sizes ? PyObject_Call(empty, sizes, options[dtype]) : NULL;
    Py_XDECREF(sizes);
    return new_at(made, at);
}

static PyObject *new_matrix(int dtype, int64_t rows, int64_t columns, char **at) {
    return new_sized(dtype, Py_BuildValue("(LL)", (long long)rows, (long long)columns), at);
}

static PyObject *new_vector(int dtype, int64_t n, char **at) {
    return new_sized(dtype, Py_BuildValue("(L)", (long long)n), at);
}

static PyObject *new_like(PyObject *tensor, char **at) {
    return new_at(PyObject_CallFunctionObjArgs(empty_like, tensor, NULL), at);
}

/* An exception is set if torch raised one. */
static int threads_of_torch(void) {
    PyObject *number = PyObject_CallNoArgs(get_num_threads);
    long threads = number ? PyLong_AsLong(number) : 1;
    Py_XDECREF(number);
    return (int)threads;
}

static int execute(const Layer *layer, int isa, int is_backward) {
    Task task = {.layer = *layer};
    void *memory;
    int threads = threads_of_torch();
    if (PyErr_Occurred()) return 0;
    plan(&task, threads, is_backward);
    if (!allocate(&task, is_backward, &memory)) {
        PyErr_NoMemory();
        return 0;
    }
    PyThreadState *state = PyEval_SaveThread();
    run(&task, task.threads, is_backward ? WORK[isa].backward : WORK[isa].forward);
    release(memory);
    PyEval_RestoreThread(state);
    return 1;
}

/* (isa, gate, x, weight, bias, w_p, b_p, save_preact) → (out, preact) */
static PyObject *py_forward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    Operands o = {0};
    Layer l = {0};
    int isa;
    PyObject *out = NULL, *preact = NULL, *both = NULL;
    (void)self;
    if (n != 8) return PyErr_Format(PyExc_TypeError, "expected 8 arguments, got %zd", n);
    if (read_layer(args, &o, &l, &isa) && read_tensor(&o, B_P, args[6], 1, l.d_out, 1)) {
        l.b_p = o.seen[B_P].data;
        out = new_matrix(l.dtype, l.m, l.d_out ? l.d_out : l.d, &l.out);
        preact = args[7] == Py_True ? new_matrix(l.dtype, l.m, 2 * l.d, &l.preact) : Py_NewRef(Py_None);
        if (out && preact && execute(&l, isa, 0)) both = PyTuple_Pack(2, out, preact);
    }
    Py_XDECREF(out);
    Py_XDECREF(preact);
    let_go(&o);
    return both;
}

/* Memory for the gradients of x, weight, bias, w_p and b_p; None for those that `needs` leaves out.
 * Null if an allocation fails. */
static PyObject *new_gradients(PyObject *needs, const Operands *o, Layer *l) {
    PyObject *found = PyTuple_New(5);
    for (int i = 0; found && i < 5; i++) {
        PyObject *need = PySequence_GetItem(needs, i), *made = NULL;
        if (need && (need != Py_True || (i == W_P && !o->held[W_P]))) made = Py_NewRef(Py_None);
        else if (need && i == X && !is_dense(&o->seen[X])) made = new_matrix(l->dtype, l->m, l->d_in, &l->dx);
        else if (need && i == X) made = new_like(o->held[X], &l->dx);
        else if (need && i == WEIGHT) made = new_like(o->held[WEIGHT], &l->dweight);
        else if (need && i == BIAS) made = new_vector(l->dtype, 2 * l->d, &l->dbias);
        else if (need && i == W_P) made = new_like(o->held[W_P], &l->dw_p);
        else if (need && i == B_P) made = new_vector(l->dtype, l->d_out, &l->db_p);
        Py_XDECREF(need);
        if (!made || PyTuple_SetItem(found, i, made)) {
            Py_DECREF(found);
            return NULL;
        }
    }
    return found;
}

/* (isa, gate, x, weight, bias, w_p, preact, dout, needs) → gradients */
static PyObject *py_backward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    Operands o = {0};
    Layer l = {0};
    int isa;
    PyObject *found = NULL;
    (void)self;
    if (n != 9) return PyErr_Format(PyExc_TypeError, "expected 9 arguments, got %zd", n);
    if (read_layer(args, &o, &l, &isa) && read_tensor(&o, PREACT, args[6], 2, l.m, 2 * l.d) &&
        read_tensor(&o, DOUT, args[7], 2, l.m, l.d_out ? l.d_out : l.d) &&
        (found = new_gradients(args[8], &o, &l))) {
        l.saved_preact = o.seen[PREACT].data;
        l.dout = (View){o.seen[DOUT].data, o.seen[DOUT].strides[0], o.seen[DOUT].strides[1]};
        if (!execute(&l, isa, 1)) {
            Py_DECREF(found);
            found = NULL;
        }
    }
    let_go(&o);
    return found;
}

static PyObject *py_best_isa(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    return PyLong_FromLong(best_isa());
}

/* An operand of elementwise work, (m, d); its rows are made contiguous. */
static int read_rows(Operands *o, enum Operand which, PyObject *given, const Pointwise *p) {
    if (!read_tensor(o, which, given, 2, p->m, p->d)) return 0;
    return o->seen[which].strides[1] == 1 || p->d == 1 || become(o, which, contiguous);
}

/* What `product_forward` and `product_backward` share: `isa, gate, left, right`. */
static int read_pointwise(PyObject *const *args, Operands *o, Pointwise *p, int *isa) {
    *isa = (int)PyLong_AsLong(args[0]);
    p->gate = (int)PyLong_AsLong(args[1]);
    if (PyErr_Occurred() || exchange->see(args[2], &o->seen[X])) return 0;
    const Seen *x = &o->seen[X]; /* whose dtype all must have */
    p->dtype = dtype_of(x);
    if (*isa < 0 || *isa > best_isa() || p->gate < 0 || p->gate > RELU2 || x->dims != 2 ||
        (p->dtype != FLOAT32 && p->dtype != BFLOAT16)) {
        PyErr_SetString(PyExc_ValueError, "a size, a dtype, a gate or an instruction set that cannot be");
        return 0;
    }
    p->m = x->shape[0], p->d = x->shape[1];
    if (!read_rows(o, LEFT, args[2], p) || !read_rows(o, RIGHT, args[3], p)) return 0;
    p->left = o->seen[LEFT].data, p->left_row = o->seen[LEFT].strides[0];
    p->right = o->seen[RIGHT].data, p->right_row = o->seen[RIGHT].strides[0];
    return 1;
}

/* Sets `at` to an operand's memory, for a result to replace it: contiguous, and the caller's own. */
static int take_memory(const Operands *o, enum Operand which, PyObject *given, char **at) {
    *at = o->seen[which].data;
    if (o->held[which] == given && is_dense(&o->seen[which])) return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected contiguous memory, for a result", NAMES[which]);
    return 0;
}

static int execute_pointwise(Pointwise *p, int isa) {
    int threads = threads_of_torch();
    if (PyErr_Occurred()) return 0;
    threads = (int)least(least(threads, MOST_THREADS), p->m * p->d / LEAST_ELEMENTS_A_THREAD);
    if (threads < 1 || !can_share_work()) threads = 1;
    p->rows = most(1, ELEMENTS_AT_ONCE / most(1, p->d));
    PyThreadState *state = PyEval_SaveThread();
    run(p, threads, WORK[isa].pointwise);
    PyEval_RestoreThread(state);
    return 1;
}

/* What replaces dh, in its memory. */
enum Into { NOTHING, H, DLEFT };

/* (isa, gate, left, right, into_left) → h */
static PyObject *py_product_forward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    Operands o = {0};
    Pointwise p = {0};
    int isa;
    PyObject *h = NULL;
    (void)self;
    if (n != 5) return PyErr_Format(PyExc_TypeError, "expected 5 arguments, got %zd", n);
    if (read_pointwise(args, &o, &p, &isa)) {
        if (args[4] != Py_True) h = new_matrix(p.dtype, p.m, p.d, &p.h);
        else if (take_memory(&o, LEFT, args[2], &p.h)) h = Py_NewRef(args[2]);
        if (h && !execute_pointwise(&p, isa)) Py_CLEAR(h);
    }
    let_go(&o);
    return h;
}

/* (isa, gate, left, right, dh, into_dh) → [dL, dR], (m, 2d); dR alone, (m, d), where dL replaces dh */
static PyObject *py_product_backward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    Operands o = {0};
    Pointwise p = {0};
    int isa;
    PyObject *made = NULL;
    char *own = NULL;
    (void)self;
    if (n != 6) return PyErr_Format(PyExc_TypeError, "expected 6 arguments, got %zd", n);
    long into = PyLong_AsLong(args[5]);
    if (into < NOTHING || into > DLEFT)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "into_dh: unknown: %ld", into);
    if (read_pointwise(args, &o, &p, &isa) && read_tensor(&o, DH, args[4], 2, p.m, p.d) &&
        (into == NOTHING || take_memory(&o, DH, args[4], &own)) &&
        (is_dense(&o.seen[DH]) || become(&o, DH, contiguous)) &&
        (made = new_matrix(p.dtype, p.m, into == DLEFT ? p.d : 2 * p.d, &p.dright))) {
        int64_t element = p.dtype == FLOAT32 ? 4 : 2;
        p.dh = o.seen[DH].data, p.h = into == H ? own : NULL;
        p.dleft = into == DLEFT ? own : p.dright;
        p.dright += into == DLEFT ? 0 : p.d * element;
        p.gradient_row = into == DLEFT ? p.d : 2 * p.d;
        if (!execute_pointwise(&p, isa)) Py_CLEAR(made);
    }
    let_go(&o);
    return made;
}

/* The newest instructions of this processor that decide how fast PyTorch's matmuls are, and ours. */
static const char *newest_instructions(void) {
#ifdef IS_X86
    unsigned eax, ebx, ecx, edx;
    if (best_isa() == 1) return "avx2";
    if (best_isa() == 2) {
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 23 & 1)) return "avx512_fp16";
        if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1)) return "avx512_bf16";
        return "avx512";
    }
#endif
    return "baseline";
}

static PyObject *py_processor(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    return PyUnicode_FromString(newest_instructions());
}

static PyObject *py_has_float16(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    return PyBool_FromLong(HAS_FLOAT16);
}

static PyObject *py_can_share_work(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    return PyBool_FromLong(can_share_work());
}

static PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))py_forward, METH_FASTCALL, NULL},
    {"backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL, NULL},
    {"product_forward", (PyCFunction)(void (*)(void))py_product_forward, METH_FASTCALL, NULL},
    {"product_backward", (PyCFunction)(void (*)(void))py_product_backward, METH_FASTCALL, NULL},
    {"best_isa", py_best_isa, METH_NOARGS, NULL},
    {"processor", py_processor, METH_NOARGS, NULL},
    {"has_float16", py_has_float16, METH_NOARGS, NULL},
    {"can_share_work", py_can_share_work, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_layer_cpu", NULL, -1, methods,
                                    NULL, NULL, NULL, NULL};

/* Finds the functions of torch that are called here; false, with an error set, if one is missing. */
static int find_torch(void) {
    static const char *const dtypes[] = {"float32", "bfloat16", "float16"};
    PyObject *torch = PyImport_ImportModule("torch");
    PyObject *tensor = torch ? PyObject_GetAttrString(torch, "Tensor") : NULL;
    if (!tensor || !(exchange = exchange_of(tensor))) return 0;
    for (int i = 0; i <= FLOAT16; i++) {
        PyObject *dtype = PyObject_GetAttrString(torch, dtypes[i]);
        if (!dtype || !(options[i] = Py_BuildValue("{sNss}", "dtype", dtype, "device", "cpu"))) return 0;
    }
    return (empty = PyObject_GetAttrString(torch, "empty")) &&
           (empty_like = PyObject_GetAttrString(torch, "empty_like")) &&
           (get_num_threads = PyObject_GetAttrString(torch, "get_num_threads")) &&
           (is_neg = PyUnicode_InternFromString("is_neg")) &&
           (resolve_neg = PyUnicode_InternFromString("resolve_neg")) &&
           (contiguous = PyUnicode_InternFromString("contiguous"));
}

PyMODINIT_FUNC PyInit__layer_cpu(void) {
    find_threads();
    find_cache();
    return find_torch() ? PyModule_Create(&module) : NULL;
}

#endif
