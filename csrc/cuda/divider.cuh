// Division by a number known at launch.
#pragma once

#include <stdint.h>

#include "core/config.h"

namespace fastscore::FASTSCORE_ISA {

// Divides numbers from 0 to 2^63 - 1 by a multiplication (Granlund and Montgomery 1994).
struct Divider {
  int64_t divisor;
  uint64_t multiplier;
  int32_t shift;

  // A divisor of 0 counts as 1.
  static Divider by(int64_t d) {
    const uint64_t divisor = d > 0 ? static_cast<uint64_t>(d) : 1;
    int32_t shift = 0;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const unsigned __int128 above = (uint64_t{1} << shift) - divisor;
    return {static_cast<int64_t>(divisor), static_cast<uint64_t>((above << 64) / divisor) + 1,
            shift};
  }

  __device__ __forceinline__ int64_t operator()(int64_t n) const {
    const uint64_t u = static_cast<uint64_t>(n);
    return static_cast<int64_t>((__umul64hi(u, multiplier) + u) >> shift);
  }
};

}  // namespace fastscore::FASTSCORE_ISA
