// Sums over samples that do not depend on how the work is split. A sample's elements are summed
// tile by tile, tiles being cut at fixed flat indices; a sample that lies in one tile is finished
// there, else its first share goes to tail[t] and every later one to head[t] of its tile, and
// cpu/rows.h adds the shares in order.
#pragma once

#include "tile.h"

namespace fastscore::FASTSCORE_ISA {

// sum of square(i) for i in [0, n), in an order that depends on n alone.
template <class T, class Term>
FASTSCORE_FN double ordered_sum(int64_t n, const Term& term) {
  constexpr int kAccumulators = 32;
  double total = 0;
  int64_t i = 0;
  if (n >= kAccumulators) {
    T sums[kAccumulators] = {};
    for (; i + kAccumulators <= n; i += kAccumulators) {
      for (int j = 0; j < kAccumulators; ++j) sums[j] += term(i + j);
    }
    for (int j = 0; j < kAccumulators; ++j) total += sums[j];
  }
  for (; i < n; ++i) total += term(i);
  return total;
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
