/* Vectors of floats and what both CPU kernels do with them. isa_cpu.h includes it before each copy of a
 * kernel's body, so it has no include guard; vector_cpu_end.h undefines its macros. */

typedef float N(vf) __attribute__((vector_size(4 * LANES)));
typedef int32_t N(vi) __attribute__((vector_size(4 * LANES)));
typedef uint32_t N(vu) __attribute__((vector_size(4 * LANES)));
#define vf N(vf)
#define vi N(vi)
#define vu N(vu)

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* f(i, given) for every lane i, separated by commas. */
#define FOUR_LANES(f, i, given) f(i, given), f(i + 1, given), f(i + 2, given), f(i + 3, given)
#if LANES == 16
#define EACH_LANE(f, given) \
    FOUR_LANES(f, 0, given), FOUR_LANES(f, 4, given), FOUR_LANES(f, 8, given), FOUR_LANES(f, 12, given)
#elif LANES == 8
#define EACH_LANE(f, given) FOUR_LANES(f, 0, given), FOUR_LANES(f, 4, given)
#else
#define EACH_LANE(f, given) FOUR_LANES(f, 0, given)
#endif

INLINE vf N(load)(const float *x) { return *(const vf *)x; }
INLINE void N(store)(float *x, vf v) { *(vf *)x = v; }
INLINE vf N(splat)(float x) { return x - (vf){0}; }
#define load N(load)
#define store N(store)
#define splat N(splat)

/* exp(x) for x ≤ 0, about 1 ulp; exactly 0 from −87 down, NaN for NaN. Polynomial: Cephes expf. */
INLINE vf N(exp)(vf x) {
    const vf shift = splat(12582912.0f); /* 1.5·2²³: adding it rounds to an integer */
    vf t = x * 1.44269504088896341f + shift;
    vf n = t - shift;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    vf rr = r * r;
    y = y * rr + r;
    y = y + 1.0f;
    vi scaled = (vi)((vu)y + ((vu)t << 23)); /* unsigned: where x is far out, it overflows */
    return (vf)(scaled & ~(x <= -87.0f));
}
