/* One-hot-pair training of one bilinear model on the CPU: gradient, AdamW step, evaluation.
 *
 * Algebra, for token pairs (a, b) with label c = (a + b) mod P and parameters
 *   L, R (2P, D)  rows 0..P-1 for a, P..2P-1 for b (the transposed halves of `bi_linear.weight`)
 *   W    (d, PP)  the transposed projection
 *
 *   l = L[a] + L[P+b]      r = R[a] + R[P+b]      h = l∘r      logits = h W
 *   g = (softmax(logits) − onehot(c)) / n         dW = hᵀ g    dh = g Wᵀ
 *   dl = dh∘r → dL[a], dL[P+b]                    dr = dh∘l → dR[a], dR[P+b]
 *
 * D is d and PP is P rounded up to 16 floats; the padding holds zeros and stays zero, so a model of
 * any width and modulus runs on whole vectors. Logits of padded classes start at −1e30.
 *
 * Tiles: BLOCK pairs at a time, so that h, g and dh (BLOCK × 16..128 floats each) and the weights
 * stay in the first two cache levels. Reads: the pairs, L, R, W. Writes: gradients, then L, R, W and
 * their moments in place. Only pairs that are trained on are walked in a step.
 *
 * The cross-entropy is kept exact in float32 where the usual formula cancels: the label's own
 * gradient is −Σ_{c'≠c} p_c', never p_c − 1, and the loss of a pair that is already right is log1p.
 *
 * Every sum has one order, whatever the vector width: the same bits on AVX2 and AVX-512. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define GRID_BLOCK 96
#define GRID_PAD(n) (((n) + 15) / 16 * 16)
#define GRID_NO_CLASS (-1e30f)

typedef struct {
    int64_t p, d;
    int64_t n_train, n_pairs;
    const int32_t *pairs; /* (n_pairs, 2): those trained on first */
    float *weights;       /* L (2P, D), R (2P, D), W (d, PP), one after the other */
    float *moment1, *moment2, *gradient; /* of the shape of `weights` */
    float *scratch;                      /* grid_scratch_floats(p, d) floats */
    double beta1, beta2, eps;
    int64_t batch; /* 0: full batch; else pairs a step, reshuffled each epoch */
    uint64_t shuffle_key;
} GridModel;

typedef struct {
    double train_loss, val_loss; /* means */
    int64_t train_correct, val_correct;
    float min_margin; /* min over all pairs of logit[label] − max of the others */
} GridMetrics;

/* The softmax of each pair in a block: the label's term is kept apart from the other classes'. */
typedef struct {
    float label_logit[GRID_BLOCK], best_other[GRID_BLOCK];
    float shift[GRID_BLOCK]; /* the largest logit */
    float e_label[GRID_BLOCK], e_others[GRID_BLOCK]; /* exp(· − shift), summed over the others */
} SoftmaxRows;

typedef struct {
    float *w_class_major; /* (P, D): W transposed, for dh */
    float *h, *dh;        /* (BLOCK, D) */
    float *g;             /* (BLOCK, PP): logits, then their gradient */
    float *no_class;      /* (PP): 0 for classes, −1e30 for padding */
    SoftmaxRows *rows;
    int32_t *batch_pairs; /* (BLOCK, 2) */
} Scratch;

int64_t grid_scratch_floats(int64_t p, int64_t d) {
    int64_t pp = GRID_PAD(p), dd = GRID_PAD(d);
    return pp * dd + 2 * GRID_BLOCK * dd + GRID_BLOCK * pp + pp +
           (int64_t)(sizeof(SoftmaxRows) / sizeof(float)) + 2 * GRID_BLOCK;
}

static Scratch scratch_of(const GridModel *m) {
    int64_t pp = GRID_PAD(m->p), dd = GRID_PAD(m->d);
    Scratch s;
    s.w_class_major = m->scratch;
    s.h = s.w_class_major + pp * dd;
    s.dh = s.h + GRID_BLOCK * dd;
    s.g = s.dh + GRID_BLOCK * dd;
    s.no_class = s.g + GRID_BLOCK * pp;
    s.rows = (SoftmaxRows *)(s.no_class + pp);
    s.batch_pairs = (int32_t *)(s.rows + 1);
    for (int64_t c = 0; c < pp; c++) s.no_class[c] = c < m->p ? 0.0f : GRID_NO_CLASS;
    return s;
}

/* Shuffling by a keyed permutation of 0..n-1 computed an index at a time (a Feistel network with
 * cycle walking), so that an epoch's order needs no memory and no earlier epoch. */

static uint32_t mix32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#define SHUFFLE_ROUNDS 8

uint32_t grid_shuffled(uint32_t index, uint32_t n, uint64_t key, uint64_t epoch) {
    uint64_t epoch_key = mix64(key ^ mix64(epoch));
    uint32_t low = (uint32_t)epoch_key, high = (uint32_t)(epoch_key >> 32);
    int half = 1;
    while ((UINT64_C(1) << (2 * half)) < n) half++;
    uint32_t mask = (1u << half) - 1;
    do {
        uint32_t left = index >> half, right = index & mask;
        for (uint32_t round = 0; round < SHUFFLE_ROUNDS; round++) {
            uint32_t next = left ^ (mix32(right + low + mix32(high + round)) & mask);
            left = right;
            right = next;
        }
        index = left << half | right;
    } while (index >= n);
    return index;
}

#define BODY "grid_cpu_body.h"
#include "isa_cpu.h"

/* A training step and an evaluation, by instruction set. */
static const struct {
    void (*step)(GridModel *, int64_t t, double lr, double weight_decay);
    void (*evaluate)(GridModel *, GridMetrics *);
} WORK[] = {
    {step_baseline, evaluate_baseline},
#ifdef IS_X86
    {step_avx2, evaluate_avx2},
    {step_avx512, evaluate_avx512},
#endif
};

int grid_best_isa(void) { return best_isa(); }

/* Treats subnormal numbers as 0. The moments of a converged model decay to subnormals, and the
 * processor takes about a hundred times longer to compute with those. */
static unsigned flush_subnormals(void) {
#ifdef IS_X86
    unsigned old = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(old | 0x8040);
    return old;
#else
    return 0;
#endif
}

static void restore_subnormals(unsigned old) {
#ifdef IS_X86
    __builtin_ia32_ldmxcsr(old);
#else
    (void)old;
#endif
}

/* Steps first..first+n-1 (counted from 0), with one learning rate and decay for each. */
void grid_steps(int isa, GridModel *m, int64_t first, int64_t n, const double *lr,
                const double *weight_decay) {
    unsigned old = flush_subnormals();
    for (int64_t i = 0; i < n; i++) WORK[isa].step(m, first + i, lr[i], weight_decay[i]);
    restore_subnormals(old);
}

/* Loss, correct answers and smallest margin of the weights as they stand, over all pairs. */
void grid_evaluate(int isa, GridModel *m, GridMetrics *out) {
    unsigned old = flush_subnormals();
    WORK[isa].evaluate(m, out);
    restore_subnormals(old);
}

#ifndef WITHOUT_PYTHON /* the sanitizers' tests define it */

/* Python calls the functions above through ctypes; the module that it imports is empty. */
#include <Python.h>

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_grid_cpu", NULL, -1, NULL,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__grid_cpu(void) { return PyModule_Create(&module); }

#endif
