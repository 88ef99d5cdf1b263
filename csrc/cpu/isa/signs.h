// Rademacher signs as bits: 32 to a word, in the order of the flat index. A sign costs a shift and
// an exclusive or where it is applied, instead of a load.
#pragma once

#include "core/sliced.h"
#include "noise.h"

namespace fastscore::FASTSCORE_ISA {

// Signs are made for several tiles at once: few of them would leave the multiplier waiting.
constexpr int64_t kSignRun = 8 * kTile;

// The bits of flat indices [begin, end) of one run of kSignRun.
class SignRun {
 public:
  SignRun() { words_[kWords] = 0; }

  void fill(const NoiseKey& key, int64_t begin, int64_t end) {
    constexpr int64_t kStep = kBlocksPerGroup * kSignsPerBlock;
    origin_ = begin - begin % kSignRun;
    const int64_t last = end - origin_;
    int64_t i = (begin - origin_) / kStep * kStep;
    for (; i + 3 * kStep < last; i += 4 * kStep) make_bits<4>(key, i);
    for (; i < last; i += kStep) make_bits<1>(key, i);
    seek(begin);
  }

  // Counts elements from flat index `flat`, which lies in the run, from here on.
  FASTSCORE_FN void seek(int64_t flat) { offset_ = flat - origin_; }

  // The bits of elements [i, i + 32), counted from where fill or seek
  // left, the first in the lowest place.
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
  template <int kGroups>
  FASTSCORE_FN void make_bits(const NoiseKey& key, int64_t i) {
    float* words = words_ + i / 32;
    make_words<kGroups>(key, static_cast<uint64_t>(origin_ + i) / kSignsPerBlock, words);
    for (int g = 0; g < kGroups; ++g) make_numbers(KeepWords(), words + g * kGroup);
  }

  static constexpr int64_t kWords = kSignRun / 32;
  alignas(64) float words_[kWords + 2];  // word() reads one more
  int64_t origin_ = 0, offset_ = 0;
};

}  // namespace fastscore::FASTSCORE_ISA
