// Rademacher signs as bits: 32 to a word, in the order of the flat index. A sign costs a shift and
// an exclusive or where it is applied, instead of a load.
#pragma once

#include "core/sliced.h"
#include "noise.h"

namespace fastscore::FASTSCORE_ISA {

// Keeps the words as they are; they travel through float registers.
struct MakeBits {
  FASTSCORE_FN void operator()(LaneU w0, LaneU w1, LaneF& z0, LaneF& z1) const {
    z0 = float_from_bits(w0);
    z1 = float_from_bits(w1);
  }
};

// The bits of flat indices [begin, end) of one tile.
class SignTile {
 public:
  SignTile() { words_[kWords] = 0; }

  // begin and end lie in one tile.
  void fill(const NoiseKey& key, int64_t begin, int64_t end) {
    constexpr int64_t kStep = kBlocksPerGroup * kSignsPerBlock;
    const int64_t origin = begin - begin % kTile;
    offset_ = begin - origin;
    for (int64_t i = offset_ / kStep * kStep; i < end - origin; i += kStep) {
      const uint64_t block = static_cast<uint64_t>(origin + i) / kSignsPerBlock;
      make_words<1>(key, block, words_ + i / 32);
      make_numbers(MakeBits(), words_ + i / 32);
    }
  }

  // The bits of elements [i, i + 32), counted from `begin`, the first in the lowest place.
  FASTSCORE_FN uint32_t word(int64_t i) const {
    const uint64_t at = static_cast<uint64_t>(offset_ + i);
    uint64_t pair;
    memcpy(&pair, words_ + at / 32, sizeof pair);
    return static_cast<uint32_t>(pair >> (at % 32));
  }

  // The first n signs as numbers.
  template <class T>
  FASTSCORE_FN void write(int64_t n, T* out) const {
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
      const uint32_t bits = word(i);
      for (int k = 0; k < 32; ++k) out[i + k] = flip_sign(1.0f, sign_of_bit(bits, k));
    }
    const uint32_t bits = i < n ? word(i) : 0;
    for (int k = 0; k < n - i; ++k) out[i + k] = flip_sign(1.0f, sign_of_bit(bits, k));
  }

 private:
  static constexpr int64_t kWords = kTile / 32;
  // One word more for word(), and the whole of a group.
  alignas(64) float words_[2 * kWords > kGroup ? 2 * kWords : kGroup];
  int64_t offset_ = 0;
};

}  // namespace fastscore::FASTSCORE_ISA
