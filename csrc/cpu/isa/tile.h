// Moving tiles of a tensor between memory and first-level-cache buffers of the compute type. A tile
// that already lies in memory as the kernel wants it is used in place.
#pragma once

#include "cpu/kernels.h"
#include "noise.h"

namespace fastscore::FASTSCORE_ISA {

// bfloat16 and float16 as stored.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTSCORE_FN float to_compute(float x) { return x; }
FASTSCORE_FN double to_compute(double x) { return x; }
FASTSCORE_FN float to_compute(BFloat16 x) {
  return float_from_bits(static_cast<uint32_t>(x.bits) << 16);
}
FASTSCORE_FN float to_compute(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Exact by construction: the exponent is moved by a product with a power of two.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float scaled = float_from_bits(magnitude) * 0x1p112f;
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t quiet = special && (x.bits & 0x3ffu) ? 0x00400000u : 0u;
  return float_from_bits(bits_of(scaled) | special | quiet | sign);
#endif
}

// In half precision every NaN is stored as 0x7fff, as CUDA's conversions do.
FASTSCORE_FN void from_compute(float x, float& out) { out = x; }
FASTSCORE_FN void from_compute(double x, double& out) { out = x; }
FASTSCORE_FN void from_compute(float x, BFloat16& out) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(x != x ? 0x7fffu : rounded);
}
FASTSCORE_FN void from_compute(float x, Float16& out) {
#if defined(__F16C__)
  out.bits = x != x ? uint16_t{0x7fff} : _cvtss_sh(x, 0);
#else
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 lines the last kept bit up with float32's last bit.
    half = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(x != x ? 0x7fffu : sign | half);
#endif
}

// Runs of memory: the compiler vectorises these loops, except float16's, which it does not know.
template <class S, class T>
FASTSCORE_FN void load_run(const S* in, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_compute(in[i]);
}
template <class S, class T>
FASTSCORE_FN void store_run(const T* in, int64_t n, S* out) {
  for (int64_t i = 0; i < n; ++i) from_compute(in[i], out[i]);
}
#if defined(__F16C__)
FASTSCORE_FN void load_run(const Float16* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
  for (; i < n; ++i) out[i] = to_compute(in[i]);
}
FASTSCORE_FN void store_run(const float* in, int64_t n, Float16* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_loadu_ps(in + i);
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256 y = _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m128i half = _mm256_cvtps_ph(y, 0);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
  }
  for (; i < n; ++i) from_compute(in[i], out[i]);
}
#endif

// Calls body(offset_in_run, memory_offset, stride, length) for each run of elements
// [begin, begin + count) of the view that has one stride.
template <class Body>
FASTSCORE_FN void for_each_run(const View& view, int64_t begin, int64_t count, const Body& body) {
  const int last = view.ndim - 1;
  int64_t index[kMaxDims];
  int64_t rest = begin;
  for (int d = last; d > 0; --d) {
    index[d] = rest % view.sizes[d];
    rest /= view.sizes[d];
  }
  index[0] = rest;
  int64_t done = 0;
  while (done < count) {
    int64_t offset = 0;
    for (int d = 0; d <= last; ++d) offset += index[d] * view.strides[d];
    int64_t length = view.sizes[last] - index[last];
    if (length > count - done) length = count - done;
    body(done, offset, view.strides[last], length);
    done += length;
    index[last] += length;
    for (int d = last; d > 0 && index[d] == view.sizes[d]; --d) {
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <class S, class T>
FASTSCORE_FN void load_as(const View& view, int64_t begin, int64_t count, T* buffer) {
  const S* data = static_cast<const S*>(view.data);
  if (view.contiguous()) {
    load_run(data + begin, count, buffer);
    return;
  }
  for_each_run(view, begin, count, [&](int64_t at, int64_t offset, int64_t stride, int64_t n) {
    for (int64_t i = 0; i < n; ++i) buffer[at + i] = to_compute(data[offset + i * stride]);
  });
}

template <class S, class T>
FASTSCORE_FN void store_as(const View& view, int64_t begin, int64_t count, const T* buffer) {
  S* data = static_cast<S*>(view.data);
  if (view.contiguous()) {
    store_run(buffer, count, data + begin);
    return;
  }
  for_each_run(view, begin, count, [&](int64_t at, int64_t offset, int64_t stride, int64_t n) {
    for (int64_t i = 0; i < n; ++i) from_compute(buffer[at + i], data[offset + i * stride]);
  });
}

template <class T>
constexpr DType kDTypeOf = DType::kFloat32;
template <>
constexpr DType kDTypeOf<double> = DType::kFloat64;

// Elements [begin, begin + count) in the compute type: the memory itself, or the buffer.
template <class T>
const T* load_tile(const View& view, int64_t begin, int64_t count, T* buffer) {
  if (view.dtype == kDTypeOf<T> && view.contiguous()) {
    return static_cast<const T*>(view.data) + begin;
  }
  if constexpr (sizeof(T) == sizeof(double)) {
    load_as<double>(view, begin, count, buffer);
  } else if (view.dtype == DType::kFloat32) {
    load_as<float>(view, begin, count, buffer);
  } else if (view.dtype == DType::kBFloat16) {
    load_as<BFloat16>(view, begin, count, buffer);
  } else {
    load_as<Float16>(view, begin, count, buffer);
  }
  return buffer;
}

// Asks memory for the tiles of one or two tensors, a group at a time while the noise that they will
// meet is being made: all at once would fill the queue of outstanding loads and stall. Only what
// the kernel reads in place is worth it.
template <class T>
class PrefetchTiles {
 public:
  PrefetchTiles(int64_t begin, const View& a) : a_(start(a, begin)) {}
  PrefetchTiles(int64_t begin, const View& a, const View& b)
      : a_(start(a, begin)), b_(start(b, begin)) {}

  FASTSCORE_FN void operator()(int64_t i) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    if (a_) {
      for (int64_t k = 0; k < kGroup; k += kLine) __builtin_prefetch(a_ + i + k);
    }
    if (b_) {
      for (int64_t k = 0; k < kGroup; k += kLine) __builtin_prefetch(b_ + i + k);
    }
  }

 private:
  static const T* start(const View& view, int64_t begin) {
    if (view.dtype != kDTypeOf<T> || !view.contiguous()) return nullptr;
    return static_cast<const T*>(view.data) + begin;
  }

  const T* a_;
  const T* b_ = nullptr;
};

// Where the kernel writes elements [begin, ...): the memory itself, or the buffer.
template <class T>
FASTSCORE_FN T* output_tile(const View& view, int64_t begin, T* buffer) {
  if (view.dtype == kDTypeOf<T> && view.contiguous()) return static_cast<T*>(view.data) + begin;
  return buffer;
}

// Writes the buffer out, unless the kernel wrote to memory.
template <class T>
void store_tile(const View& view, int64_t begin, int64_t count, const T* written) {
  if (view.dtype == kDTypeOf<T> && view.contiguous()) return;
  if constexpr (sizeof(T) == sizeof(double)) {
    store_as<double>(view, begin, count, written);
  } else if (view.dtype == DType::kFloat32) {
    store_as<float>(view, begin, count, written);
  } else if (view.dtype == DType::kBFloat16) {
    store_as<BFloat16>(view, begin, count, written);
  } else {
    store_as<Float16>(view, begin, count, written);
  }
}

FASTSCORE_FN NoiseKey noise_key(const NoiseArgs& args) {
  const uint64_t seed = static_cast<uint64_t>(args.seed);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(args.draw), static_cast<uint32_t>(args.stream)};
}

// Calls body(flat, begin, count) for each piece of elements [begin, begin + count) of the tensor,
// of which the first has flat index `flat`; cuts are at the multiples of kSize of the flat index.
template <int64_t kSize, class Body>
FASTSCORE_FN void for_each_piece(int64_t flat, int64_t begin, int64_t count, const Body& body) {
  const int64_t end = begin + count;
  while (begin < end) {
    int64_t n = kSize - flat % kSize;
    if (n > end - begin) n = end - begin;
    body(flat, begin, n);
    flat += n;
    begin += n;
  }
}

// The same for the elements that lie in a range of tiles. Where each sample draws on its own, tiles
// are made of whole samples, and `flat` is 0.
template <int64_t kSize = kTile, class Body>
FASTSCORE_FN void for_each_tile(const NoiseArgs& noise, TileRange tiles, const Body& body) {
  const int64_t tile = noise.each ? kTile - kTile % noise.sample_size : kTile;
  int64_t begin = tiles.begin * tile - noise.origin, end = tiles.end * tile - noise.origin;
  if (begin < noise.begin) begin = noise.begin;
  if (end > noise.end) end = noise.end;
  int64_t flat = noise.each ? 0 : noise.origin + begin;
  while (begin < end) {
    int64_t n = noise.each ? tile : kSize - flat % kSize;
    if (n > end - begin) n = end - begin;
    body(flat, begin, n);
    if (!noise.each) flat += n;
    begin += n;
  }
}

// The same where there is no noise.
template <class Body>
FASTSCORE_FN void for_each_tile(int64_t numel, TileRange tiles, const Body& body) {
  const int64_t begin = tiles.begin * kTile, end = tiles.end * kTile;
  for_each_piece<kTile>(begin, begin, (end < numel ? end : numel) - begin, body);
}

// Calls body(sample, begin, count) for each sample's share of elements [begin, begin + count).
template <class Body>
FASTSCORE_FN void for_each_sample(int64_t sample_size, int64_t begin, int64_t count,
                                  const Body& body) {
  int64_t sample = begin / sample_size;
  const int64_t end = begin + count;
  while (begin < end) {
    int64_t stop = (sample + 1) * sample_size;
    if (stop > end) stop = end;
    body(sample, begin, stop - begin);
    begin = stop;
    ++sample;
  }
}

}  // namespace fastscore::FASTSCORE_ISA
