// Sums over samples that do not depend on how the work is split. A sample's elements are summed
// tile by tile, tiles being cut at fixed flat indices; a sample that lies in one tile is finished
// there, else its first share goes to tail[t] and every later one to head[t] of its tile, and
// cpu/rows.h adds the shares in order.
#pragma once

#include "tile.h"

namespace fastscore::FASTSCORE_ISA {

// Elements summed side by side: four AVX2 vectors, enough to hide the latency of an addition.
constexpr int kAccumulators = 32;

FASTSCORE_FN void load_first(const double* in, int n, double* out) {
  for (int k = 0; k < kAccumulators; ++k) out[k] = k < n ? in[k] : 0;
}

// The compiler's own vectors: of loops over so few numbers it would make scalar code.
template <class T, int kCount>
using Numbers __attribute__((vector_size(kCount * sizeof(T)))) = T;

// The sum of all numbers of a vector, halves onto halves, the last eight in double.
template <class T>
FASTSCORE_FN double fold_8(const Numbers<T, 8>& eight) {
  const Numbers<double, 8> wide = __builtin_convertvector(eight, Numbers<double, 8>);
  const Numbers<double, 4> four = __builtin_shufflevector(wide, wide, 0, 1, 2, 3) +
                                  __builtin_shufflevector(wide, wide, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
template <class T>
FASTSCORE_FN double fold_16(const Numbers<T, 16>& sixteen) {
  const Numbers<T, 8> low = __builtin_shufflevector(sixteen, sixteen, 0, 1, 2, 3, 4, 5, 6, 7);
  const Numbers<T, 8> high =
      __builtin_shufflevector(sixteen, sixteen, 8, 9, 10, 11, 12, 13, 14, 15);
  return fold_8<T>(low + high);
}
template <class T>
FASTSCORE_FN double fold_32(const T* sums) {
  Numbers<T, 16> low, high;
  memcpy(&low, sums, sizeof low);
  memcpy(&high, sums + 16, sizeof high);
  return fold_16<T>(low + high);
}

// The first n < kAccumulators numbers of arrays, followed by zeros: what a chunk that is not whole
// reads in their place.
template <int kArrays>
class Padded {
 public:
  FASTSCORE_FN explicit Padded(int n) : n_(n) {}

  template <class T>
  FASTSCORE_FN const T* operator()(const T* in) {
    static_assert(kAccumulators * sizeof(T) <= sizeof memory_[0]);
    T* out = reinterpret_cast<T*>(memory_[used_++]);
    load_first(in, n_, out);
    return out;
  }

 private:
  alignas(64) char memory_[kArrays][kAccumulators * sizeof(double)];
  int n_, used_ = 0;
};

// kSums sums over [0, n) at once, in an order that depends on n alone. chunk(i, at) returns a
// functor whose value at (s, k) is the term of element i + k in sum s; it reads the arrays, three
// at most, through the pointers at(array + i). The term of zeros must be zero.
template <class T, int kSums, class Chunk>
FASTSCORE_FN void ordered_sums(int64_t n, const Chunk& chunk, double (&out)[kSums]) {
  T sums[kSums][kAccumulators];
  auto whole = [](const auto* in) { return in; };
  Padded<3> rest(static_cast<int>(n % kAccumulators));
  const auto start = [&](const auto& term) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      for (int k = 0; k < kAccumulators; ++k) sums[s][k] = term(s, k);
    }
  };
  const auto add = [&](const auto& term) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      for (int k = 0; k < kAccumulators; ++k) sums[s][k] += term(s, k);
    }
  };
  if (n < kAccumulators) {
    start(chunk(0, rest));
  } else {
    start(chunk(0, whole));
    int64_t i = kAccumulators;
    for (; i + kAccumulators <= n; i += kAccumulators) add(chunk(i, whole));
    if (i < n) add(chunk(i, rest));
  }
#pragma GCC unroll 4
  for (int s = 0; s < kSums; ++s) out[s] = fold_32(sums[s]);
}

// Files a sample's share of one tile: sum of elements [first, first + n) of the tensor.
FASTSCORE_FN void file_share(double sum, int64_t sample, int64_t first, int64_t n,
                             int64_t sample_size, int64_t tile, double* done, double* head,
                             double* tail) {
  const bool starts = first == sample * sample_size;
  const bool ends = first + n == (sample + 1) * sample_size;
  if (starts && ends) {
    done[sample] = sum;
  } else if (starts) {
    tail[tile] = sum;
  } else {
    head[tile] = sum;
  }
}

}  // namespace fastscore::FASTSCORE_ISA
