// The noise of short samples that each draw on their own, by their number or by their key: the
// blocks that they need are listed, made a vector at a time, each lane with its own counter (and
// key), and every sample takes its elements from there.
#pragma once

#include "core/sliced.h"
#include "tile.h"

namespace fastscore::FASTSCORE_ISA {

// How a draw number comes from a key's own: see projection_key.
struct DrawRule {
  uint32_t factor = 1, term = 0;
};

// The blocks of one tile's samples, kPerBlock elements each.
template <int kPerBlock>
class SampleBlocks {
 public:
  // Lists the blocks of samples [first, first + count). A block that the sample before ended with,
  // as of neighbours it often is, serves both.
  FASTSCORE_FN void list(const NoiseArgs& noise, const DrawRule& rule, int64_t first,
                         int64_t count) {
    if (noise.keys) {
      list_by<true>(noise, rule, first, count);
    } else {
      list_by<false>(noise, rule, first, count);
    }
  }

  // Makes the numbers of all blocks.
  template <class Make>
  FASTSCORE_FN void make(const NoiseKey& key, bool keyed, const Make& make) {
    for (int k = 0; k < used_; k += kTogether) {
      if (keyed) {
        make_keyed_words(key, k);
        make_keyed_words(key, k + kTogether / 2);
      } else {
        make_words(key, k);
      }
      for (int g = 0; g < kGroups; ++g) make_numbers(make, numbers_ + 4 * k + g * kGroup);
    }
  }

  // Where the elements of sample s, or their bits, begin.
  FASTSCORE_FN const float* numbers(int64_t s) const { return numbers_ + place_[s]; }
  FASTSCORE_FN uint32_t bits(int64_t s) const {
    uint64_t pair;
    memcpy(&pair, numbers_ + place_[s] / 32, sizeof pair);
    return static_cast<uint32_t>(pair >> (place_[s] % 32));
  }

 private:
  static constexpr int kGroups = 4, kTogether = kGroups * kBlocksPerGroup;
  static constexpr int kLanes = kBlocksPerGroup / kChains;

  // Every sample writes as many blocks as any of its size can lie in, and counts those that it
  // does: a loop of ever the same length costs no wrong guesses. The next one writes over the rest.
  template <bool kKeyed>
  FASTSCORE_FN void list_by(const NoiseArgs& noise, const DrawRule& rule, int64_t first,
                            int64_t count) {
    const uint64_t size = static_cast<uint64_t>(noise.sample_size);
    // Samples start at multiples of what size and block have in common; with keys, at 0.
    const uint64_t step = size & (0 - size);
    const uint64_t last_start = kKeyed || step >= kPerBlock ? 0 : kPerBlock - step;
    const int most = static_cast<int>((last_start + size - 1) / kPerBlock) + 1;
    uint64_t last = 0, seed = 0, draw = 0;
    int used = 0;
    for (int64_t s = 0; s < count; ++s) {
      const uint64_t old_seed = seed, old_draw = draw;
      uint64_t flat = 0;
      if (kKeyed) {
        seed = static_cast<uint64_t>(noise.keys[2 * (first + s)]);
        draw = static_cast<uint32_t>(noise.keys[2 * (first + s) + 1]) * rule.factor + rule.term;
      } else {
        flat = static_cast<uint64_t>(noise.numbers[first + s]) * size;
      }
      const uint64_t block = flat / kPerBlock;
      const bool same_key = !kKeyed || (seed == old_seed && draw == old_draw);
      const int start = used - static_cast<int>((s > 0) & (block == last) & same_key);
      place_[s] = start * kPerBlock + static_cast<int>(flat % kPerBlock);
      last = (flat + size - 1) / kPerBlock;
      for (int k = 0; k < most; ++k) {
        const int at = lane_of(start + k);
        blocks_[at] = block + k;
        if (kKeyed) {
          seeds_[at] = seed;
          draws_[at] = draw;
        }
      }
      used = start + static_cast<int>(last - block) + 1;
    }
    used_ = (used + kTogether - 1) / kTogether * kTogether;
    for (; used < used_; ++used) {
      const int at = lane_of(used);
      blocks_[at] = seeds_[at] = draws_[at] = 0;
    }
  }

  // Where block number k of the list goes: see first_counter.
  static FASTSCORE_FN int lane_of(int k) {
    if (kChains == 1) return k;
    const int in_group = k % kBlocksPerGroup;
    return k - in_group + in_group % kLanes * kChains + in_group / kLanes;
  }

  // The words of blocks from number k on, all of one key, as make_words of noise.h makes them.
  FASTSCORE_FN void make_words(const NoiseKey& key, int k) {
    constexpr int kAll = kGroups * kChains;
    PhiloxBlock<LaneW> words[kAll];
#pragma GCC unroll 8
    for (int i = 0; i < kAll; ++i) {
      const LaneP block = load_wide(blocks_ + k + i * kLanes);
      words[i] = {low_word(block), high_word(block), broadcast<LaneW>(key.draw),
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
    store_groups(words, k);
  }

  // The same for half as many blocks, each with a key of its own.
  FASTSCORE_FN void make_keyed_words(const NoiseKey& key, int k) {
    constexpr int kAll = kGroups / 2 * kChains;
    PhiloxBlock<LaneW> words[kAll];
    LaneW low[kAll], high[kAll];
#pragma GCC unroll 4
    for (int i = 0; i < kAll; ++i) {
      const int at = k + i * kLanes;
      const LaneP block = load_wide(blocks_ + at), seed = load_wide(seeds_ + at);
      words[i] = {low_word(block), high_word(block), low_word(load_wide(draws_ + at)),
                  broadcast<LaneW>(key.stream)};
      low[i] = low_word(seed);
      high[i] = high_word(seed);
    }
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 4
      for (int i = 0; i < kAll; ++i) {
        words[i] = philox_round_by(words[i], low[i], high[i]);
        low[i] = low[i] + broadcast<LaneW>(kPhiloxW0);
        high[i] = high[i] + broadcast<LaneW>(kPhiloxW1);
      }
    }
    store_groups(words, k);
  }

  template <int kAll>
  FASTSCORE_FN void store_groups(const PhiloxBlock<LaneW> (&words)[kAll], int k) {
#pragma GCC unroll 4
    for (int g = 0; g < kAll / kChains; ++g) {
      const auto &a = words[g * kChains], &b = words[g * kChains + kChains - 1];
      float* to = numbers_ + 4 * k + g * kGroup;
      store_words(to, merge(a.w0, b.w0));
      store_words(to + kGroup / 4, merge(a.w1, b.w1));
      store_words(to + 2 * kGroup / 4, merge(a.w2, b.w2));
      store_words(to + 3 * kGroup / 4, merge(a.w3, b.w3));
    }
  }

  // A tile of the shortest samples has a block for each; of longer ones, less.
  static constexpr int kMost = kTile + 2 * kTogether;
  alignas(64) uint64_t blocks_[kMost], seeds_[kMost], draws_[kMost];
  alignas(64) float numbers_[4 * kMost + kMargin];
  int place_[kTile];
  int used_ = 0;
};

// kWidth numbers for each sample, those beyond it overwritten by the next one's.
template <int kWidth, class Blocks>
FASTSCORE_FN void take_numbers(const Blocks& blocks, int64_t count, int64_t size, float* out) {
  for (int64_t s = 0; s < count; ++s) {
    memcpy(out + s * size, blocks.numbers(s), kWidth * sizeof(float));
  }
}
template <int kWidth, class Blocks>
FASTSCORE_FN void take_signs(const Blocks& blocks, int64_t count, int64_t size, float* out) {
  for (int64_t s = 0; s < count; ++s) {
    const uint32_t bits = blocks.bits(s);
    for (int k = 0; k < kWidth; ++k) out[s * size + k] = flip_sign(1.0f, sign_of_bit(bits, k));
  }
}

// The numbers of elements [begin, begin + count), which are whole samples.
template <class Make>
__attribute__((noinline)) void sample_numbers(const NoiseArgs& noise, const NoiseKey& key,
                                              const DrawRule& rule, const Make& make, int64_t begin,
                                              int64_t count, NoiseTile& out) {
  const int64_t size = noise.sample_size, samples = count / size;
  SampleBlocks<kNormalsPerBlock> blocks;
  blocks.list(noise, rule, begin / size, samples);
  blocks.make(key, noise.keys, make);
  if (size <= 4) return take_numbers<4>(blocks, samples, size, out.values);
  if (size <= 8) return take_numbers<8>(blocks, samples, size, out.values);
  take_numbers<16>(blocks, samples, size, out.values);
}

template <class Tile>
__attribute__((noinline)) void sample_signs(const NoiseArgs& noise, const NoiseKey& key,
                                            const DrawRule& rule, int64_t begin, int64_t count,
                                            Tile& out) {
  const int64_t size = noise.sample_size, samples = count / size;
  SampleBlocks<kSignsPerBlock> blocks;
  blocks.list(noise, rule, begin / size, samples);
  blocks.make(key, noise.keys, KeepWords());
  if (size <= 4) return take_signs<4>(blocks, samples, size, out.values);
  if (size <= 8) return take_signs<8>(blocks, samples, size, out.values);
  take_signs<16>(blocks, samples, size, out.values);
}

// The normals of a tile that for_each_tile gives out, however its samples draw.
template <class Ahead = NothingAhead>
FASTSCORE_FN const float* normals_of(NoiseTile& tile, const NoiseArgs& noise, const NoiseKey& key,
                                     int64_t flat, int64_t begin, int64_t count,
                                     const Ahead& ahead = Ahead{}, const DrawRule& rule = {}) {
  if (!noise.each) return tile.normals(key, flat, flat + count, ahead);
  sample_numbers(noise, key, rule, MakeNormals(), begin, count, tile);
  return tile.values;
}

}  // namespace fastscore::FASTSCORE_ISA
