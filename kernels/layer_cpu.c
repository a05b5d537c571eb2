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

#define PANEL 16
#define PADDED(n) (((n) + PANEL - 1) / PANEL * PANEL)
/* Panels of one more row than they hold: a stride of 4096 bytes would fill a few sets of the cache. */
#define PANEL_FLOATS(rows) (((rows) + 1) * PANEL)

#define CHUNK 192 /* of a long sum; a multiple of 16 */
#define MOST_BLOCK_ROWS 384
#define FEWEST_BLOCK_ROWS 16
#define BLOCK_BYTES (384 * 1024) /* of a core's second-level cache */
#define MOST_ROW 1024 /* floats from row to row of x that products read in place */
#define MOST_SHARES 16
#define MOST_THREADS 64
#define SHARE_ROWS 256
#define LARGE_SUMS (INT64_C(1) << 17)   /* floats */
#define LARGE_OUTPUT (INT64_C(1) << 23) /* floats: a last-level cache */
/* Below so many multiplications a second thread costs more than it takes over. */
#define LEAST_WORK_A_THREAD (INT64_C(1) << 18)

#ifdef __FLT16_MAX__
#define HAS_FLOAT16 1
typedef _Float16 float16;
#else
#define HAS_FLOAT16 0
typedef uint16_t float16; /* never read: the launcher refuses */
#endif

enum Dtype { FLOAT32, BFLOAT16, FLOAT16 };
/* How a product's left factor lies: in panels, C's rows as their rows and k as their columns; in one
 * panel, turned, k as its rows; or as outside, in rows. */
enum Form { PANELS, TURNED, ROWS };
enum Gate { IDENTITY, SILU, GELU, GELU_TANH, RELU, SIGMOID, RELU2 };

/* A matrix outside, its strides in elements. */
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

/* Whether products take x's rows where they lie: read in order, and not each from a page of its own. */
static int reads_rows(const Layer *l) {
    return l->dtype == FLOAT32 && l->x.column == 1 && l->x.row <= MOST_ROW;
}

/* What units of work have been taken, by any thread; each on a cache line of its own. */
typedef struct {
    int64_t taken;
    char rest[120];
} Counter;

typedef struct {
    Layer layer;
    int threads;
    int64_t d_in16, d16, d_out16;
    int64_t block, blocks, shares;
    int streams; /* whether [L, R] and h go past the caches: they are larger */
    /* Weights in panels: _t for products with Wᵀ (panels of W's rows), _n for products with W. */
    float *w_t, *w_n, *w_p_t, *w_p_n, *bias, *b_p;
    int64_t w_t_stride, w_n_stride, w_p_t_stride, w_p_n_stride; /* from panel to panel */
    float *scratch; /* of the threads, `thread_floats` each */
    int64_t thread_floats, block_stride;
    float *sums; /* of the shares, `sums_floats` each: dW, dW_p, dbias, db_p */
    int64_t sums_floats, sums_dw_p, sums_dbias, sums_db_p;
    Counter pack, add, unit[MOST_THREADS]; /* `unit`: of the blocks or shares of each thread */
} Task;

static int64_t take(Counter *counter) {
    return __atomic_fetch_add(&counter->taken, 1, __ATOMIC_RELAXED);
}

/* The next block or share of `units` for a thread, -1 if there is none: first of those that are its
 * own at every call of these sizes, whose memory its caches may still hold, then of the others'. */
static int64_t take_unit(Task *t, int64_t thread, int64_t units) {
    for (int64_t i = 0; i < t->threads; i++) {
        int64_t whose = (thread + i) % t->threads, first = whose * units / t->threads;
        int64_t unit = first + take(&t->unit[whose]);
        if (unit < (whose + 1) * units / t->threads) return unit;
    }
    return -1;
}

/* The threads are those of the OpenMP runtime that PyTorch brought into the process, found by name:
 * another runtime's pool would fight with it over the cores. In a forked child those threads do not
 * exist, and to wait for them would hang: it works alone. */

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

static void run(Task *t, void (*work)(void *)) {
    if (t->threads > 1)
        omp_parallel(work, t, (unsigned)t->threads, 0);
    else
        work(t);
}

/* One copy of the arithmetic for each vector width; the fastest that runs here is called. */

#if defined(__x86_64__) && defined(__GNUC__)
#define LAYER_X86 1
#endif

#ifdef LAYER_X86

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define LAYER_NAME(x) x##_avx512
#define LAYER_LANES 16
#define LAYER_TILE_VECTORS 4
#include "layer_cpu_body.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define LAYER_NAME(x) x##_avx2
#define LAYER_LANES 8
#define LAYER_TILE_VECTORS 2
#include "layer_cpu_body.h"
#pragma GCC pop_options

#endif

#define LAYER_NAME(x) x##_baseline
#define LAYER_LANES 4
#define LAYER_TILE_VECTORS 2
#include "layer_cpu_body.h"

enum Isa { ISA_BASELINE, ISA_AVX2, ISA_AVX512, ISA_COUNT };

/* The widest instruction set both this build and this processor have. */
static int best_isa(void) {
#ifdef LAYER_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_BASELINE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return ISA_AVX512;
    return ISA_AVX2;
#else
    return ISA_BASELINE;
#endif
}

typedef void (*Work)(void *);

static Work forward_work(int isa) {
#ifdef LAYER_X86
    if (isa == ISA_AVX512) return forward_avx512;
    if (isa == ISA_AVX2) return forward_avx2;
#endif
    (void)isa;
    return forward_baseline;
}

static Work backward_work(int isa) {
#ifdef LAYER_X86
    if (isa == ISA_AVX512) return backward_avx512;
    if (isa == ISA_AVX2) return backward_avx2;
#endif
    (void)isa;
    return backward_baseline;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Shares of the rows: few enough that to form a share's products takes longer than to write its
 * sums and to add them, which are as large as the weights. */
static int64_t shares_of(const Task *t) {
    const Layer *l = &t->layer;
    int64_t sums = 2 * t->d16 * t->d_in16 + t->d16 * t->d_out16;
    int64_t rows = sums > LARGE_SUMS ? 2 * SHARE_ROWS : SHARE_ROWS;
    int64_t fewest = l->m >= 4 * FEWEST_BLOCK_ROWS ? 2 : 1;
    return least(MOST_SHARES, most(fewest, l->m / rows));
}

/* Rows of a block: a share's, in equal blocks that fit the cache. */
static int64_t block_rows(const Task *t, int is_backward) {
    const Layer *l = &t->layer;
    int64_t floats = t->d_in16 + (l->d_out ? t->d16 : 0);
    if (is_backward) floats += 2 * t->d16 + t->d_out16;
    int64_t fitting = most(FEWEST_BLOCK_ROWS, least(MOST_BLOCK_ROWS, BLOCK_BYTES / (4 * floats)));
    int64_t rows = most(1, (l->m + t->shares - 1) / t->shares);
    int64_t blocks = (rows + fitting - 1) / fitting;
    return ((rows + blocks - 1) / blocks + 1) / 2 * 2;
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
    t->block = block_rows(t, is_backward);
    t->blocks = (l->m + t->block - 1) / t->block;
    t->block_stride = PANEL_FLOATS(t->block);
    t->streams = streams(l);
    t->w_t_stride = PANEL_FLOATS(l->d_in);
    t->w_n_stride = PANEL_FLOATS(2 * t->d16);
    t->w_p_t_stride = PANEL_FLOATS(l->d);
    t->w_p_n_stride = PANEL_FLOATS(l->d_out);
    int64_t panels = t->d_in16 + (l->d_out ? t->d16 : 0);
    if (is_backward) panels += 2 * t->d16 + t->d_out16;
    t->thread_floats = panels / PANEL * t->block_stride + 64;
    t->sums_dw_p = l->dweight ? 2 * t->d16 * t->d_in16 : 0;
    t->sums_dbias = t->sums_dw_p + (l->dw_p ? t->d_out16 * t->d16 : 0);
    t->sums_db_p = t->sums_dbias + 2 * t->d16;
    t->sums_floats = t->sums_db_p + t->d_out16;
    t->shares = least(t->shares, t->blocks);
    int64_t work = l->m * l->d * (2 * l->d_in + l->d_out) * (is_backward ? 2 : 1);
    int64_t units = is_backward ? t->shares : t->blocks;
    t->threads = (int)least(least(threads, units), work / LEAST_WORK_A_THREAD);
    t->threads = (int)least(t->threads, MOST_THREADS);
    if (t->threads < 1 || !can_share_work()) t->threads = 1;
}

/* Cut one allocation into the task's parts; false if there is no memory. */
static int allocate(Task *t, int is_backward, void **memory) {
    const Layer *l = &t->layer;
    int64_t halves = 2 * t->d16 / PANEL;
    int64_t w_t = halves * t->w_t_stride, w_n = is_backward ? t->d_in16 / PANEL * t->w_n_stride : 0;
    int64_t w_p_t = is_backward || !l->d_out ? 0 : t->d_out16 / PANEL * t->w_p_t_stride;
    int64_t w_p_n = is_backward && l->d_out ? t->d16 / PANEL * t->w_p_n_stride : 0;
    int64_t biases = 2 * t->d16 + t->d_out16;
    int64_t sums = is_backward ? t->shares * t->sums_floats : 0;
    int64_t floats = w_t + w_n + w_p_t + w_p_n + biases + sums + t->threads * t->thread_floats;
    if (posix_memalign(memory, 64, (size_t)floats * sizeof(float))) return 0;
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

#ifndef WITHOUT_PYTHON /* as the sanitizers run it */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>

static PyObject *execute(Layer layer, int isa, int threads, int is_backward) {
    Task task = {.layer = layer};
    void *memory;
    plan(&task, threads, is_backward);
    if (!allocate(&task, is_backward, &memory)) return PyErr_NoMemory();
    PyThreadState *state = PyEval_SaveThread();
    run(&task, is_backward ? backward_work(isa) : forward_work(isa));
    free(memory);
    PyEval_RestoreThread(state);
    Py_RETURN_NONE;
}

/* The module: arguments are integers (addresses, sizes, strides) that the launcher has checked. */

enum { FORWARD_ARGUMENTS = 17, BACKWARD_ARGUMENTS = 23 };

/* isa, threads, dtype, gate, m, d_in, d, d_out, x, its strides, weight, bias, w_p, preact. */
static int read_arguments(PyObject *const *args, Py_ssize_t n, Py_ssize_t wanted, int64_t *v) {
    if (n != wanted) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, n);
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) v[i] = PyLong_AsLongLong(args[i]);
    if (PyErr_Occurred()) return 0;
    int is_valid = v[0] >= 0 && v[0] <= best_isa() && v[1] >= 1 && v[2] >= 0 && v[2] <= FLOAT16 &&
                   v[3] >= 0 && v[3] <= RELU2 && v[4] >= 0 && v[5] >= 1 && v[6] >= 1 && v[7] >= 0;
    if (!is_valid) PyErr_SetString(PyExc_ValueError, "a size, a dtype or a gate that cannot be");
    return is_valid;
}

#define AT(i) ((char *)(uintptr_t)v[i])

static Layer shared_arguments(const int64_t *v) {
    return (Layer){.dtype = (int)v[2], .gate = (int)v[3], .m = v[4], .d_in = v[5], .d = v[6],
                   .d_out = v[7], .x = {AT(8), v[9], v[10]}, .weight = AT(11), .bias = AT(12),
                   .w_p = AT(13)};
}

static PyObject *py_forward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    int64_t v[FORWARD_ARGUMENTS];
    (void)self;
    if (!read_arguments(args, n, FORWARD_ARGUMENTS, v)) return NULL;
    Layer layer = shared_arguments(v);
    layer.preact = AT(14);
    layer.b_p = AT(15);
    layer.out = AT(16);
    return execute(layer, (int)v[0], (int)v[1], 0);
}

static PyObject *py_backward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    int64_t v[BACKWARD_ARGUMENTS];
    (void)self;
    if (!read_arguments(args, n, BACKWARD_ARGUMENTS, v)) return NULL;
    Layer layer = shared_arguments(v);
    layer.saved_preact = AT(14);
    layer.dout = (View){AT(15), v[16], v[17]};
    layer.dx = AT(18);
    layer.dweight = AT(19);
    layer.dbias = AT(20);
    layer.dw_p = AT(21);
    layer.db_p = AT(22);
    return execute(layer, (int)v[0], (int)v[1], 1);
}

static PyObject *py_best_isa(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    return PyLong_FromLong(best_isa());
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
    {"best_isa", py_best_isa, METH_NOARGS, NULL},
    {"has_float16", py_has_float16, METH_NOARGS, NULL},
    {"can_share_work", py_can_share_work, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_layer_cpu", NULL, -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__layer_cpu(void) {
    find_threads();
    return PyModule_Create(&module);
}

#endif
