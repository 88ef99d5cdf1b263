// Elementary functions. In float32 they are polynomials on lanes, made of operations that IEEE 754
// fixes, so that every instruction set and CUDA agree to the last bit; each is within 2 ulp (the
// normal's far tail within 5). Their coefficients come from tools/derive_functions.py. In float64
// they are the mathematics library's, whose last bit may differ from one platform to another.
#pragma once

#include "scalar.h"

namespace fastscore::FASTSCORE_ISA {

FASTSCORE_FN double select_greater(double x, double y, double if_so, double if_not) {
  return x > y ? if_so : if_not;
}
FASTSCORE_FN double select_less_equal(double x, double y, double if_so, double if_not) {
  return x <= y ? if_so : if_not;
}

// A constant of type F, from all the digits that F holds.
template <class F>
FASTSCORE_FN F constant(double x) {
  return broadcast<F>(static_cast<float>(x));
}
template <>
FASTSCORE_FN double constant<double>(double x) {
  return x;
}

template <class F>
FASTSCORE_FN F magnitude(F x) {
  using U = decltype(bits_of(x));
  return float_from_bits(bits_of(x) & broadcast<U>(0x7fffffffu));
}
FASTSCORE_FN double magnitude(double x) { return ::fabs(x); }

// x >= 0 with the sign of `sign`.
template <class F>
FASTSCORE_FN F with_sign(F x, F sign) {
  return flip_sign(x, bits_of(sign));
}
FASTSCORE_FN double with_sign(double x, double sign) { return ::copysign(x, sign); }

// exp(y) = 2^k (1 + p): p = expm1(r) for the rest r of y in units of ln 2.
template <class F>
struct SplitExp {
  F power, p;
};

// For y <= 0. Below -105 the power is 0, the nearest float32.
template <class F>
FASTSCORE_FN SplitExp<F> split_exp(F y) {
  using U = decltype(bits_of(y));
  y = select_greater(broadcast<F>(-105.0f), y, broadcast<F>(-105.0f), y);
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const F magic = broadcast<F>(0x1.8p+23f);
  const F shifted = fma(y, broadcast<F>(0x1.715476p+0f), magic);
  const F k = shifted - magic;
  F r = fma(k, broadcast<F>(-0x1.62e430p-1f), y);
  r = fma(k, broadcast<F>(0x1.05c610p-29f), r);
  F q = broadcast<F>(0x1.9e66b8p-13f);
  q = fma(q, r, broadcast<F>(0x1.6d3a24p-10f));
  q = fma(q, r, broadcast<F>(0x1.1112dep-7f));
  q = fma(q, r, broadcast<F>(0x1.5554f8p-5f));
  q = fma(q, r, broadcast<F>(0x1.555554p-3f));
  q = fma(q, r, broadcast<F>(0.5f));
  // k reaches below float32's exponents: 2^(k + 64) is in range, and 2^k perhaps a subnormal.
  const U exponent = bits_of(shifted) - bits_of(magic) + broadcast<U>(127u + 64u);
  const F power = float_from_bits(shift_left<23>(exponent)) * broadcast<F>(0x1p-64f);
  return {power, fma(r * r, q, r)};
}

// exp(y) for y <= 0.
template <class F>
FASTSCORE_FN F exp_nonpositive(F y) {
  const SplitExp<F> s = split_exp(y);
  return fma(s.power, s.p, s.power);
}
FASTSCORE_FN double exp_nonpositive(double y) { return ::exp(y); }

// exp(y) - 1 for y <= 0.
template <class F>
FASTSCORE_FN F expm1_nonpositive(F y) {
  const SplitExp<F> s = split_exp(y);
  return fma(s.power, s.p, s.power - broadcast<F>(1.0f));
}
FASTSCORE_FN double expm1_nonpositive(double y) { return ::expm1(y); }

// log(1 + x) for x in [0, 1].
template <class F>
FASTSCORE_FN F log1p_unit(F x) {
  // Above sqrt(2) - 1: ln 2 + log(1 + f), f = (x - 1) / 2, exact.
  const F root = broadcast<F>(0x1.a8279ap-2f), half = broadcast<F>(0.5f);
  const F f = select_greater(x, root, fma(x, half, broadcast<F>(-0.5f)), x);
  const F base = select_greater(x, root, broadcast<F>(0x1.62e430p-1f), broadcast<F>(0.0f));
  F q = broadcast<F>(-0x1.38138ep-4f);
  q = fma(q, f, broadcast<F>(0x1.087500p-3f));
  q = fma(q, f, broadcast<F>(-0x1.0f5208p-3f));
  q = fma(q, f, broadcast<F>(0x1.226c84p-3f));
  q = fma(q, f, broadcast<F>(-0x1.5423e8p-3f));
  q = fma(q, f, broadcast<F>(0x1.99a41cp-3f));
  q = fma(q, f, broadcast<F>(-0x1.000438p-2f));
  q = fma(q, f, broadcast<F>(0x1.555550p-2f));
  q = fma(q, f, broadcast<F>(-0x1.fffff8p-2f));
  return base + fma(f * f, q, f);
}
FASTSCORE_FN double log1p_unit(double x) { return ::log1p(x); }

// tanh(x) for |x| <= 1.
template <class F>
FASTSCORE_FN F tanh_unit(F x) {
  const F y = x * x;
  F p = broadcast<F>(-0x1.77cdc6p-12f);
  p = fma(p, y, broadcast<F>(0x1.2da034p-9f));
  p = fma(p, y, broadcast<F>(-0x1.045ff6p-7f));
  p = fma(p, y, broadcast<F>(0x1.6009a6p-6f));
  p = fma(p, y, broadcast<F>(-0x1.b9623ap-5f));
  p = fma(p, y, broadcast<F>(0x1.110be4p-3f));
  p = fma(p, y, broadcast<F>(-0x1.55553cp-2f));
  return fma(x * y, p, x);
}
FASTSCORE_FN double tanh_unit(double x) { return ::tanh(x); }

// Phi(x), the standard normal's mass below x, and its density at x.
template <class F>
struct Normal {
  F mass, density;
};

template <class F>
FASTSCORE_FN Normal<F> normal_distribution(F x) {
  const F one = broadcast<F>(1.0f), half = broadcast<F>(0.5f), zero = broadcast<F>(0.0f);
  F a = magnitude(x);
  // Beyond, mass and density are 0.
  a = select_greater(a, broadcast<F>(14.5f), broadcast<F>(14.5f), a);
  // exp(-a^2 / 2) to full accuracy needs the rounding error of the square.
  const F square = a * a;
  const F error = fma(a, a, zero - square);
  const F e = exp_nonpositive(square * broadcast<F>(-0.5f));
  const F gauss = fma(e * broadcast<F>(-0.5f), error, e);
  // |x| <= 1: 1/2 + x M(x^2).
  F m = broadcast<F>(-0x1.b3d9f6p-17f);
  m = fma(m, square, broadcast<F>(0x1.0a478ep-13f));
  m = fma(m, square, broadcast<F>(-0x1.3a204ap-10f));
  m = fma(m, square, broadcast<F>(0x1.46f2d2p-7f));
  m = fma(m, square, broadcast<F>(-0x1.1058c8p-4f));
  m = fma(m, square, broadcast<F>(0x1.988454p-2f));
  const F middle = fma(x, m, half);
  // Beyond, the tail exp(-a^2 / 2) P(t) / (a + 4), t = (a - 4) / (a + 4).
  const F t = (a - broadcast<F>(4.0f)) / (a + broadcast<F>(4.0f));
  F p = broadcast<F>(-0x1.de75acp-13f);
  p = fma(p, t, broadcast<F>(0x1.169720p-12f));
  p = fma(p, t, broadcast<F>(0x1.ae9e4cp-10f));
  p = fma(p, t, broadcast<F>(-0x1.d3f878p-9f));
  p = fma(p, t, broadcast<F>(-0x1.ee5946p-8f));
  p = fma(p, t, broadcast<F>(0x1.eeed32p-5f));
  p = fma(p, t, broadcast<F>(-0x1.7dff2ap-3f));
  p = fma(p, t, broadcast<F>(0x1.8c6d68p-2f));
  p = fma(p, t, broadcast<F>(-0x1.373e3ap-1f));
  p = fma(p, t, broadcast<F>(0x1.82b4bcp-1f));
  const F tail = gauss * (p * fma(t, broadcast<F>(-0.125f), broadcast<F>(0.125f)));
  const F outer = select_greater(x, zero, one - tail, tail);
  return {select_greater(a, one, outer, middle), gauss * broadcast<F>(0x1.988454p-2f)};
}
FASTSCORE_FN Normal<double> normal_distribution(double x) {
  return {0.5 * ::erfc(x * -0.70710678118654752440), 0.39894228040143267794 * ::exp(-0.5 * x * x)};
}

}  // namespace fastscore::FASTSCORE_ISA
