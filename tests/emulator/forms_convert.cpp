// Conversions between numbers of several kinds and sizes.
#include <cmath>

#include "forms.h"
#include "nan.h"

namespace emulator {

namespace {

u32 bits(float x) { return std::bit_cast<u32>(x); }
float number(u32 x) { return std::bit_cast<float>(x); }

// To the nearest half, ties to even. Without branches, for vector code.
u16 half_of(float x) {
  const u32 sign = bits(x) >> 16 & 0x8000, magnitude = bits(x) & 0x7fffffff;
  const u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  const u32 normal = (rounded - 0x38000000u) >> 13;
  // Below 2^-14: added to 1/2, whose last bit is worth as much as a half's smallest.
  const u32 subnormal = bits(number(magnitude) + 0.5f) - 0x3f000000u;
  u32 half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00 : half;  // 2^16 and more
  return static_cast<u16>(magnitude > 0x7f800000u ? 0x7fff : sign | half);
}

float of_half(u16 half) {
  const u32 sign = u32{half & 0x8000u} << 16, magnitude = u32{half & 0x7fffu} << 13;
  // Halves have 112 exponents less; the product is exact, and right for subnormal ones as well.
  const u32 finite = bits(number(magnitude) * 0x1p112f);
  return number(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
}

u16 bfloat16_of(float x) {
  const u32 rounded = (bits(x) + 0x7fff + (bits(x) >> 16 & 1)) >> 16;
  return static_cast<u16>(x != x ? 0x7fff : rounded);
}

float of_bfloat16(u16 x) { return number(u32{x} << 16); }

// The canonical NaN of single precision, as a double.
double of_float(float x) {
  return x != x ? std::bit_cast<double>(u64{0x7fffffffe0000000}) : static_cast<double>(x);
}

template <class D, class S>
void add_pair(Forms& forms, const std::string& to, const std::string& from) {
  if constexpr (!std::is_same_v<D, S>) {
    // Of integers, the bits stay where they are, but for those that the sign fills.
    constexpr bool same =
        std::is_integral_v<D> && (sizeof(D) <= sizeof(S) || std::is_unsigned_v<S>);
    forms.add(
        "cvt." + to + "." + from, [](S x) { return static_cast<D>(x); },
        same ? Spread::kBits : Spread::kAll);
  }
}
template <class D>
void add_integers_to(Forms& forms, const std::string& to) {
  add_pair<D, s16>(forms, to, "s16");
  add_pair<D, u16>(forms, to, "u16");
  add_pair<D, s32>(forms, to, "s32");
  add_pair<D, u32>(forms, to, "u32");
  add_pair<D, s64>(forms, to, "s64");
  add_pair<D, u64>(forms, to, "u64");
}
template <class D>
void add_integers_to_float(Forms& forms, const std::string& to) {
  add_pair<D, s32>(forms, "rn." + to, "s32");
  add_pair<D, u32>(forms, "rn." + to, "u32");
  add_pair<D, s64>(forms, "rn." + to, "s64");
  add_pair<D, u64>(forms, "rn." + to, "u64");
}

}  // namespace

void add_conversions(Forms& forms) {
  add_integers_to<s16>(forms, "s16");
  add_integers_to<u16>(forms, "u16");
  add_integers_to<s32>(forms, "s32");
  add_integers_to<u32>(forms, "u32");
  add_integers_to<s64>(forms, "s64");
  add_integers_to<u64>(forms, "u64");
  add_integers_to_float<float>(forms, "f32");
  add_integers_to_float<double>(forms, "f64");
  forms.add("cvt.rni.f32.f32", [](float x) { return nan_of(std::rint(x), x); });
  forms.add("cvt.rn.f32.f64", [](double x) { return nan_of(static_cast<float>(x)); });
  forms.add("cvt.f64.f32", [](float x) { return of_float(x); });
  forms.add("cvt.rn.f16.f32", [](float x) { return half_of(x); });
  forms.add("cvt.f32.f16", [](u16 x) { return of_half(x); });
  forms.add("cvt.rn.bf16.f32", [](float x) { return bfloat16_of(x); });
  forms.add("cvt.f32.bf16", [](u16 x) { return of_bfloat16(x); });
  // The first operand becomes the upper half.
  forms.add(
      "cvt.rn.f16x2.f32", [](float a, float b) { return u32{half_of(a)} << 16 | u32{half_of(b)}; },
      Spread::kEachHalf);
  forms.add(
      "cvt.rn.bf16x2.f32",
      [](float a, float b) { return u32{bfloat16_of(a)} << 16 | u32{bfloat16_of(b)}; },
      Spread::kEachHalf);
}

}  // namespace emulator
