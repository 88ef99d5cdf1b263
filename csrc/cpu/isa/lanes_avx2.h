// Eight lanes on AVX2 + FMA + F16C. The same functions as core/scalar.h; see there for meanings.
#pragma once

#include <immintrin.h>

#include "core/random.h"

namespace fastscore::FASTSCORE_ISA {

struct LaneU {
  __m256i v;
};
struct LaneF {
  __m256 v;
};
// Four Philox words, each in the low half of a 64-bit lane. The high halves hold whatever the last
// product left there: no function below reads them.
struct LaneW {
  __m256i v;
};
struct LaneP {
  __m256i v;
};

FASTSCORE_FN LaneU operator+(LaneU a, LaneU b) { return {_mm256_add_epi32(a.v, b.v)}; }
FASTSCORE_FN LaneU operator-(LaneU a, LaneU b) { return {_mm256_sub_epi32(a.v, b.v)}; }
FASTSCORE_FN LaneU operator&(LaneU a, LaneU b) { return {_mm256_and_si256(a.v, b.v)}; }
FASTSCORE_FN LaneU operator|(LaneU a, LaneU b) { return {_mm256_or_si256(a.v, b.v)}; }
FASTSCORE_FN LaneU operator^(LaneU a, LaneU b) { return {_mm256_xor_si256(a.v, b.v)}; }
FASTSCORE_FN LaneF operator+(LaneF a, LaneF b) { return {_mm256_add_ps(a.v, b.v)}; }
FASTSCORE_FN LaneF operator-(LaneF a, LaneF b) { return {_mm256_sub_ps(a.v, b.v)}; }
FASTSCORE_FN LaneF operator*(LaneF a, LaneF b) { return {_mm256_mul_ps(a.v, b.v)}; }

FASTSCORE_FN LaneF operator/(LaneF a, LaneF b) { return {_mm256_div_ps(a.v, b.v)}; }

FASTSCORE_FN LaneF fma(LaneF a, LaneF b, LaneF c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
FASTSCORE_FN LaneF square_root(LaneF x) { return {_mm256_sqrt_ps(x.v)}; }
FASTSCORE_FN LaneU bits_of(LaneF x) { return {_mm256_castps_si256(x.v)}; }
FASTSCORE_FN LaneF float_from_bits(LaneU u) { return {_mm256_castsi256_ps(u.v)}; }
FASTSCORE_FN LaneF float_of_signed(LaneU u) { return {_mm256_cvtepi32_ps(u.v)}; }

template <int K>
FASTSCORE_FN LaneU shift_left(LaneU u) {
  return {_mm256_slli_epi32(u.v, K)};
}
template <int K>
FASTSCORE_FN LaneU shift_right(LaneU u) {
  return {_mm256_srli_epi32(u.v, K)};
}
FASTSCORE_FN LaneU sign_mask(LaneU u) { return {_mm256_srai_epi32(u.v, 31)}; }
FASTSCORE_FN LaneU and_not(LaneU mask, LaneU u) { return {_mm256_andnot_si256(mask.v, u.v)}; }

FASTSCORE_FN LaneF select_by_sign(LaneU u, LaneF if_set, LaneF if_clear) {
  return {_mm256_blendv_ps(if_clear.v, if_set.v, _mm256_castsi256_ps(u.v))};
}
FASTSCORE_FN LaneF flip_sign(LaneF x, LaneU u) {
  const __m256i sign = _mm256_and_si256(u.v, _mm256_set1_epi32(INT32_MIN));
  return {_mm256_xor_ps(x.v, _mm256_castsi256_ps(sign))};
}

FASTSCORE_FN LaneF select_greater(LaneF x, LaneF y, LaneF if_so, LaneF if_not) {
  return {_mm256_blendv_ps(if_not.v, if_so.v, _mm256_cmp_ps(x.v, y.v, _CMP_GT_OQ))};
}
FASTSCORE_FN LaneF select_less_equal(LaneF x, LaneF y, LaneF if_so, LaneF if_not) {
  return {_mm256_blendv_ps(if_not.v, if_so.v, _mm256_cmp_ps(x.v, y.v, _CMP_LE_OQ))};
}

FASTSCORE_FN LaneP mul_wide(LaneW a, LaneW b) { return {_mm256_mul_epu32(a.v, b.v)}; }
FASTSCORE_FN LaneW high_word(LaneP p) { return {_mm256_srli_epi64(p.v, 32)}; }
FASTSCORE_FN LaneW low_word(LaneP p) { return {p.v}; }
FASTSCORE_FN LaneW operator+(LaneW a, LaneW b) { return {_mm256_add_epi32(a.v, b.v)}; }
FASTSCORE_FN LaneP load_wide(const uint64_t* in) {
  return {_mm256_load_si256(reinterpret_cast<const __m256i*>(in))};
}
FASTSCORE_FN LaneW xor3(LaneW a, LaneW b, LaneW c) {
  return {_mm256_xor_si256(_mm256_xor_si256(a.v, c.v), b.v)};
}

template <>
FASTSCORE_FN LaneF broadcast<LaneF>(float x) {
  return {_mm256_set1_ps(x)};
}
template <>
FASTSCORE_FN LaneU broadcast<LaneU>(uint32_t x) {
  return {_mm256_set1_epi32(static_cast<int32_t>(x))};
}
template <>
FASTSCORE_FN LaneW broadcast<LaneW>(uint32_t x) {
  return {_mm256_set1_epi64x(x)};
}

FASTSCORE_FN void load(const float* in, LaneF& x) { x.v = _mm256_loadu_ps(in); }
FASTSCORE_FN void store(float* out, LaneF x) { _mm256_storeu_ps(out, x.v); }
// The first n of 32 numbers, then zeros.
FASTSCORE_FN void load_first(const float* in, int n, float* out) {
  const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int k = 0; k < 32; k += 8) {
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - k), place);
    _mm256_storeu_ps(out + k, _mm256_maskload_ps(in + k, mask));
  }
}
FASTSCORE_FN LaneU load_words(const void* in) {
  return {_mm256_load_si256(static_cast<const __m256i*>(in))};
}
FASTSCORE_FN void store_words(void* out, LaneU u) {
  _mm256_store_si256(static_cast<__m256i*>(out), u.v);
}

// One group: the eight blocks that two Philox chains make, 32 elements. Block b of the group sits
// in lane kLaneOfBlock order 0 2 4 6 | 1 3 5 7, so that transposing within 128-bit halves is enough
// to bring the elements into their natural order.
constexpr int kChains = 2;
constexpr int kBlocksPerGroup = 8;

FASTSCORE_FN LaneW first_counter(uint32_t block, int chain) {
  const __m256i base = _mm256_set1_epi64x(block);
  return {_mm256_add_epi64(
      base, chain == 0 ? _mm256_setr_epi64x(0, 4, 1, 5) : _mm256_setr_epi64x(2, 6, 3, 7))};
}

FASTSCORE_FN LaneU merge(LaneW even, LaneW odd) {
  return {_mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xAA)};
}

// z0..z3 hold element 0..3 of each block; writes the 32 elements in order.
FASTSCORE_FN void store_group(float* out, LaneF z0, LaneF z1, LaneF z2, LaneF z3) {
  const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(z0.v, z1.v));
  const __m256d b = _mm256_castps_pd(_mm256_unpacklo_ps(z2.v, z3.v));
  const __m256d c = _mm256_castps_pd(_mm256_unpackhi_ps(z0.v, z1.v));
  const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(z2.v, z3.v));
  _mm256_storeu_ps(out, _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)));
  _mm256_storeu_ps(out + 8, _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  _mm256_storeu_ps(out + 16, _mm256_castpd_ps(_mm256_unpacklo_pd(c, d)));
  _mm256_storeu_ps(out + 24, _mm256_castpd_ps(_mm256_unpackhi_pd(c, d)));
}

}  // namespace fastscore::FASTSCORE_ISA
