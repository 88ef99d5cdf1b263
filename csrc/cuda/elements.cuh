// Elements as stored (float, double, bfloat16, float16) and as computed with (float, double), one
// at a time and in packs moved by 16-byte accesses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "core/config.h"
#include "core/view.h"

namespace fastscore::FASTSCORE_ISA {

using BFloat16 = __nv_bfloat16;
using Float16 = __half;

// Half precision computes in float and rounds once, to nearest even, as on the CPU.
template <class S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeType<S>::type;

__device__ __forceinline__ float to_compute(float x) { return x; }
__device__ __forceinline__ double to_compute(double x) { return x; }
__device__ __forceinline__ float to_compute(BFloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_compute(Float16 x) { return __half2float(x); }

__device__ __forceinline__ void from_compute(float x, float& out) { out = x; }
__device__ __forceinline__ void from_compute(double x, double& out) { out = x; }
__device__ __forceinline__ void from_compute(float x, BFloat16& out) {
  out = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void from_compute(float x, Float16& out) { out = __float2half_rn(x); }

// Calls body(S()) with the type that elements of `dtype` are stored as.
template <class Body>
void with_storage(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(double());
    case DType::kBFloat16:
      return body(BFloat16());
    case DType::kFloat16:
      return body(Float16());
    default:
      return body(float());
  }
}

// Elements of a pack: 16 bytes of half precision or of float, and whole blocks of noise.
template <class S>
constexpr int kPack = sizeof(S) == 2 ? 8 : 4;

// V elements as they lie in memory. They are kept so until they are used: half precision then takes
// half the registers.
template <class S, int V>
struct Pack {
  static constexpr int kWords = V * sizeof(S) / 4;
  uint32_t words[kWords];
};

// From an address that is a multiple of 16, or of the pack's size where that is less.
template <class S, int V>
__device__ __forceinline__ Pack<S, V> load_pack(const S* from) {
  Pack<S, V> p;
  if constexpr (p.kWords == 1) {
    p.words[0] = *reinterpret_cast<const uint32_t*>(from);
  } else if constexpr (p.kWords == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    p.words[0] = v.x, p.words[1] = v.y;
  } else {
#pragma unroll
    for (int k = 0; k < p.kWords; k += 4) {
      const uint4 v = reinterpret_cast<const uint4*>(from)[k / 4];
      p.words[k] = v.x, p.words[k + 1] = v.y, p.words[k + 2] = v.z, p.words[k + 3] = v.w;
    }
  }
  return p;
}

// In assembly: a plain store the compiler takes apart, to share its pieces with store_part.
__device__ __forceinline__ void store_words(void* to, uint32_t a, uint32_t b) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(a),
               "r"(b)
               : "memory");
}
__device__ __forceinline__ void store_words(void* to, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

template <class S, int V>
__device__ __forceinline__ void store_pack(const Pack<S, V>& p, S* to) {
  if constexpr (p.kWords == 2) {
    store_words(to, p.words[0], p.words[1]);
  } else {
#pragma unroll
    for (int k = 0; k < p.kWords; k += 4) {
      store_words(reinterpret_cast<uint32_t*>(to) + k, p.words[k], p.words[k + 1], p.words[k + 2],
                  p.words[k + 3]);
    }
  }
}

// The elements [low, high) alone; the rest of a loaded pack is zero.
template <class S, int V>
__device__ __forceinline__ Pack<S, V> load_part(const S* from, int low, int high) {
  Pack<S, V> p = {};
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (j < low || j >= high) continue;
    if constexpr (sizeof(S) == 8) {
      const uint2 v = reinterpret_cast<const uint2*>(from)[j];
      p.words[2 * j] = v.x, p.words[2 * j + 1] = v.y;
    } else if constexpr (sizeof(S) == 4) {
      p.words[j] = reinterpret_cast<const uint32_t*>(from)[j];
    } else if constexpr (sizeof(S) == 2) {
      const uint32_t v = reinterpret_cast<const uint16_t*>(from)[j];
      p.words[j / 2] |= v << (16 * (j % 2));
    } else {
      const uint32_t v = reinterpret_cast<const uint8_t*>(from)[j];
      p.words[j / 4] |= v << (8 * (j % 4));
    }
  }
  return p;
}

template <class S, int V>
__device__ __forceinline__ void store_part(const Pack<S, V>& p, S* to, int low, int high) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (j < low || j >= high) continue;
    if constexpr (sizeof(S) == 8) {
      reinterpret_cast<uint2*>(to)[j] = make_uint2(p.words[2 * j], p.words[2 * j + 1]);
    } else if constexpr (sizeof(S) == 4) {
      reinterpret_cast<uint32_t*>(to)[j] = p.words[j];
    } else {
      reinterpret_cast<uint16_t*>(to)[j] = static_cast<uint16_t>(p.words[j / 2] >> (16 * (j % 2)));
    }
  }
}

// ---- to and from the compute type ------------------------------------------------------------

template <int V>
__device__ __forceinline__ void unpack(const Pack<float, V>& p, float (&x)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = __uint_as_float(p.words[j]);
}
template <int V>
__device__ __forceinline__ void unpack(const Pack<double, V>& p, double (&x)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = __hiloint2double(p.words[2 * j + 1], p.words[2 * j]);
}
template <int V>
__device__ __forceinline__ void unpack(const Pack<BFloat16, V>& p, float (&x)[V]) {
#pragma unroll
  for (int j = 0; j < V; j += 2) {
    x[j] = __uint_as_float(p.words[j / 2] << 16);
    x[j + 1] = __uint_as_float(p.words[j / 2] & 0xffff0000u);
  }
}
template <int V>
__device__ __forceinline__ void unpack(const Pack<Float16, V>& p, float (&x)[V]) {
#pragma unroll
  for (int j = 0; j < V; j += 2) {
    __half2 pair;
    memcpy(&pair, &p.words[j / 2], sizeof pair);
    const float2 both = __half22float2(pair);
    x[j] = both.x, x[j + 1] = both.y;
  }
}
// Flags: one byte each.
template <int V>
__device__ __forceinline__ void unpack(const Pack<bool, V>& p, bool (&x)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = p.words[j / 4] & (0xffu << (8 * (j % 4)));
}

template <int V>
__device__ __forceinline__ void pack(const float (&x)[V], Pack<float, V>& p) {
#pragma unroll
  for (int j = 0; j < V; ++j) p.words[j] = __float_as_uint(x[j]);
}
template <int V>
__device__ __forceinline__ void pack(const double (&x)[V], Pack<double, V>& p) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    p.words[2 * j] = __double2loint(x[j]);
    p.words[2 * j + 1] = __double2hiint(x[j]);
  }
}
template <int V>
__device__ __forceinline__ void pack(const float (&x)[V], Pack<BFloat16, V>& p) {
#pragma unroll
  for (int j = 0; j < V; j += 2) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[j], x[j + 1]);
    memcpy(&p.words[j / 2], &pair, sizeof pair);
  }
}
template <int V>
__device__ __forceinline__ void pack(const float (&x)[V], Pack<Float16, V>& p) {
#pragma unroll
  for (int j = 0; j < V; j += 2) {
    const __half2 pair = __floats2half2_rn(x[j], x[j + 1]);
    memcpy(&p.words[j / 2], &pair, sizeof pair);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
