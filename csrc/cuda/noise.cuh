// Noise on the device. Seed and draw are read from the key tensor there, so that a captured graph
// which advances the key draws fresh noise at each replay.
#pragma once

#include "core/random.h"
#include "core/streams.h"

namespace fastscore::FASTSCORE_ISA {

struct NoiseSource {
  const int64_t* key;  // seed, draw
  Stream stream;
  int64_t origin;  // flat index of the tensor's first element
};

__device__ __forceinline__ NoiseKey noise_key(const int64_t* key, Stream stream) {
  const uint64_t seed = static_cast<uint64_t>(key[0]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(key[1]), static_cast<uint32_t>(stream)};
}
__device__ __forceinline__ NoiseKey noise_key(const NoiseSource& source) {
  return noise_key(source.key, source.stream);
}

// Several blocks at once, round by round: each round's key is made once for all.
template <int kBlocks>
__device__ __forceinline__ void philox_blocks(const NoiseKey& key,
                                              const uint64_t (&numbers)[kBlocks],
                                              PhiloxBlock<uint32_t> (&w)[kBlocks]) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    w[b] = {static_cast<uint32_t>(numbers[b]), static_cast<uint32_t>(numbers[b] >> 32), key.draw,
            key.stream};
  }
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t k0 = key.seed_low + round * kPhiloxW0, k1 = key.seed_high + round * kPhiloxW1;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) w[b] = philox_round(w[b], k0, k1);
  }
}

// The normals of kPacks packs of V elements, the first at flat index `flat`, a multiple of 4, and
// each `apart` elements behind the one before.
template <int kPacks, int V>
__device__ __forceinline__ void normals(const NoiseKey& key, int64_t flat, int64_t apart,
                                        float (&z)[kPacks][V]) {
  constexpr int kEach = V / kNormalsPerBlock, kBlocks = kPacks * kEach;
  uint64_t numbers[kBlocks];
  PhiloxBlock<uint32_t> w[kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    numbers[b] = static_cast<uint64_t>(flat + b / kEach * apart) / kNormalsPerBlock + b % kEach;
  }
  philox_blocks(key, numbers, w);
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    float* block = z[b / kEach] + b % kEach * kNormalsPerBlock;
    box_muller(w[b].w0, w[b].w1, block[0], block[1]);
    box_muller(w[b].w2, w[b].w3, block[2], block[3]);
  }
}

// The normals of V elements from flat index `flat` on.
template <int V>
__device__ __forceinline__ void normals(const NoiseKey& key, int64_t flat, float (&z)[V]) {
  float pack[1][V];
  normals(key, flat, 0, pack);
#pragma unroll
  for (int j = 0; j < V; ++j) z[j] = pack[0][j];
}

// The same for uniforms.
template <int V>
__device__ __forceinline__ void uniforms(const NoiseKey& key, int64_t flat, float (&z)[V]) {
#pragma unroll
  for (int b = 0; b < V / kNormalsPerBlock; ++b) {
    const PhiloxBlock<uint32_t> w =
        philox_block(key, static_cast<uint64_t>(flat) / kNormalsPerBlock + b);
#pragma unroll
    for (uint32_t j = 0; j < kNormalsPerBlock; ++j) {
      z[kNormalsPerBlock * b + j] = uniform_of<float>(word_of(w, j));
    }
  }
}

// And for signs: `flat` is a multiple of V, so that all lie in one word.
template <int V>
__device__ __forceinline__ void signs(const NoiseKey& key, int64_t flat, float (&z)[V]) {
  const PhiloxBlock<uint32_t> w = philox_block(key, static_cast<uint64_t>(flat) / kSignsPerBlock);
  const uint32_t bit = static_cast<uint32_t>(flat) % kSignsPerBlock;
  const uint32_t clear = ~(word_of(w, bit / 32) >> (bit % 32));
#pragma unroll
  for (int j = 0; j < V; ++j) {
    z[j] = float_from_bits(0x3f800000u | ((clear << (31 - j)) & 0x80000000u));
  }
}

}  // namespace fastscore::FASTSCORE_ISA
