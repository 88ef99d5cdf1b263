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

// A flag that is known when the code is compiled.
template <bool kValue>
struct Constant {
  __device__ __forceinline__ constexpr operator bool() const { return kValue; }
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

// The rows of a tile's elements: each(range, body) calls body(j, row) for those of a pack.
template <class Row>
struct OneRow {
  Row row;

  template <int V, class Body>
  __device__ __forceinline__ void each(const Range&, const Body& body) const {
#pragma unroll
    for (int j = 0; j < V; ++j) body(j, row);
  }
};

template <class Load>
struct RowPerSample {
  const Divider& sample_size;
  const Load& load;

  template <int V, class Body>
  __device__ __forceinline__ void each(const Range& range, const Body& body) const {
    for_each_sample<V>(sample_size, range, load, body);
  }
};

// Tile `number` of a tensor; by default the block's own, of which each has one.
template <class Access>
class Tile {
 public:
  static constexpr int V = Access::V;

  __device__ __forceinline__ Tile(int64_t origin, int64_t numel)
      : Tile(origin, numel, blockIdx.x) {}
  __device__ __forceinline__ Tile(int64_t origin, int64_t numel, int64_t number)
      : numel_(numel), begin_(number * kTileElements<Access> - origin % V) {}

  // Elements [begin, end) are those of this tile and the `count` - 1 behind it.
  __device__ __forceinline__ int64_t begin() const { return begin_ < 0 ? 0 : begin_; }
  __device__ __forceinline__ int64_t end(int64_t count) const {
    const int64_t left = numel_ - begin_, size = count * kTileElements<Access>;
    return begin_ + (left < size ? left : size);
  }

  // Calls body(whole), `whole` being a constant: whether all elements of the tile exist and its
  // packs move whole. The usual case is so compiled without a test; all threads take one way.
  template <class Body>
  __device__ __forceinline__ void split(const Body& body) const {
    if constexpr (Access::kMovesWhole) {
      if (begin_ >= 0 && begin_ + kTileElements<Access> <= numel_) return body(Constant<true>());
    }
    body(Constant<false>());
  }

  // The same as body(whole, rows), `rows` being the row of each element, from load(sample).
  template <class Load, class Body>
  __device__ __forceinline__ void split_rows(const Divider& sample_size, const Load& load,
                                             const Body& body) const {
    split([&](auto whole) {
      if constexpr (whole) {
        const int64_t sample = sample_size(begin_);
        if (begin_ + kTileElements<Access> <= (sample + 1) * sample_size.divisor) {
          return body(whole, OneRow{load(sample)});
        }
      }
      body(whole, RowPerSample<Load>{sample_size, load});
    });
  }

  // This thread's pack number u.
  template <class Whole>
  __device__ __forceinline__ Range range(int u, Whole) const {
    const int64_t i = begin_ + u * kThreads * V + threadIdx.x * V, left = numel_ - i;
    if constexpr (Whole()) return {i, 0, V};
    return {i, i < 0 ? static_cast<int>(-i) : 0,
            left >= V ? V : (left > 0 ? static_cast<int>(left) : 0)};
  }

  // Loads this thread's packs.
  template <class From, class Whole>
  __device__ __forceinline__ void load(const From& from, Whole whole,
                                       typename From::Raw (&raw)[Access::kAtOnce]) const {
#pragma unroll
    for (int u = 0; u < Access::kAtOnce; ++u) raw[u] = from.load(range(u, whole), whole);
  }

 private:
  int64_t numel_, begin_;
};

}  // namespace fastscore::FASTSCORE_ISA
