// The lanes of the instruction set that this unit is compiled for.
#pragma once

#if defined(FASTSCORE_LANES_AVX512)
#include "lanes_avx512.h"
#elif defined(FASTSCORE_LANES_AVX2)
#include "lanes_avx2.h"
#else
#include "lanes_default.h"
#endif
