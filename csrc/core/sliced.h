// Sliced score matching (Song, Garg, Shi and Ermon 2019), per sample and projection m:
//   v'Jv,   (v's)^2 / 2,   |s|^2 / 2,   with v of stream PROJECTION and draw number draw M + m;
//   backward, with c_m the gradient of v's:   g_s = g_3 s + sum_m c_m v_m,   g_(Jv) = g_1 v.
#pragma once

#include "projections.h"
#include "random.h"

namespace fastscore::FASTSCORE_ISA {

// The key of projection m of M.
FASTSCORE_FN NoiseKey projection_key(NoiseKey key, int64_t projections, int64_t m) {
  key.draw = key.draw * static_cast<uint32_t>(projections) + static_cast<uint32_t>(m);
  return key;
}

// A word whose top bit is set where the Rademacher sign of bit k of `word` is -1.
FASTSCORE_FN uint32_t sign_of_bit(uint32_t word, int k) { return ~word << (31 - k); }

// sqrt(d) / |g|. Were all of g 0, v would be 0.
FASTSCORE_FN float sphere_radius(int64_t d, double square_norm) {
  return static_cast<float>(square_norm > 0 ? ::sqrt(static_cast<double>(d) / square_norm) : 0);
}

}  // namespace fastscore::FASTSCORE_ISA
