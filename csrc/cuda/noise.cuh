// Noise on the device. Seed and draw are read from the key tensor there, so that a captured graph
// which advances the key draws fresh noise at each replay.
#pragma once

#include "core/random.h"
#include "core/streams.h"
#include "cuda/divider.cuh"

namespace fastscore::FASTSCORE_ISA {

// What one sample draws with: element i of the tensor has flat index origin + i.
struct OwnNoise {
  NoiseKey key;
  int64_t origin;
};

__device__ __forceinline__ NoiseKey noise_key(const int64_t* key, Stream stream) {
  const uint64_t seed = static_cast<uint64_t>(key[0]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(key[1]), static_cast<uint32_t>(stream)};
}

struct NoiseSource {
  const int64_t* key;  // seed, draw; or those of each sample
  Stream stream;
  int64_t origin;  // flat index of the tensor's first element; 0 where each sample has its own
  // Samples that draw on their own: by their numbers, or where these are null by their keys.
  bool each;
  const int64_t* numbers;
  Divider sample_size;

  __device__ __forceinline__ bool keyed() const { return each && !numbers; }

  // Nobody has looked at the numbers: of a wrong one the index wraps.
  __device__ __forceinline__ OwnNoise own(int64_t sample) const {
    const uint64_t number = numbers ? static_cast<uint64_t>(numbers[sample]) : 0;
    const uint64_t origin =
        (number - static_cast<uint64_t>(sample)) * static_cast<uint64_t>(sample_size.divisor);
    return {noise_key(numbers ? key : key + 2 * sample, stream), static_cast<int64_t>(origin)};
  }

  // The same where they may draw together.
  __device__ __forceinline__ OwnNoise of(int64_t sample) const {
    return each ? own(sample) : OwnNoise{noise_key(key, stream), origin};
  }
  __device__ __forceinline__ int64_t origin_of(int64_t sample) const {
    return each ? own(sample).origin : origin;
  }
};

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
