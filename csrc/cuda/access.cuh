// How a kernel reaches the elements of a tensor, a pack at a time. A kernel is written once and
// takes either of
//   Packed   contiguous and aligned: packs move whole, by 16-byte accesses
//   Spread   any strides, alignment and first index: elements move one by one
// Both have: V, the elements of a pack; kAtOnce, how many packs a thread has in flight; Real, the
// type computed with; Raw, what a load brings, which unpack() turns into numbers; load() and
// store().
#pragma once

#include <algorithm>

#include "cuda/divider.cuh"
#include "cuda/elements.cuh"

namespace fastscore::FASTSCORE_ISA {

// Elements [i, i + V) of a tensor, of which [i + low, i + high) exist.
struct Range {
  int64_t i;
  int low, high;

  __device__ __forceinline__ bool empty() const { return low >= high; }
  __device__ __forceinline__ bool holds(int elements) const { return low == 0 && high == elements; }
};

// Blocks that a multiprocessor is to hold at least: it bounds the registers.
template <class Access>
constexpr int kResidentBlocks = Access::kAtOnce > 1 && sizeof(typename Access::Real) == 4 ? 4 : 2;

template <class S, int kElements = kPack<S>, int kPacks = 2>
struct Packed {
  static constexpr int V = kElements, kAtOnce = kPacks;
  static constexpr bool kMovesWhole = true;
  using Real = Compute<S>;
  using Raw = Pack<S, V>;

  S* data;

  __device__ __forceinline__ Raw load(const Range& r, bool whole) const {
    return whole ? load_pack<S, V>(data + r.i) : load_part<S, V>(data + r.i, r.low, r.high);
  }
  __device__ __forceinline__ static void unpack(const Raw& raw, Real (&x)[V]) {
    FASTSCORE_ISA::unpack(raw, x);
  }
  __device__ __forceinline__ void store(const Range& r, bool whole, const Real (&x)[V]) const {
    Raw raw;
    pack(x, raw);
    if (whole) {
      store_pack(raw, data + r.i);
    } else {
      store_part(raw, data + r.i, r.low, r.high);
    }
  }
};

template <class T, int kElements = 4>
struct Spread {
  static constexpr int V = kElements, kAtOnce = 1;
  static constexpr bool kMovesWhole = false;
  using Real = T;
  struct Raw {
    T x[V];
  };

  void* data;
  DType dtype;
  int32_t ndim;
  int64_t strides[kMaxDims];
  Divider sizes[kMaxDims];

  static Spread of(const View& view) {
    Spread s = {};
    s.data = view.data;
    s.dtype = view.dtype;
    s.ndim = view.ndim;
    for (int d = 0; d < view.ndim; ++d) {
      s.strides[d] = view.strides[d];
      s.sizes[d] = Divider::by(view.sizes[d]);
    }
    return s;
  }

  __device__ __forceinline__ Raw load(const Range& r, bool) const {
    Raw raw = {};
    walk(r, [&](int j, int64_t at) { raw.x[j] = load_one(at); });
    return raw;
  }
  __device__ __forceinline__ static void unpack(const Raw& raw, T (&x)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = raw.x[j];
  }
  __device__ __forceinline__ void store(const Range& r, bool, const T (&x)[V]) const {
    walk(r, [&](int j, int64_t at) { store_one(x[j], at); });
  }

 private:
  // Calls body(j, place in memory) for each element that exists.
  template <class Body>
  __device__ __forceinline__ void walk(const Range& r, const Body& body) const {
    const Divider& inner = sizes[ndim - 1];
    const int64_t step = strides[ndim - 1];
    int64_t place = 0, left = 0;  // left: elements until the innermost dimension is through
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j < r.low || j >= r.high) continue;
      if (left == 0) {
        const int64_t i = r.i + j, outer = inner(i), at = i - outer * inner.divisor;
        place = at * step + offset(outer);
        left = inner.divisor - at;
      }
      body(j, place);
      place += step;
      --left;
    }
  }

  // Where element `outer` of all dimensions but the innermost begins.
  __device__ __forceinline__ int64_t offset(int64_t outer) const {
    int64_t place = 0;
    for (int d = ndim - 2; d >= 0; --d) {
      const int64_t next = sizes[d](outer);
      place += (outer - next * sizes[d].divisor) * strides[d];
      outer = next;
    }
    return place;
  }

  __device__ __forceinline__ T load_one(int64_t at) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return static_cast<const double*>(data)[at];
    } else {
      switch (dtype) {
        case DType::kBFloat16:
          return to_compute(static_cast<const BFloat16*>(data)[at]);
        case DType::kFloat16:
          return to_compute(static_cast<const Float16*>(data)[at]);
        default:
          return static_cast<const float*>(data)[at];
      }
    }
  }

  __device__ __forceinline__ void store_one(T x, int64_t at) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      static_cast<double*>(data)[at] = x;
    } else {
      switch (dtype) {
        case DType::kBFloat16:
          return from_compute(x, static_cast<BFloat16*>(data)[at]);
        case DType::kFloat16:
          return from_compute(x, static_cast<Float16*>(data)[at]);
        default:
          static_cast<float*>(data)[at] = x;
      }
    }
  }
};

// Whether packs of v elements of the tensor can be moved whole.
inline bool aligned(const void* data, int64_t element_size, int v) {
  return reinterpret_cast<uintptr_t>(data) % std::min<int64_t>(16, v * element_size) == 0;
}
inline bool packable(const View& view, int v) {
  const int64_t size = view.dtype == DType::kFloat64 ? 8 : view.dtype == DType::kFloat32 ? 4 : 2;
  return view.contiguous() && aligned(view.data, size, v);
}

template <class S, int V = kPack<S>, int kPacks = 2>
Packed<S, V, kPacks> packed(const View& view) {
  return {static_cast<S*>(view.data)};
}

}  // namespace fastscore::FASTSCORE_ISA
