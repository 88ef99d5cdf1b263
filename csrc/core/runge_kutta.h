// Explicit Runge-Kutta methods, for one element (Hairer, Norsett and Wanner 1993):
//   a stage   c_0 x + sum_j c_j k_j
//   an error  (e_0 x + sum_j e_j k_j) / (atol + rtol max(|x|, |new|))
// A coefficient of 0 leaves its term out: a sample's bytes do not hang on what others ask for.
#pragma once

#include "functions.h"
#include "runge_kutta_args.h"

namespace fastscore::FASTSCORE_ISA {

template <class T>
FASTSCORE_FN T rk_first(T c, T x) {
  return c == 0 ? T(0) : c * x;
}

template <class T>
FASTSCORE_FN T rk_add(T sum, T c, T k) {
  return c == 0 ? sum : fma(c, k, sum);
}

// NaN stays NaN, in x as in new.
template <class T>
FASTSCORE_FN T rk_ratio(T error, T x, T fresh, T atol, T rtol) {
  const T a = magnitude(x), b = magnitude(fresh);
  return error / fma(rtol, a > b || a != a ? a : b, atol);
}

// The norm of a sample's ratios, from the sum of their squares.
FASTSCORE_FN double rk_norm(double sum, int64_t size) {
  return ::sqrt(sum / static_cast<double>(size > 0 ? size : 1));
}

}  // namespace fastscore::FASTSCORE_ISA
