// From random bits to numbers. Flat element index i draws from
//   normal, uniform: block i / 4, word i % 4
//   Rademacher:      block i / 128, bit i % 128 (word first, least significant bit first)
// Normals are Box-Muller on the word pairs (0, 1) and (2, 3); the polynomials' coefficients come
// from tools/derive_polynomials.py.
#pragma once

#include "philox.h"

namespace fastscore::FASTSCORE_ISA {

constexpr int kNormalsPerBlock = 4;
constexpr int kSignsPerBlock = 128;

// -2 ln((w + 1/2) 2^-32) in [2^-32, 46]. U is the lane's word type, F its float type.
template <class F, class U>
FASTSCORE_FN F neg2_log_uniform(U w) {
  // Below 1/2 the uniform itself is converted, above it its distance from 1, so that neither end
  // loses bits: x is at most 31 bits, g = min(u, 1 - u) in (0, 1/2].
  const U upper = sign_mask(w);
  const F x = float_of_signed(w ^ upper);
  const F g = fma(x, broadcast<F>(0x1p-32f), broadcast<F>(0x1p-33f));
  // u = (1 - h) 2^e with h in [0, 1/2] and e <= 0: every term of the sum below is positive.
  const U b = bits_of(g);
  const F m = float_from_bits((b & broadcast<U>(0x007fffffu)) | broadcast<U>(0x3f000000u));
  const U e = and_not(upper, b - broadcast<U>(0x3f000000u)) & broadcast<U>(0xff800000u);
  const F h = select_by_sign(w, g, broadcast<F>(1.0f) - m);
  // -2 ln(1 - h) = 2 h + h^2 R(h), by Estrin's scheme: a short chain of dependent operations.
  const F h2 = h * h;
  const F r01 = fma(broadcast<F>(0x1.5542f6p-1f), h, broadcast<F>(0x1.00001ep+0f));
  const F r23 = fma(broadcast<F>(0x1.6830e8p-2f), h, broadcast<F>(0x1.01e9dap-1f));
  const F r45 = fma(broadcast<F>(-0x1.2f3e04p+0f), h, broadcast<F>(0x1.5c3ae6p-1f));
  const F r67 = fma(broadcast<F>(-0x1.3cfc78p+2f), h, broadcast<F>(0x1.f88f2ep+1f));
  const F h4 = h2 * h2;
  const F r03 = fma(r23, h2, r01);
  const F r68 = fma(broadcast<F>(0x1.be5254p+1f), h2, r67);
  const F r = fma(fma(r68, h2, r45), h4, r03);
  return fma(float_of_signed(e), broadcast<F>(-0x1.62e43p-23f), fma(h2, r, h + h));
}

// cos and sin of the angle 2 pi w 2^-32.
template <class F, class U>
FASTSCORE_FN void cos_sin_turn(U w, F& cosine, F& sine) {
  // Nearest multiple of a quarter turn: its number is in the two top bits of v, and what is left
  // of w, read as a signed word, is t in [-1, 1) times an eighth of a turn. Exact.
  const U v = w + broadcast<U>(0x20000000u);
  const F t = float_of_signed(shift_left<2>(w)) * broadcast<F>(0x1p-31f);
  const F y = t * t;
  F s = broadcast<F>(-0x1.2db5cep-15f);
  s = fma(s, y, broadcast<F>(0x1.465facp-9f));
  s = fma(s, y, broadcast<F>(-0x1.4abbbep-4f));
  s = fma(s, y, broadcast<F>(-0x1.777a5cp-26f));    // pi/4 = hi + lo,
  s = fma(t, broadcast<F>(0x1.921fb6p-1f), t * s);  // sin(pi/4 t)
  F c = broadcast<F>(0x1.d4f7eep-19f);
  c = fma(c, y, broadcast<F>(-0x1.55b2b6p-12f));
  c = fma(c, y, broadcast<F>(0x1.03c1b0p-6f));
  c = fma(c, y, broadcast<F>(-0x1.3bd3ccp-2f));
  c = fma(c, y, broadcast<F>(1.0f));  // cos(pi/4 t)
  // Odd quarters swap the two; cos is negative in quarters 1 and 2, sin in 2 and 3.
  const U odd = v + v;
  cosine = flip_sign(select_by_sign(odd, s, c), v ^ odd);
  sine = flip_sign(select_by_sign(odd, c, s), v);
}

// The square root of a radius squared, 2^-32 to 46.
template <class F>
FASTSCORE_FN F root_of_radius(F x) {
  return square_root(x);
}
#if defined(__CUDA_ARCH__)
// Correctly rounded as well: the very instructions that sqrt.rn becomes, without the test for
// arguments out of [2^-101, infinity) and the call that serves them.
template <>
FASTSCORE_FN float root_of_radius<float>(float x) {
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  const float root = x * inverse;
  return fma(fma(-root, root, x), inverse * 0.5f, root);
}
#endif

// Two independent standard normals from two words (Box and Muller 1958).
template <class F, class U>
FASTSCORE_FN void box_muller(U w_radius, U w_angle, F& z0, F& z1) {
  const F radius = root_of_radius(neg2_log_uniform<F>(w_radius));
  F cosine, sine;
  cos_sin_turn<F>(w_angle, cosine, sine);
  z0 = radius * cosine;
  z1 = radius * sine;
}

// Uniform in [0, 1): the top 24 bits.
template <class F, class U>
FASTSCORE_FN F uniform_of(U w) {
  return float_of_signed(shift_right<8>(w)) * broadcast<F>(0x1p-24f);
}

// The four normals of one block, for the scalar lane.
FASTSCORE_FN void normal_block(const NoiseKey& key, uint64_t block, float (&z)[4]) {
  const PhiloxBlock<uint32_t> w = philox_block(key, block);
  box_muller(w.w0, w.w1, z[0], z[1]);
  box_muller(w.w2, w.w3, z[2], z[3]);
}

// Word number k of a block, for the scalar lane.
FASTSCORE_FN uint32_t word_of(const PhiloxBlock<uint32_t>& w, uint32_t k) {
  return k < 2 ? (k == 0 ? w.w0 : w.w1) : (k == 2 ? w.w2 : w.w3);
}

// An integer uniform in [0, n), n < 2^32, from one word.
FASTSCORE_FN int64_t index_below(uint32_t n, uint32_t word) { return high_word(mul_wide(word, n)); }

// The same for element `index`.
FASTSCORE_FN int64_t uniform_index(const NoiseKey& key, uint64_t index, uint32_t n) {
  const PhiloxBlock<uint32_t> w = philox_block(key, index / kNormalsPerBlock);
  return index_below(n, word_of(w, static_cast<uint32_t>(index % kNormalsPerBlock)));
}

}  // namespace fastscore::FASTSCORE_ISA
