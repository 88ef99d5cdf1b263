// Sixteen lanes on AVX-512 F + DQ. The same functions as core/scalar.h; see there for meanings.
#pragma once

#include <immintrin.h>

#include "core/random.h"

namespace fastscore::FASTSCORE_ISA {

struct LaneU {
  __m512i v;
};
struct LaneF {
  __m512 v;
};
// Eight Philox words, each in the low half of a 64-bit lane; the high halves are never read.
struct LaneW {
  __m512i v;
};
struct LaneP {
  __m512i v;
};

FASTSCORE_FN LaneU operator+(LaneU a, LaneU b) { return {_mm512_add_epi32(a.v, b.v)}; }
FASTSCORE_FN LaneU operator-(LaneU a, LaneU b) { return {_mm512_sub_epi32(a.v, b.v)}; }
FASTSCORE_FN LaneU operator&(LaneU a, LaneU b) { return {_mm512_and_si512(a.v, b.v)}; }
FASTSCORE_FN LaneU operator|(LaneU a, LaneU b) { return {_mm512_or_si512(a.v, b.v)}; }
FASTSCORE_FN LaneU operator^(LaneU a, LaneU b) { return {_mm512_xor_si512(a.v, b.v)}; }
FASTSCORE_FN LaneF operator+(LaneF a, LaneF b) { return {_mm512_add_ps(a.v, b.v)}; }
FASTSCORE_FN LaneF operator-(LaneF a, LaneF b) { return {_mm512_sub_ps(a.v, b.v)}; }
FASTSCORE_FN LaneF operator*(LaneF a, LaneF b) { return {_mm512_mul_ps(a.v, b.v)}; }

FASTSCORE_FN LaneF operator/(LaneF a, LaneF b) { return {_mm512_div_ps(a.v, b.v)}; }

FASTSCORE_FN LaneF fma(LaneF a, LaneF b, LaneF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FASTSCORE_FN LaneF square_root(LaneF x) { return {_mm512_sqrt_ps(x.v)}; }
FASTSCORE_FN LaneU bits_of(LaneF x) { return {_mm512_castps_si512(x.v)}; }
FASTSCORE_FN LaneF float_from_bits(LaneU u) { return {_mm512_castsi512_ps(u.v)}; }
FASTSCORE_FN LaneF float_of_signed(LaneU u) { return {_mm512_cvtepi32_ps(u.v)}; }

template <int K>
FASTSCORE_FN LaneU shift_left(LaneU u) {
  return {_mm512_slli_epi32(u.v, K)};
}
template <int K>
FASTSCORE_FN LaneU shift_right(LaneU u) {
  return {_mm512_srli_epi32(u.v, K)};
}
FASTSCORE_FN LaneU sign_mask(LaneU u) { return {_mm512_srai_epi32(u.v, 31)}; }
FASTSCORE_FN LaneU and_not(LaneU mask, LaneU u) { return {_mm512_andnot_si512(mask.v, u.v)}; }

FASTSCORE_FN LaneF select_by_sign(LaneU u, LaneF if_set, LaneF if_clear) {
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(u.v), if_clear.v, if_set.v)};
}
FASTSCORE_FN LaneF flip_sign(LaneF x, LaneU u) {
  // 0x78: a ^ (b & c).
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(x.v), u.v,
                                                        _mm512_set1_epi32(INT32_MIN), 0x78))};
}

FASTSCORE_FN LaneF select_greater(LaneF x, LaneF y, LaneF if_so, LaneF if_not) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ), if_not.v, if_so.v)};
}
FASTSCORE_FN LaneF select_less_equal(LaneF x, LaneF y, LaneF if_so, LaneF if_not) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LE_OQ), if_not.v, if_so.v)};
}

FASTSCORE_FN LaneP mul_wide(LaneW a, LaneW b) { return {_mm512_mul_epu32(a.v, b.v)}; }
FASTSCORE_FN LaneW high_word(LaneP p) { return {_mm512_srli_epi64(p.v, 32)}; }
FASTSCORE_FN LaneW low_word(LaneP p) { return {p.v}; }
FASTSCORE_FN LaneW operator+(LaneW a, LaneW b) { return {_mm512_add_epi32(a.v, b.v)}; }
FASTSCORE_FN LaneP load_wide(const uint64_t* in) { return {_mm512_load_si512(in)}; }
FASTSCORE_FN LaneW xor3(LaneW a, LaneW b, LaneW c) {
  return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)};
}

template <>
FASTSCORE_FN LaneF broadcast<LaneF>(float x) {
  return {_mm512_set1_ps(x)};
}
template <>
FASTSCORE_FN LaneU broadcast<LaneU>(uint32_t x) {
  return {_mm512_set1_epi32(static_cast<int32_t>(x))};
}
template <>
FASTSCORE_FN LaneW broadcast<LaneW>(uint32_t x) {
  return {_mm512_set1_epi64(x)};
}

FASTSCORE_FN void load(const float* in, LaneF& x) { x.v = _mm512_loadu_ps(in); }
FASTSCORE_FN void store(float* out, LaneF x) { _mm512_storeu_ps(out, x.v); }
// The first n of 32 numbers, then zeros.
FASTSCORE_FN void load_first(const float* in, int n, float* out) {
  const uint32_t mask = n < 32 ? (uint32_t{1} << n) - 1 : ~uint32_t{0};
  _mm512_storeu_ps(out, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), in));
  _mm512_storeu_ps(out + 16, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), in + 16));
}
FASTSCORE_FN LaneU load_words(const void* in) { return {_mm512_load_si512(in)}; }
FASTSCORE_FN void store_words(void* out, LaneU u) { _mm512_store_si512(out, u.v); }

// One group: the sixteen blocks that two Philox chains make, 64 elements. 128-bit lane k holds
// blocks k, 4 + k, 8 + k and 12 + k, so that transposing within 128-bit lanes is enough to bring
// the elements into their natural order.
constexpr int kChains = 2;
constexpr int kBlocksPerGroup = 16;

FASTSCORE_FN LaneW first_counter(uint32_t block, int chain) {
  const __m512i base = _mm512_set1_epi64(block);
  return {_mm512_add_epi64(base, chain == 0 ? _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11)
                                            : _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15))};
}

FASTSCORE_FN LaneU merge(LaneW even, LaneW odd) {
  return {_mm512_mask_shuffle_epi32(even.v, 0xAAAA, odd.v, static_cast<_MM_PERM_ENUM>(0xA0))};
}

// z0..z3 hold element 0..3 of each block; writes the 64 elements in order.
FASTSCORE_FN void store_group(float* out, LaneF z0, LaneF z1, LaneF z2, LaneF z3) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(z0.v, z1.v));
  const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(z2.v, z3.v));
  const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(z0.v, z1.v));
  const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(z2.v, z3.v));
  _mm512_storeu_ps(out, _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)));
  _mm512_storeu_ps(out + 16, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  _mm512_storeu_ps(out + 32, _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)));
  _mm512_storeu_ps(out + 48, _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

}  // namespace fastscore::FASTSCORE_ISA
