// One multistep update, for one element:
//   D  = d x + e s,   D' = D clamped to the clip
//   x <- a x + b s + h H + r (D' - D) + c z,   H <- D',
// and x where the mask is set, and clamped, as in langevin.h.
#pragma once

#include "langevin.h"

namespace fastscore::FASTSCORE_ISA {

// What a row has besides those of langevin.h.
template <class T>
struct MultistepRow {
  T h, d, e, r;
};

// One element on its way: D and D'.
template <class T>
struct Means {
  T whole, clipped;
};

template <class T>
FASTSCORE_FN Means<T> multistep_means(const MultistepRow<T>& row, T x, T s, T low, T high) {
  const T whole = fma(row.e, s, row.d * x);
  return {whole, clamped(whole, low, high)};
}

// A term whose h or r is 0 is not there, as noise whose c is 0: neither NaN in a history that
// nobody has written yet nor an infinite mean then does harm. `clip` is whether there is one.
template <class T>
FASTSCORE_FN T multistep_update(const LangevinRow<T>& row, const MultistepRow<T>& more, T x, T s,
                                T past, const Means<T>& means, bool clip, T z) {
  T next = langevin_drift(row, x, s);
  next = more.h == 0 ? next : fma(more.h, past, next);
  next = !clip || more.r == 0 ? next : fma(more.r, means.clipped - means.whole, next);
  return row.c == 0 ? next : fma(row.c, z, next);
}

}  // namespace fastscore::FASTSCORE_ISA
