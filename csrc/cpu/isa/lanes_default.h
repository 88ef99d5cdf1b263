// The portable lane: one block at a time through the scalar functions.
#pragma once

#include "core/random.h"

namespace fastscore::FASTSCORE_ISA {

using LaneU = uint32_t;
using LaneF = float;
using LaneW = uint32_t;
using LaneP = uint64_t;

constexpr int kChains = 1;
constexpr int kBlocksPerGroup = 1;

FASTSCORE_FN void load(const float* in, LaneF& x) { x = *in; }
FASTSCORE_FN void store(float* out, LaneF x) { *out = x; }
// The first n of 32 numbers, then zeros.
FASTSCORE_FN void load_first(const float* in, int n, float* out) {
  for (int k = 0; k < 32; ++k) out[k] = k < n ? in[k] : 0;
}
FASTSCORE_FN LaneU load_words(const void* in) {
  LaneU u;
  memcpy(&u, in, sizeof u);
  return u;
}
FASTSCORE_FN void store_words(void* out, LaneU u) { memcpy(out, &u, sizeof u); }
FASTSCORE_FN LaneP load_wide(const uint64_t* in) { return *in; }
FASTSCORE_FN LaneW first_counter(uint32_t block, int) { return block; }
FASTSCORE_FN LaneU merge(LaneW only, LaneW) { return only; }

FASTSCORE_FN void store_group(float* out, LaneF z0, LaneF z1, LaneF z2, LaneF z3) {
  out[0] = z0;
  out[1] = z1;
  out[2] = z2;
  out[3] = z3;
}

}  // namespace fastscore::FASTSCORE_ISA
