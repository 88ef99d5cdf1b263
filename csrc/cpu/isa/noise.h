// A tile of noise: the normals (uniforms, signs) of a run of consecutive flat indices, made in a
// buffer that stays in the first-level cache. Making them there costs one store and one load per
// vector and lets every kernel be a plain loop.
#pragma once

#include "lanes.h"

namespace fastscore::FASTSCORE_ISA {

// Tiles start at multiples of kTile of the flat index, which no block counter's low word can
// cross 2^32 within.
constexpr int64_t kTile = 1024;
constexpr int kGroup = kBlocksPerGroup * kNormalsPerBlock;

struct MakeNormals {
  FASTSCORE_FN void operator()(LaneU w0, LaneU w1, LaneF& z0, LaneF& z1) const {
    box_muller<LaneF>(w0, w1, z0, z1);
  }
};

struct MakeUniforms {
  FASTSCORE_FN void operator()(LaneU w0, LaneU w1, LaneF& z0, LaneF& z1) const {
    z0 = uniform_of<LaneF>(w0);
    z1 = uniform_of<LaneF>(w1);
  }
};

template <class Make>
FASTSCORE_FN void make_group(const NoiseKey& key, uint64_t block, const Make& make, float* out) {
  PhiloxBlock<LaneW> words[kChains];
  for (int chain = 0; chain < kChains; ++chain) {
    words[chain] = {first_counter(static_cast<uint32_t>(block), chain),
                    broadcast<LaneW>(static_cast<uint32_t>(block >> 32)),
                    broadcast<LaneW>(key.draw), broadcast<LaneW>(key.stream)};
  }
  // Round by round over all chains: independent work hides the multiplier's latency.
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int chain = 0; chain < kChains; ++chain) {
      words[chain] = philox_round(words[chain], key.seed_low + round * kPhiloxW0,
                                  key.seed_high + round * kPhiloxW1);
    }
  }
  const auto &a = words[0], &b = words[kChains - 1];
  LaneF z0, z1, z2, z3;
  make(merge(a.w0, b.w0), merge(a.w1, b.w1), z0, z1);
  make(merge(a.w2, b.w2), merge(a.w3, b.w3), z2, z3);
  store_group(out, z0, z1, z2, z3);
}

// Holds the noise of flat indices [begin, end) of one tile.
struct NoiseTile {
  alignas(64) float values[kTile];

  // Fills the tile and returns where element `begin` lies. begin and end lie in one tile.
  template <class Make>
  const float* fill(const NoiseKey& key, const Make& make, int64_t begin, int64_t end) {
    const int64_t origin = begin - begin % kTile;
    const int64_t first = (begin - origin) / kGroup * kGroup;
    for (int64_t i = first; i < end - origin; i += kGroup) {
      make_group(key, static_cast<uint64_t>(origin + i) / kNormalsPerBlock, make, values + i);
    }
    return values + (begin - origin);
  }

  const float* normals(const NoiseKey& key, int64_t begin, int64_t end) {
    return fill(key, MakeNormals{}, begin, end);
  }

  const float* uniforms(const NoiseKey& key, int64_t begin, int64_t end) {
    return fill(key, MakeUniforms{}, begin, end);
  }

  // Rademacher signs, +1 where the bit is set.
  const float* signs(const NoiseKey& key, int64_t begin, int64_t end);
};

}  // namespace fastscore::FASTSCORE_ISA
