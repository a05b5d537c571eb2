/* Undefines what isa_cpu.h and vector_cpu.h define for one instruction set, before the next one. */

#undef N
#undef LANES
#undef VECTORS
#undef vf
#undef vi
#undef vu
#undef INLINE
#undef UNROLL
#undef FOUR_LANES
#undef EACH_LANE
#undef load
#undef store
#undef splat
