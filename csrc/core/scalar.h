// The scalar lane: one number at a time, on CUDA and on the portable CPU path. The vector lanes in
// cpu/isa/lanes_*.h offer the same functions; the templates of core/ are written against them.
// Only operations whose result IEEE 754 fixes are used, so all lanes agree to the last bit.
#pragma once

#include "config.h"

#if !defined(__CUDA_ARCH__)
#include <math.h>
#include <string.h>
#endif

namespace fastscore::FASTSCORE_ISA {

FASTSCORE_FN float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
  return ::fmaf(a, b, c);
#else
  // Without the instruction, libm's fmaf costs a call. The product is exact in double; making the
  // sum's last bit odd when it was rounded keeps the second rounding right (Boldo and Melquiond
  // 2008).
  const double product = static_cast<double>(a) * b;
  double sum = product + c;
  const double share = sum - product;
  const double error = (product - (sum - share)) + (c - share);
  const uint64_t inexact = (error > 0) | (error < 0);
  const uint64_t away = (error > 0) == (sum > 0) ? 1 : ~uint64_t{0};
  uint64_t u;
  memcpy(&u, &sum, sizeof u);
  u += (inexact & ~u & 1) * away;
  memcpy(&sum, &u, sizeof u);
  return static_cast<float>(sum);
#endif
}
FASTSCORE_FN double fma(double a, double b, double c) { return ::fma(a, b, c); }

FASTSCORE_FN float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return ::sqrtf(x);
#endif
}

FASTSCORE_FN uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
#endif
}

FASTSCORE_FN float float_from_bits(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
#endif
}

// The 32-bit word read as a signed integer, rounded to nearest.
FASTSCORE_FN float float_of_signed(uint32_t u) {
  return static_cast<float>(static_cast<int32_t>(u));
}

template <int K>
FASTSCORE_FN uint32_t shift_left(uint32_t u) {
  return u << K;
}
template <int K>
FASTSCORE_FN uint32_t shift_right(uint32_t u) {
  return u >> K;
}
// All ones where the top bit is set.
FASTSCORE_FN uint32_t sign_mask(uint32_t u) { return 0u - (u >> 31); }
FASTSCORE_FN uint32_t and_not(uint32_t mask, uint32_t u) { return ~mask & u; }

// if_set where the top bit of u is set, else if_clear.
FASTSCORE_FN float select_by_sign(uint32_t u, float if_set, float if_clear) {
  return (u >> 31) ? if_set : if_clear;
}
// x with its sign flipped where the top bit of u is set.
FASTSCORE_FN float flip_sign(float x, uint32_t u) {
  return float_from_bits(bits_of(x) ^ (u & 0x80000000u));
}

// x > y ? if_so : if_not, and the same for <=. With a NaN both take if_not.
FASTSCORE_FN float select_greater(float x, float y, float if_so, float if_not) {
  return x > y ? if_so : if_not;
}
FASTSCORE_FN float select_less_equal(float x, float y, float if_so, float if_not) {
  return x <= y ? if_so : if_not;
}

// The 64-bit product of two Philox words.
#if defined(__CUDA_ARCH__)
// As two words: of a 64-bit integer's shift the compiler makes one more addition a product.
struct WidePair {
  uint32_t low, high;
};
FASTSCORE_FN WidePair mul_wide(uint32_t a, uint32_t b) {
  WidePair p;
  asm("{\n\t.reg .b64 p;\n\tmul.wide.u32 p, %2, %3;\n\tmov.b64 {%0, %1}, p;\n\t}"
      : "=r"(p.low), "=r"(p.high)
      : "r"(a), "r"(b));
  return p;
}
FASTSCORE_FN uint32_t high_word(WidePair p) { return p.high; }
FASTSCORE_FN uint32_t low_word(WidePair p) { return p.low; }
#else
FASTSCORE_FN uint64_t mul_wide(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
FASTSCORE_FN uint32_t high_word(uint64_t p) { return static_cast<uint32_t>(p >> 32); }
FASTSCORE_FN uint32_t low_word(uint64_t p) { return static_cast<uint32_t>(p); }
#endif
FASTSCORE_FN uint32_t xor3(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDA_ARCH__)
  uint32_t x;  // One instruction, which the compiler does not always find.
  asm("lop3.b32 %0, %1, %2, %3, 0x96;" : "=r"(x) : "r"(a), "r"(b), "r"(c));
  return x;
#else
  return a ^ b ^ c;
#endif
}

// Constants spread over a lane type: broadcast<F>(1.0f).
template <class T>
FASTSCORE_FN T broadcast(float x);
template <class T>
FASTSCORE_FN T broadcast(uint32_t x);
template <>
FASTSCORE_FN float broadcast<float>(float x) {
  return x;
}
template <>
FASTSCORE_FN uint32_t broadcast<uint32_t>(uint32_t x) {
  return x;
}

}  // namespace fastscore::FASTSCORE_ISA
