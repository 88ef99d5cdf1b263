// The noise of packs whose samples each draw on their own, by a number or by a key.
#pragma once

#include <optional>

#include "checks.h"
#include "cuda/access.cuh"
#include "cuda/noise.cuh"

namespace fastscore::FASTSCORE_ISA {

// What makes the numbers of a distribution; `flat` is a multiple of V.
struct Normal {
  template <int V>
  static __device__ __forceinline__ void draw(const NoiseKey& key, int64_t flat, float (&z)[V]) {
    normals(key, flat, z);
  }
};

struct Uniform {
  template <int V>
  static __device__ __forceinline__ void draw(const NoiseKey& key, int64_t flat, float (&z)[V]) {
    uniforms(key, flat, z);
  }
};

struct Rademacher {
  template <int V>
  static __device__ __forceinline__ void draw(const NoiseKey& key, int64_t flat, float (&z)[V]) {
    signs(key, flat, z);
  }
};

// One element after the other, of a pack that is not a piece of one sample's blocks.
template <class Distribution, int V, class OwnOf>
__device__ __forceinline__ void draw_apart(const Divider& sample_size, const OwnOf& own_of,
                                           const Range& range, float (&z)[V]) {
  int64_t sample = sample_size(range.i + range.low);
  int64_t end = (sample + 1) * sample_size.divisor - range.i;
  OwnNoise own = own_of(sample);
  float block[4] = {};
  int64_t made = 0;
  bool any = false;
#pragma unroll 1
  for (int j = range.low; j < range.high; ++j) {
    if (j == end) {
      own = own_of(++sample);
      end += sample_size.divisor;
      any = false;
    }
    const int64_t flat = own.origin + range.i + j, first = flat & ~int64_t{3};
    if (!any || first != made) {
      Distribution::draw(own.key, first, block);
      made = first;
      any = true;
    }
    const int place = static_cast<int>(flat & 3);
    const float low = place == 0 ? block[0] : block[1], high = place == 2 ? block[2] : block[3];
    const float value = place < 2 ? low : high;
#pragma unroll
    for (int k = 0; k < V; ++k) z[k] = k == j ? value : z[k];
  }
}

// The numbers of a pack that has elements; own_of(sample) is what its sample draws with.
template <class Distribution, int V, class OwnOf>
__device__ __forceinline__ void draw_each(const Divider& sample_size, const OwnOf& own_of,
                                          const Range& range, float (&z)[V]) {
  const int64_t sample = sample_size(range.i + range.low);
  const OwnNoise own = own_of(sample);
  const int64_t flat = own.origin + range.i;
  const bool one_sample = range.i + range.high <= (sample + 1) * sample_size.divisor;
  if (one_sample && (flat & (V - 1)) == 0) {
    Distribution::draw(own.key, flat, z);
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) z[k] = 0;
    draw_apart<Distribution>(sample_size, own_of, range, z);
  }
}

// The same where a kernel is compiled for either: kEach says whether samples draw on their own, and
// `key` is the one of all if they don't.
template <class Distribution, bool kEach, int V>
__device__ __forceinline__ void draw(const NoiseSource& source, const NoiseKey& key,
                                     const Range& range, float (&z)[V]) {
  if constexpr (kEach) {
    const auto own_of = [&](int64_t sample) { return source.own(sample); };
    draw_each<Distribution>(source.sample_size, own_of, range, z);
  } else {
    Distribution::draw(key, source.origin + range.i, z);
  }
}

// A noise source, and the memory of what it reads.
struct Noise {
  Tensor key;
  std::optional<Tensor> numbers;
  NoiseSource source;

  Noise(const Tensor& key_tensor, Stream stream, int64_t sample_offset,
        const std::optional<Tensor>& samples, int64_t size)
      : key(key_tensor) {
    source.each = samples || key.dim() == 2;
    if (key.dim() == 2) key = torch::stable::contiguous(key);
    if (samples) numbers = torch::stable::contiguous(*samples);
    source.key = key.const_data_ptr<int64_t>();
    source.stream = stream;
    source.origin = sample_offset * size;
    source.numbers = numbers ? numbers->const_data_ptr<int64_t>() : nullptr;
    source.sample_size = Divider::by(size);
  }

  // Calls body with a constant: whether samples draw on their own.
  template <class Body>
  void split(const Body& body) const {
    if (source.each) {
      body(std::true_type());
    } else {
      body(std::false_type());
    }
  }
};

// Whether packs of V elements of a row hold whole blocks of its noise, and lie in memory alike.
inline bool rows_packable(const NoiseSource& source, int v) {
  return source.each ? source.sample_size.divisor % v == 0 : source.origin % v == 0;
}

}  // namespace fastscore::FASTSCORE_ISA
