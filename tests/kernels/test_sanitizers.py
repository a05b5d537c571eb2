"""The C kernels under the sanitizers, in a small C main, and what compilers make of their tiles."""

import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-std=gnu11"]

# Every buffer is as long as what it holds and comes from malloc, so that an access past its
# end is found.
LAYER = """
#define MOST_KEPT_FLOATS 0
#define LEAST_SCRATCH_FLOATS 0
#include "layer_cpu.c"
#include <stdio.h>

static float *numbers(int64_t n) {
    float *x = malloc((size_t)n * 4 + 1);
    for (int64_t i = 0; i < n; i++) x[i] = (float)((i * 7919) % 101) / 101 - 0.5f;
    return x;
}

static double sum_of(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * (double)(i % 13 + 1);
    return sum;
}

static void run_task(Layer layer, int isa, int is_backward) {
    Task task = {.layer = layer};
    void *memory;
    plan(&task, 1, is_backward);
    if (!allocate(&task, is_backward, &memory)) abort();
    run(&task, task.threads, is_backward ? WORK[isa].backward : WORK[isa].forward);
    release(memory);
}

static void between(int isa, int dtype, int gate, int64_t m, int64_t d) {
    int64_t row = d * (dtype == FLOAT32 ? 4 : 2);
    char *preact = calloc(2 * m, row), *dh = calloc(m, row), *h = malloc(m * row);
    char *gradient = malloc(2 * m * row);
    Pointwise p = {.m = m, .d = d, .rows = 3, .dtype = dtype, .gate = gate, .left = preact,
                   .right = preact + row, .dh = dh, .left_row = 2 * d, .right_row = 2 * d,
                   .gradient_row = 2 * d, .h = h, .dleft = gradient, .dright = gradient + row};
    run(&p, 1, WORK[isa].pointwise);
    p.dh = 0, p.taken.taken = 0;
    run(&p, 1, WORK[isa].pointwise);
    free(preact), free(dh), free(h), free(gradient);
}

static double both(int isa, int dtype, int gate, int64_t m, int64_t d_in, int64_t d, int64_t d_out,
                   int saves) {
    int64_t width = d_out ? d_out : d;
    float *x = numbers(m * d_in), *w = numbers(2 * d * d_in), *b = numbers(2 * d);
    float *w_p = d_out ? numbers(d_out * d) : 0, *b_p = d_out ? numbers(d_out) : 0;
    float *dout = numbers(m * width), *preact = saves ? numbers(2 * m * d) : 0;
    float *out = numbers(m * width), *dx = numbers(m * d_in), *dw = numbers(2 * d * d_in);
    float *db = numbers(2 * d), *dw_p = d_out ? numbers(d_out * d) : 0;
    float *db_p = d_out ? numbers(d_out) : 0;
    Layer l = {.m = m, .d_in = d_in, .d = d, .d_out = d_out, .dtype = dtype, .gate = gate,
               .x = {(char *)x, d_in, 1}, .weight = (char *)w, .bias = (char *)b,
               .w_p = (char *)w_p, .b_p = (char *)b_p, .out = (char *)out,
               .preact = (char *)preact};
    run_task(l, isa, 0);
    l.saved_preact = (char *)preact;
    l.dout = (View){(char *)dout, width, 1};
    l.dx = (char *)dx, l.dweight = (char *)dw, l.dbias = (char *)db;
    l.dw_p = (char *)dw_p, l.db_p = (char *)db_p;
    run_task(l, isa, 1);
    double sum = dtype == FLOAT32 ? sum_of(out, m * width) + sum_of(dx, m * d_in) +
                                        sum_of(dw, 2 * d * d_in) + sum_of(db, 2 * d)
                                  : 0;
    float *all[] = {x, w, b, w_p, b_p, dout, preact, out, dx, dw, db, dw_p, db_p};
    for (int i = 0; i < 13; i++) free(all[i]);
    return sum;
}

int main(void) {
    const int64_t sizes[][4] = {{1, 1, 1, 0}, {3, 17, 5, 3}, {65, 16, 33, 0}, {129, 63, 16, 65},
                                {70, 300, 32, 0}, {600, 5, 48, 16}, {0, 4, 3, 2},
                                {128, 32, 48, 20}};
    for (int gate = IDENTITY; gate <= RELU2; gate++)
        for (int i = 0; i < 8; i++)
            for (int saves = 0; saves < 2; saves++) {
                const int64_t *s = sizes[i];
                double first = 0;
                for (int isa = 0; isa <= best_isa(); isa++) {
                    both(isa, BFLOAT16, gate, s[0], s[1], s[2], s[3], saves);
                    between(isa, BFLOAT16, gate, s[0], s[2]);
                    between(isa, FLOAT32, gate, s[0], s[2]);
                    cache_bytes = 0;
                    double sum = both(isa, FLOAT32, gate, s[0], s[1], s[2], s[3], saves);
                    cache_bytes = 1 << 14; /* so small that blocks are cut into parts */
                    if (both(isa, FLOAT32, gate, s[0], s[1], s[2], s[3], saves) != sum) return 2;
                    if (isa == 0) first = sum;
                    if (!(fabs(sum - first) <= 1e-3 * (1 + fabs(first)))) return 1;
                }
            }
    puts("clean");
    return 0;
}
"""

GRID = """
#include "grid_cpu.c"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static float *aligned(int64_t n) {
    float *x = aligned_alloc(64, (size_t)(n * 4 + 63) / 64 * 64);
    memset(x, 0, (size_t)n * 4);
    return x;
}

static double train(int isa, int64_t p, int64_t d, int64_t batch) {
    int64_t dd = GRID_PAD(d), pp = GRID_PAD(p), n = 4 * p * dd + d * pp, pairs = p * p;
    float *weights = aligned(n), *m1 = aligned(n), *m2 = aligned(n), *gradient = aligned(n);
    float *scratch = aligned(grid_scratch_floats(p, d));
    int32_t *pair = malloc((size_t)pairs * 8);
    for (int64_t i = 0; i < pairs; i++) {
        pair[2 * i] = (int32_t)(i / p);
        pair[2 * i + 1] = (int32_t)(i % p);
    }
    for (int64_t r = 0; r < 4 * p; r++)
        for (int64_t k = 0; k < d; k++) weights[r * dd + k] = (float)((r * 31 + k * 17) % 23) / 23;
    for (int64_t k = 0; k < d; k++)
        for (int64_t c = 0; c < p; c++) weights[4 * p * dd + k * pp + c] = (float)(c % 5) / 5;
    GridModel model = {p, d, pairs * 3 / 4, pairs, pair, weights, m1, m2, gradient, scratch,
                       0.9, 0.99, 1e-8, batch, 77};
    double lr[3] = {1e-2, 1e-2, 1e-3}, decay[3] = {0.1, 0.1, 0.1};
    GridMetrics metrics;
    grid_steps(isa, &model, 0, 3, lr, decay);
    grid_evaluate(isa, &model, &metrics);
    free(weights), free(m1), free(m2), free(gradient), free(scratch), free(pair);
    return metrics.train_loss;
}

int main(void) {
    const int64_t sizes[][3] = {{2, 1, 0}, {7, 3, 5}, {13, 17, 0}, {23, 33, 64}};
    for (int i = 0; i < 4; i++) {
        double first = train(0, sizes[i][0], sizes[i][1], sizes[i][2]);
        for (int isa = 0; isa <= grid_best_isa(); isa++) {
            double loss = train(isa, sizes[i][0], sizes[i][1], sizes[i][2]);
            if (!(fabs(loss - first) <= 1e-3 * first)) return 1;
        }
    }
    puts("clean");
    return 0;
}
"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text("int main(void) { return 0; }")
    probe = [found, *SANITIZE, "probe.c", "-o", "probe"]
    if subprocess.run(probe, cwd=folder, capture_output=True).returncode:
        pytest.skip("needs a C compiler with sanitizers")
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_tiles_stay_in_registers(name: str) -> None:
    """Products are 5 times slower where a loop is not unrolled or the instruction set ignored."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    options = ["-S", "-O3", "-std=gnu11", "-fno-math-errno", "-w", "-o", "-"]
    options += ["-I", sysconfig.get_path("include")]
    for kernel, function in (("layer", "any_tile"), ("grid", "matmul")):
        source = str(KERNELS / f"{kernel}_cpu.c")
        made = subprocess.check_output([found, *options, source], text=True, timeout=300)
        for isa in ("avx2", "avx512"):
            body = re.search(rf"^{function}_{isa}[\w.]*:.*?\.cfi_endproc", made, re.M | re.S)
            assert body is not None, f"no {function}_{isa}"
            products = len(re.findall("vfmadd", body[0]))
            on_stack = len(re.findall(r"mm\d.*\(%r[sb]p|\(%r[sb]p.*mm\d", body[0]))
            assert products > 50, (function, isa, products)
            assert on_stack < 2 * products, (function, isa, products, on_stack)


@pytest.mark.parametrize(("name", "main"), [("layer", LAYER), ("grid", GRID)])
def test_no_step_past_an_end_and_nothing_undefined(
    name: str, main: str, compiler: str, tmp_path: Path
) -> None:
    (tmp_path / "main.c").write_text(main)
    options = ["-DWITHOUT_PYTHON", "-I", str(KERNELS), "-lm", "-ldl", "-lpthread"]
    build = [compiler, *SANITIZE, "main.c", "-o", name, *options]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([f"./{name}"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout) == (0, "clean\n"), ran.stderr
