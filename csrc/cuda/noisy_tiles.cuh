// The packs of a tile together with their normals.
#pragma once

#include "cuda/sample_noise.cuh"
#include "cuda/tiles.cuh"

namespace fastscore::FASTSCORE_ISA {

// Of how many packs the normals are best drawn at once: eight normals, so that two blocks share
// the rounds' keys and hide each other's latency. More would not fit the registers.
template <class Access>
constexpr int kPacksTogether = Access::V == 4 ? Access::kAtOnce : 1;

// Calls body(u, range, z) for each of this thread's packs that has elements.
template <int kTogether, bool kEach, class Access, class Whole, class Body>
__device__ __forceinline__ void for_each_noisy_pack(const NoiseKey& key, const NoiseSource& source,
                                                    const Tile<Access>& tile, Whole whole,
                                                    const Body& body) {
  constexpr int V = Access::V;
  static_assert(Access::kAtOnce % kTogether == 0);
  if constexpr (kEach) {
#pragma unroll
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u, whole);
      if (range.empty()) continue;
      float z[V];
      draw<Normal, true>(source, key, range, z);
      body(u, range, z);
    }
  } else {
#pragma unroll
    for (int first = 0; first < Access::kAtOnce; first += kTogether) {
      float z[kTogether][V];
      normals(key, source.origin + tile.range(first, whole).i, kThreads * V, z);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const Range range = tile.range(first + k, whole);
        if (!range.empty()) body(first + k, range, z[k]);
      }
    }
  }
}

}  // namespace fastscore::FASTSCORE_ISA
