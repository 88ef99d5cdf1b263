// Activations for forward-mode differentiation, for one element: the value phi(h), the slope
// phi'(h) that tangents are multiplied by, and the curvature phi''(h) that the gradient needs:
//   forward   (h, t_1 .. t_M)  ->  (phi(h), phi'(h) t_1 .. phi'(h) t_M)
//   backward  g_h = g_0 phi'(h) + phi''(h) sum_m g_m t_m,   g_(t_m) = g_m phi'(h)
// F is a lane, float or double. What is not used, the compiler leaves out.
#pragma once

#include "activations.h"
#include "functions.h"

namespace fastscore::FASTSCORE_ISA {

template <class F>
struct Jet {
  F value, slope, curvature;
};

// What a pass needs of it.
struct ValueAndSlope {
  template <class F>
  FASTSCORE_FN void operator()(const Jet<F>& jet, F& first, F& second) const {
    first = jet.value;
    second = jet.slope;
  }
};

struct SlopeAndCurvature {
  template <class F>
  FASTSCORE_FN void operator()(const Jet<F>& jet, F& first, F& second) const {
    first = jet.slope;
    second = jet.curvature;
  }
};

// s = 1 / (1 + exp(-x)) and c = 1 - s, each accurate where it is small.
template <class F>
struct Logistic {
  F s, c;
};

template <class F>
FASTSCORE_FN Logistic<F> logistic(F x) {
  const F one = constant<F>(1), zero = constant<F>(0);
  const F e = exp_nonpositive(zero - magnitude(x));
  const F large = one / (one + e);
  const F small = select_greater(e, constant<F>(0.5), one - large, e * large);
  return {select_greater(x, zero, large, small), select_greater(x, zero, small, large)};
}

struct Softplus {
  static constexpr bool kCurved = true;
  double beta, threshold;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const F zero = constant<F>(0), one = constant<F>(1), limit = constant<F>(threshold);
    const F y = constant<F>(beta) * h;
    const Logistic<F> l = logistic(y);
    const F e = exp_nonpositive(zero - magnitude(y));
    const F sum = select_greater(y, zero, y, zero) + log1p_unit(e);
    return {select_greater(y, limit, h, sum * constant<F>(1 / beta)),
            select_greater(y, limit, one, l.s),
            select_greater(y, limit, zero, constant<F>(beta) * (l.s * l.c))};
  }
};

struct Silu {
  static constexpr bool kCurved = true;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const Logistic<F> l = logistic(h);
    return {h * l.s, l.s * fma(h, l.c, constant<F>(1)),
            (l.s * l.c) * fma(h, l.c - l.s, constant<F>(2))};
  }
};

struct Tanh {
  static constexpr bool kCurved = true;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const F one = constant<F>(1);
    const F a = magnitude(h);
    const F e = exp_nonpositive(constant<F>(-2) * a);
    const F q = (e + e) / (one + e);  // 1 - tanh(a), all that is left where tanh is near 1
    const F value = select_greater(a, one, with_sign(one - q, h), tanh_unit(h));
    const F inner_slope = fma(constant<F>(0) - value, value, one);
    const F slope = select_greater(a, one, q * (constant<F>(2) - q), inner_slope);
    return {value, slope, constant<F>(-2) * value * slope};
  }
};

struct Sigmoid {
  static constexpr bool kCurved = true;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const Logistic<F> l = logistic(h);
    const F slope = l.s * l.c;
    return {l.s, slope, slope * (l.c - l.s)};
  }
};

struct Elu {
  static constexpr bool kCurved = true;
  double alpha;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const F zero = constant<F>(0), a = constant<F>(alpha);
    const F low = select_greater(h, zero, zero, h);
    const F slope = a * exp_nonpositive(low);
    return {select_greater(h, zero, h, a * expm1_nonpositive(low)),
            select_greater(h, zero, constant<F>(1), slope), select_greater(h, zero, zero, slope)};
  }
};

// h Phi(h).
struct Gelu {
  static constexpr bool kCurved = true;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const Normal<F> n = normal_distribution(h);
    return {h * n.mass, fma(h, n.density, n.mass), n.density * (constant<F>(2) - h * h)};
  }
};

// h/2 (1 + tanh u) = h / (1 + exp(-2u)),  2u = 2 sqrt(2/pi) (h + 0.044715 h^3).
struct GeluTanh {
  static constexpr bool kCurved = true;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    constexpr double kScale = 1.59576912160573071176, kCubic = 0.044715;
    const F square = h * h;
    const Logistic<F> l =
        logistic(h * fma(constant<F>(kScale * kCubic), square, constant<F>(kScale)));
    const F first = fma(constant<F>(3 * kScale * kCubic), square, constant<F>(kScale));  // (2u)'
    const F second = constant<F>(6 * kScale * kCubic) * h;                               // (2u)''
    const F q = l.s * l.c;
    const F bend = fma(first * first, l.c - l.s, second);
    return {h * l.s, fma(h * q, first, l.s), q * fma(h, bend, constant<F>(2) * first)};
  }
};

struct Relu {
  static constexpr bool kCurved = false;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const F zero = constant<F>(0);
    return {select_less_equal(h, zero, zero, h), select_less_equal(h, zero, zero, constant<F>(1)),
            zero};
  }
};

struct LeakyRelu {
  static constexpr bool kCurved = false;
  double negative_slope;

  template <class F>
  FASTSCORE_FN Jet<F> operator()(F h) const {
    const F slope = select_greater(h, constant<F>(0), constant<F>(1), constant<F>(negative_slope));
    return {h * slope, slope, constant<F>(0)};
  }
};

// Calls body with the activation; a and b are its parameters in the order of its members.
template <class Body>
FASTSCORE_FN void with_activation(Activation which, double a, double b, const Body& body) {
  switch (which) {
    case Activation::kSoftplus:
      return body(Softplus{a, b});
    case Activation::kSilu:
      return body(Silu{});
    case Activation::kTanh:
      return body(Tanh{});
    case Activation::kSigmoid:
      return body(Sigmoid{});
    case Activation::kElu:
      return body(Elu{a});
    case Activation::kGelu:
      return body(Gelu{});
    case Activation::kGeluTanh:
      return body(GeluTanh{});
    case Activation::kRelu:
      return body(Relu{});
    case Activation::kLeakyRelu:
      return body(LeakyRelu{a});
  }
}

}  // namespace fastscore::FASTSCORE_ISA
