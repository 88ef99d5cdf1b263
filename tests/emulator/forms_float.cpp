// Floating point: IEEE 754, to nearest, with subnormal numbers but where an opcode says .ftz.
//
// Products must say .rn: ptxas may make one operation of those without it and a sum, so what they
// give cannot be told from PTX.
#include <cmath>

#include "forms.h"
#include "nan.h"

namespace emulator {

namespace {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, u32, u64>;
template <class T>
constexpr Bits<T> kSign = Bits<T>{1} << (8 * sizeof(T) - 1);

template <class T>
Bits<T> bits(T x) {
  return std::bit_cast<Bits<T>>(x);
}
template <class T>
T of_bits(Bits<T> x) {
  return std::bit_cast<T>(x);
}

// The other one if one is NaN; -0 is less than +0.
template <class T, bool kMax>
T extreme(T a, T b) {
  const Bits<T> x = bits(a), y = bits(b);
  const Bits<T> equal = kMax ? x & y : x | y;  // the same number but for the sign of 0
  const Bits<T> ordered = (kMax ? a > b : a < b) ? x : y;
  Bits<T> result = a == b ? equal : ordered;
  result = b != b ? x : result;
  result = a != a ? y : result;
  return a != a && b != b ? nan_of(of_bits<T>(result), a) : of_bits<T>(result);
}

template <class T>
void add_arithmetic(Forms& forms, const std::string& type) {
  for (const std::string rounding : {".", ".rn."}) {
    forms.add("add" + rounding + type, [](T a, T b) { return nan_of(a + b, a, b); });
    forms.add("sub" + rounding + type, [](T a, T b) { return nan_of(a - b, a, b); });
  }
  forms.add("mul.rn." + type, [](T a, T b) { return nan_of(a * b, a, b); });
  forms.add("div.rn." + type, [](T a, T b) { return nan_of(a / b, a, b); });
  forms.add("rcp.rn." + type, [](T a) { return nan_of(1 / a, a); });
  forms.add("sqrt.rn." + type, [](T a) { return nan_of(std::sqrt(a), a); });
  forms.add("fma.rn." + type, [](T a, T b, T c) { return nan_of(std::fma(a, b, c), a, b, c); });
  forms.add("min." + type, [](T a, T b) { return extreme<T, false>(a, b); });
  forms.add("max." + type, [](T a, T b) { return extreme<T, true>(a, b); });
  forms.add("neg." + type, [](T a) { return of_bits<T>(bits(a) ^ kSign<T>); });
  forms.add("abs." + type, [](T a) { return of_bits<T>(bits(a) & ~kSign<T>); });
  forms.add("copysign." + type, [](T a, T b) {  // the first one's sign
    return of_bits<T>((bits(a) & kSign<T>) | (bits(b) & ~kSign<T>));
  });
}

// ---- approximations: the nearest number, or as far off as the settings say ---------------------

u64 hashed(u64 x) {
  x += 0x9e3779b97f4a7c15u * (settings().seed + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// rsqrt.approx.ftz.f32: a relative error of at most 2^-22.9.
float approximate_rsqrt(float a) {
  a = flushed(a);
  if (a == 0) return std::copysign(INFINITY, a);
  if (std::isnan(a) || a < 0) return canonical_nan<float>();
  if (std::isinf(a)) return 0;
  const double exact = 1 / std::sqrt(static_cast<double>(a));
  const u32 nearest = bits(static_cast<float>(exact));
  const auto off_by = [&](int units) { return of_bits<float>(nearest + static_cast<u32>(units)); };
  if (settings().rsqrt != Settings::kHashed) return off_by(settings().rsqrt);
  const double most = exact * 0x1p-23 * 1.0717734625362931;  // 2^0.1
  int units = static_cast<int>(hashed(bits(a)) % 5) - 2;
  while (std::fabs(off_by(units) - exact) > most) units += units < 0 ? 1 : -1;
  return off_by(units);
}

// rcp.approx.ftz.f64: made of the argument's upper word, gives an upper word. Its error isn't
// documented: here the nearest one, or one beside it.
double approximate_reciprocal(double a) {
  const u64 word = bits(a);
  if (std::isnan(a)) return nan_of(a, a);
  if (std::isinf(a)) return std::copysign(0.0, a);
  if (std::fabs(a) < 0x1p-1022) return std::copysign(double{INFINITY}, a);
  const double exact = 1 / of_bits<double>(word & 0xffffffff00000000u);
  if (std::fabs(exact) < 0x1p-1022) return std::copysign(0.0, a);
  s64 units = settings().reciprocal;
  if (units == Settings::kHashed) units = static_cast<s64>(hashed(word >> 32) % 3) - 1;
  return of_bits<double>(((bits(exact) >> 32) + static_cast<u64>(units)) << 32);
}

float approximate_exp2(float a) {
  if (std::isnan(a)) return canonical_nan<float>();
  const float result = static_cast<float>(std::exp2(static_cast<double>(flushed(a))));
  return flushed(result);
}

}  // namespace

void add_floats(Forms& forms) {
  add_arithmetic<float>(forms, "f32");
  add_arithmetic<double>(forms, "f64");
  forms.add("rsqrt.approx.ftz.f32", [](float a) { return approximate_rsqrt(a); });
  forms.add("ex2.approx.ftz.f32", [](float a) { return approximate_exp2(a); });
  forms.add("rcp.approx.ftz.f64", [](double a) { return approximate_reciprocal(a); });
}

}  // namespace emulator
