// Sums over samples that do not depend on how the work is split. A sample's elements are summed
// tile by tile, tiles being cut at fixed flat indices; a sample that lies in one tile is finished
// there, else its first share goes to tail[t] and every later one to head[t] of its tile, and
// cpu/rows.h adds the shares in order.
#pragma once

#include "tile.h"

namespace fastscore::FASTSCORE_ISA {

// Elements summed side by side: four AVX2 vectors, enough to hide the latency of an addition.
constexpr int kAccumulators = 32;

template <class T>
FASTSCORE_FN double fold(T (&sums)[kAccumulators]) {
  for (int k = 0; k < 16; ++k) sums[k] += sums[k + 16];
  for (int k = 0; k < 8; ++k) sums[k] += sums[k + 8];
  double total[4];
  for (int k = 0; k < 4; ++k) {
    total[k] = static_cast<double>(sums[k]) + static_cast<double>(sums[k + 4]);
  }
  return (total[0] + total[2]) + (total[1] + total[3]);
}

// The terms of the last, incomplete chunk, and zeros.
template <class T, class Term>
FASTSCORE_FN void rest_of(int64_t n, const Term& term, int s, T (&out)[kAccumulators]) {
  T zero = 0;
  asm("" : "+x"(zero));  // else the loop becomes `rep stos`, slow for so few bytes
  for (int k = 0; k < kAccumulators; ++k) out[k] = zero;
  for (int k = 0; k < n; ++k) out[k] = term(s, k);
}

// kSums sums over [0, n) at once, in an order that depends on n alone. chunk(i) returns a functor
// whose value at (s, k) is the term of element i + k in sum s.
template <class T, int kSums, class Chunk>
FASTSCORE_FN void ordered_sums(int64_t n, const Chunk& chunk, double (&out)[kSums]) {
  T sums[kSums][kAccumulators];
  if (n < kAccumulators) {
    const auto term = chunk(0);
    for (int s = 0; s < kSums; ++s) {
      rest_of<T>(n, term, s, sums[s]);
      out[s] = fold(sums[s]);
    }
    return;
  }
  const auto first = chunk(0);
#pragma GCC unroll 4
  for (int s = 0; s < kSums; ++s) {
    for (int k = 0; k < kAccumulators; ++k) sums[s][k] = first(s, k);
  }
  int64_t i = kAccumulators;
  for (; i + kAccumulators <= n; i += kAccumulators) {
    const auto term = chunk(i);
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      for (int k = 0; k < kAccumulators; ++k) sums[s][k] += term(s, k);
    }
  }
  if (i < n) {
    const auto term = chunk(i);
    for (int s = 0; s < kSums; ++s) {
      T rest[kAccumulators];
      rest_of<T>(n - i, term, s, rest);
      for (int k = 0; k < kAccumulators; ++k) sums[s][k] += rest[k];
    }
  }
  for (int s = 0; s < kSums; ++s) out[s] = fold(sums[s]);
}

// sum of term(i) for i in [0, n), in an order that depends on n alone.
template <class T, class Term>
FASTSCORE_FN double ordered_sum(int64_t n, const Term& term) {
  double sum[1];
  ordered_sums<T>(
      n, [&](int64_t i) { return [&term, i](int, int k) { return term(i + k); }; }, sum);
  return sum[0];
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
