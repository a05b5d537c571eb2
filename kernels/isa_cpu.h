/* One copy of the arithmetic in the file BODY for each instruction set, and which of them can run here.
 * BODY is included once for each, with
 *   N(x)       the name of x for this instruction set: x_avx512, x_avx2 or x_baseline
 *   LANES      floats in a vector: 16, 8 or 4
 *   VECTORS    vectors of a row of a matrix product's tile, which is held in registers: 4 or 2 */

#if defined(__x86_64__) && defined(__GNUC__)
#define IS_X86 1
#endif

#ifdef IS_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define N(x) x##_avx512
#define LANES 16
#define VECTORS 4
#include "vector_cpu.h"
#include BODY
#include "vector_cpu_end.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define N(x) x##_avx2
#define LANES 8
#define VECTORS 2
#include "vector_cpu.h"
#include BODY
#include "vector_cpu_end.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

#define N(x) x##_baseline
#define LANES 4
#define VECTORS 2
#include "vector_cpu.h"
#include BODY
#include "vector_cpu_end.h"

/* The widest instruction set that this build was compiled for and this processor has, as an index of
 * {baseline, AVX2, AVX-512}. */
static int best_isa(void) {
#ifdef IS_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? 2
               : 1;
#else
    return 0;
#endif
}
