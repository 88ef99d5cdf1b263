// Every core function lives in a namespace named after the unit that compiles it (FASTSCORE_ISA:
// cpu_default, cpu_avx2, cpu_avx512 or cuda). No two instruction sets can then share a symbol, so
// the linker can never hand code compiled for AVX-512 to a machine without it.
#pragma once

#include <stdint.h>

#ifndef FASTSCORE_ISA
#error "define FASTSCORE_ISA to the name of the instruction set being compiled"
#endif

#if defined(__CUDACC__)
#define FASTSCORE_FN __host__ __device__ __forceinline__
#else
#define FASTSCORE_FN inline __attribute__((always_inline))
#endif
