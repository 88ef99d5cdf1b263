// A tile of noise: the normals (uniforms, signs) of a run of consecutive flat indices, made in a
// buffer that stays in the first-level cache. Making them there costs one store and one load per
// vector and lets every kernel be a plain loop.
#pragma once

#include "lanes.h"

namespace fastscore::FASTSCORE_ISA {

// Tiles start at multiples of kTile of the flat index, which no block counter's low word can
// cross 2^32 within.
constexpr int64_t kTile = 1024;
// Room beside a tile for the widest store of a short sample's numbers, or load of its terms.
constexpr int kMargin = 16;
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

// The words themselves, which travel through float registers.
struct KeepWords {
  FASTSCORE_FN void operator()(LaneU w0, LaneU w1, LaneF& z0, LaneF& z1) const {
    z0 = float_from_bits(w0);
    z1 = float_from_bits(w1);
  }
};

// The words of `groups` groups, round by round over all their chains: independent work hides the
// multiplier's latency. A group's words go to out[0], out[kGroup / 4], ... : one lane vector each.
template <int kGroups>
FASTSCORE_FN void make_words(const NoiseKey& key, uint64_t block, float* out) {
  constexpr int kAll = kGroups * kChains;
  PhiloxBlock<LaneW> words[kAll];
#pragma GCC unroll 8
  for (int i = 0; i < kAll; ++i) {
    const uint32_t first = static_cast<uint32_t>(block) + i / kChains * kBlocksPerGroup;
    words[i] = {first_counter(first, i % kChains),
                broadcast<LaneW>(static_cast<uint32_t>(block >> 32)), broadcast<LaneW>(key.draw),
                broadcast<LaneW>(key.stream)};
  }
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < kAll; ++i) {
      words[i] = philox_round(words[i], key.seed_low + round * kPhiloxW0,
                              key.seed_high + round * kPhiloxW1);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
    const auto &a = words[g * kChains], &b = words[g * kChains + kChains - 1];
    float* to = out + g * kGroup;
    store_words(to, merge(a.w0, b.w0));
    store_words(to + kGroup / 4, merge(a.w1, b.w1));
    store_words(to + 2 * kGroup / 4, merge(a.w2, b.w2));
    store_words(to + 3 * kGroup / 4, merge(a.w3, b.w3));
  }
}

// Turns a group's words into its numbers, in place and in natural order.
template <class Make>
FASTSCORE_FN void make_numbers(const Make& make, float* group) {
  const LaneU w0 = load_words(group), w1 = load_words(group + kGroup / 4);
  const LaneU w2 = load_words(group + 2 * kGroup / 4), w3 = load_words(group + 3 * kGroup / 4);
  LaneF z0, z1, z2, z3;
  make(w0, w1, z0, z1);
  make(w2, w3, z2, z3);
  store_group(group, z0, z1, z2, z3);
}

struct NothingAhead {
  FASTSCORE_FN void operator()(int64_t) const {}
};

// Holds the noise of flat indices [begin, end) of one tile.
struct NoiseTile {
  alignas(64) float values[kTile + kMargin];

  // Fills the tile and returns where element `begin` lies. begin and end lie in one tile. ahead(i)
  // is called as group i of the tile is made: the time to ask memory for what will meet the noise.
  template <class Make, class Ahead>
  const float* fill(const NoiseKey& key, const Make& make, int64_t begin, int64_t end,
                    const Ahead& ahead) {
    const int64_t origin = begin - begin % kTile;
    const int64_t first = (begin - origin) / kGroup * kGroup;
    const int64_t last = end - origin;
    // Two passes over the cached tile: each loop has few live values and much independent work.
    int64_t i = first;
    for (; i + 3 * kGroup < last; i += 4 * kGroup) {
      make_words<4>(key, block_of(origin + i), values + i);
    }
    for (; i + kGroup < last; i += 2 * kGroup) {
      make_words<2>(key, block_of(origin + i), values + i);
    }
    if (i < last) make_words<1>(key, block_of(origin + i), values + i);
    for (i = first; i < last; i += kGroup) {
      ahead(i);
      make_numbers(make, values + i);
    }
    return values + (begin - origin);
  }

  template <class Ahead = NothingAhead>
  const float* normals(const NoiseKey& key, int64_t begin, int64_t end,
                       const Ahead& ahead = Ahead{}) {
    return fill(key, MakeNormals{}, begin, end, ahead);
  }

  const float* uniforms(const NoiseKey& key, int64_t begin, int64_t end) {
    return fill(key, MakeUniforms{}, begin, end, NothingAhead{});
  }

  // The bits of each element's word.
  const float* words(const NoiseKey& key, int64_t begin, int64_t end) {
    return fill(key, KeepWords{}, begin, end, NothingAhead{});
  }

  static uint64_t block_of(int64_t flat) { return static_cast<uint64_t>(flat) / kNormalsPerBlock; }
};

}  // namespace fastscore::FASTSCORE_ISA
