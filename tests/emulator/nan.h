// Which NaN an operation gives: in single precision always the same, in double precision the first
// argument that is one, made quiet.
#pragma once

#include <bit>

#include "lanes.h"

namespace emulator {

template <class T>
T canonical_nan();
template <>
inline float canonical_nan<float>() {
  return std::bit_cast<float>(u32{0x7fffffff});
}
template <>
inline double canonical_nan<double>() {
  return std::bit_cast<double>(u64{0xfff8000000000000});
}

template <class... Arguments>
float nan_of(float result, Arguments...) {
  return result != result ? canonical_nan<float>() : result;
}

inline double quiet(double x) {
  return std::bit_cast<double>(std::bit_cast<u64>(x) | 0x0008000000000000u);
}
inline double nan_of(double result, double a) {
  const double nan = a != a ? quiet(a) : canonical_nan<double>();
  return result != result ? nan : result;
}
template <class... Rest>
double nan_of(double result, double a, Rest... rest) {
  const double other = nan_of(result, rest...);
  return result != result && a != a ? quiet(a) : other;
}

}  // namespace emulator
