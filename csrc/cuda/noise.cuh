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

// The normals of V elements from flat index `flat` on, a multiple of 4.
template <int V>
__device__ __forceinline__ void normals(const NoiseKey& key, int64_t flat, float (&z)[V]) {
#pragma unroll
  for (int b = 0; b < V / kNormalsPerBlock; ++b) {
    float block[kNormalsPerBlock];
    normal_block(key, static_cast<uint64_t>(flat) / kNormalsPerBlock + b, block);
#pragma unroll
    for (int j = 0; j < kNormalsPerBlock; ++j) z[kNormalsPerBlock * b + j] = block[j];
  }
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
