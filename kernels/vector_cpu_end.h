/* Undefines the macros of vector_cpu.h, so that it can be included for the next vector width. */

#undef vf
#undef vi
#undef vu
#undef INLINE
#undef UNROLL
#undef load
#undef store
#undef splat
