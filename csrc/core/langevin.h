// One Langevin step, for one element:
//   x <- a x + b s + c z,   and where the mask is set   x <- m known + k z,
// then clamped to [u low, u high]. The score s may be of two terms, w0 s0 + w1 s1.
#pragma once

#include "scalar.h"

namespace fastscore::FASTSCORE_ISA {

// One row of the coefficient table.
template <class T>
struct LangevinRow {
  T a, b, c, k;
};

template <class T>
FASTSCORE_FN T two_terms(T w0, T s0, T w1, T s1) {
  return fma(w1, s1, w0 * s0);
}

// Without noise (c or k is 0) z plays no part, not even in the sign of a zero: a sample then has
// the same bytes whether or not noise was drawn for its neighbours.
template <class T>
FASTSCORE_FN T langevin_drift(const LangevinRow<T>& row, T x, T s) {
  return fma(row.b, s, row.a * x);
}

template <class T>
FASTSCORE_FN T langevin_update(const LangevinRow<T>& row, T x, T s, T z) {
  const T drift = langevin_drift(row, x, s);
  return row.c == 0 ? drift : fma(row.c, z, drift);
}

template <class T>
FASTSCORE_FN T langevin_known(const LangevinRow<T>& row, T known, T z) {
  return row.k == 0 ? known : fma(row.k, z, known);
}

// NaN stays NaN.
template <class T>
FASTSCORE_FN T clamped(T x, T low, T high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// One bound of the result. An infinite one bounds nothing, whatever u is.
template <class T>
FASTSCORE_FN T scaled_bound(T u, T bound) {
  return bound - bound == 0 ? u * bound : bound;
}

// The row of the current draw; past the end, the last one.
FASTSCORE_FN int64_t langevin_row(int64_t draw, int64_t rows) {
  return draw < 0 ? 0 : (draw < rows ? draw : rows - 1);
}

}  // namespace fastscore::FASTSCORE_ISA
