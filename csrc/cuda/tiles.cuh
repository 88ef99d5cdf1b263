// How elementwise kernels share out a tensor. Packs are cut at multiples of their size in the flat
// index, so that each is made of whole blocks of noise. Thread t of a block takes the t-th pack of
// a tile and every kThreads-th after it: a warp's accesses touch one piece of memory.
#pragma once

#include "cuda/access.cuh"
#include "cuda/launch.h"

namespace fastscore::FASTSCORE_ISA {

// A tile: kAtOnce packs for each thread of a block.
template <class Access>
constexpr int64_t kTileElements = int64_t{kThreads} * Access::V * Access::kAtOnce;

// How many tiles the elements lie in, the first of them at flat index `origin`.
template <class Access>
int64_t tile_count(int64_t origin, int64_t numel) {
  return ceil_div(origin % Access::V + numel, kTileElements<Access>);
}

// The tiles of one block, by default in a grid that loops over all.
template <class Access>
class Tiles {
 public:
  static constexpr int V = Access::V;

  __device__ __forceinline__ Tiles(int64_t origin, int64_t numel)
      : Tiles(origin, numel, blockIdx.x) {}
  __device__ __forceinline__ Tiles(int64_t origin, int64_t numel, int64_t first_tile)
      : numel_(numel), begin_(first_tile * kTileElements<Access> - origin % V) {}

  __device__ __forceinline__ bool inside() const { return begin_ < numel_; }
  __device__ __forceinline__ void next() { advance(gridDim.x); }
  __device__ __forceinline__ void advance(int64_t tiles) {
    begin_ += tiles * kTileElements<Access>;
  }

  // Elements [begin, end) are those of this tile and the `count` - 1 behind it.
  __device__ __forceinline__ int64_t begin() const { return begin_ < 0 ? 0 : begin_; }
  __device__ __forceinline__ int64_t end(int64_t count) const {
    const int64_t left = numel_ - begin_, size = count * kTileElements<Access>;
    return begin_ + (left < size ? left : size);
  }

  // Whether all elements of the tile exist and its packs move whole: the same for all threads.
  __device__ __forceinline__ bool whole() const {
    return Access::kMovesWhole && begin_ >= 0 && begin_ + kTileElements<Access> <= numel_;
  }

  // This thread's pack number u.
  __device__ __forceinline__ Range range(int u) const {
    const int64_t i = begin_ + u * kThreads * V + threadIdx.x * V, left = numel_ - i;
    return {i, i < 0 ? static_cast<int>(-i) : 0,
            left >= V ? V : (left > 0 ? static_cast<int>(left) : 0)};
  }

  // Whether the pack has any elements.
  __device__ __forceinline__ bool has(const Range& range) const {
    return whole() || range.low < range.high;
  }

  // Loads this thread's packs.
  template <class From>
  __device__ __forceinline__ void load(const From& from,
                                       typename From::Raw (&raw)[Access::kAtOnce]) const {
    if (whole()) {
#pragma unroll
      for (int u = 0; u < Access::kAtOnce; ++u) raw[u] = from.load(range(u), true);
    } else {
#pragma unroll
      for (int u = 0; u < Access::kAtOnce; ++u) raw[u] = from.load(range(u), false);
    }
  }

 private:
  int64_t numel_, begin_;
};

// Calls body(j, row) for each element of a pack, with load(sample) of the sample that it is of.
template <int V, class Load, class Body>
__device__ __forceinline__ void for_each_sample(const Divider& sample_size, const Range& r,
                                                const Load& load, const Body& body) {
  int64_t sample = sample_size(r.i + r.low);
  int64_t end = (sample + 1) * sample_size.divisor - r.i;
  auto row = load(sample);
  if (end >= r.high) {  // What lies outside of the range does no harm: nobody stores it.
#pragma unroll
    for (int j = 0; j < V; ++j) body(j, row);
    return;
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (j < r.low || j >= r.high) continue;
    if (j == end) {
      row = load(++sample);
      end += sample_size.divisor;
    }
    body(j, row);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
