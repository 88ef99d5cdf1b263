// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011), on any word type that has mul_wide, high_word, low_word and xor3.
#pragma once

#include "scalar.h"

namespace fastscore::FASTSCORE_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;  // golden ratio
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;  // sqrt(3) - 1
constexpr int kPhiloxRounds = 10;

// Which random numbers: everything but the element's own block number.
struct NoiseKey {
  uint32_t seed_low, seed_high;
  uint32_t draw;    // step or projection number
  uint32_t stream;  // what the numbers are for, see random.h
};

template <class W>
struct PhiloxBlock {
  W w0, w1, w2, w3;
};

// One round, each lane by its own key.
template <class W>
FASTSCORE_FN PhiloxBlock<W> philox_round_by(const PhiloxBlock<W>& c, W k0, W k1) {
  const auto p0 = mul_wide(c.w0, broadcast<W>(kPhiloxM0));
  const auto p1 = mul_wide(c.w2, broadcast<W>(kPhiloxM1));
  return {xor3(high_word(p1), c.w1, k0), low_word(p1), xor3(high_word(p0), c.w3, k1), low_word(p0)};
}

template <class W>
FASTSCORE_FN PhiloxBlock<W> philox_round(const PhiloxBlock<W>& c, uint32_t k0, uint32_t k1) {
  return philox_round_by(c, broadcast<W>(k0), broadcast<W>(k1));
}

template <class W>
FASTSCORE_FN PhiloxBlock<W> philox(PhiloxBlock<W> counter, uint32_t k0, uint32_t k1) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, k0 + round * kPhiloxW0, k1 + round * kPhiloxW1);
  }
  return counter;
}

// The four words of one block, for the scalar lane.
FASTSCORE_FN PhiloxBlock<uint32_t> philox_block(const NoiseKey& key, uint64_t block) {
  const PhiloxBlock<uint32_t> counter = {static_cast<uint32_t>(block),
                                         static_cast<uint32_t>(block >> 32), key.draw, key.stream};
  return philox(counter, key.seed_low, key.seed_high);
}

}  // namespace fastscore::FASTSCORE_ISA
