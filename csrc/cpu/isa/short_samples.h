// Samples of few elements. A loop over each would take longer than its work, so here the loops run
// over whole tiles: what is one number for a sample is spread out to its elements first, and terms
// are summed afterwards.
#pragma once

#include "rows.h"
#include "sample_noise.h"

namespace fastscore::FASTSCORE_ISA {

static_assert(kMargin >= kLongestShort && kLongestShort <= 16);  // 16: see short_sums

FASTSCORE_FN bool is_short(int64_t sample_size) { return sample_size <= kLongestShort; }

// kColumns numbers for each element of a tile, those of its sample.
template <class T, int kColumns>
class Spread {
 public:
  // row(sample, numbers) gives the kColumns numbers of one sample.
  template <class Row>
  FASTSCORE_FN void fill(int64_t sample_size, int64_t begin, int64_t count, const Row& row) {
    if (sample_size <= 4) {
      fill_by<4>(sample_size, begin, count, row);
    } else if (sample_size <= 8) {
      fill_by<8>(sample_size, begin, count, row);
    } else {
      fill_by<kMargin>(sample_size, begin, count, row);
    }
  }

  FASTSCORE_FN const T* column(int c) const { return values_[c] + kMargin; }

 private:
  // kWidth copies of each number at once; those beyond its sample are overwritten by the next one.
  template <int kWidth, class Row>
  FASTSCORE_FN void fill_by(int64_t sample_size, int64_t begin, int64_t count, const Row& row) {
    int64_t sample = begin / sample_size;
    // The first sample may have begun before the tile.
    for (int64_t at = sample * sample_size - begin; at < count; at += sample_size, ++sample) {
      T numbers[kColumns];
      row(sample, numbers);
      for (int c = 0; c < kColumns; ++c) {
        T* out = values_[c] + kMargin + at;
        for (int k = 0; k < kWidth; ++k) out[k] = numbers[c];
      }
    }
  }

  alignas(64) T values_[kColumns][kMargin + kTile + kMargin];
};

// Calls body(number, at, n) for elements [begin + at, begin + at + n) of a tile, until it is done:
// number(c, i) is number c of the sample that element begin + at + i belongs to. load(sample,
// numbers) gives those of a sample; where not `each`, all samples have those of sample 0.
template <class T, int kColumns, class Load, class Body>
FASTSCORE_FN void with_numbers(Spread<T, kColumns>& spread, bool each, int64_t sample_size,
                               int64_t begin, int64_t count, const Load& load, const Body& body) {
  const auto run = [&](int64_t sample, int64_t first, int64_t n) {
    T numbers[kColumns];
    load(sample, numbers);
    body([=](int c, int64_t) { return numbers[c]; }, first - begin, n);
  };
  if (!each) {
    run(0, begin, count);
  } else if (is_short(sample_size)) {
    spread.fill(sample_size, begin, count, load);
    const Spread<T, kColumns>& all = spread;
    body([&](int c, int64_t i) { return all.column(c)[i]; }, 0, count);
  } else {
    for_each_sample(sample_size, begin, count, run);
  }
}

// The unsigned integer of T's size.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using Type = uint32_t;
};
template <>
struct BitsOf<double> {
  using Type = uint64_t;
};

// Sums of n <= kWidth terms each. Those beyond a sample are wiped out; up to
// kMargin behind the last one are read.
template <int kWidth, class T>
FASTSCORE_FN void sum_each(const T* terms, int64_t samples, int64_t n, double* __restrict sums) {
  using Bits = Numbers<typename BitsOf<T>::Type, kWidth>;
  Bits inside;
  for (int k = 0; k < kWidth; ++k) inside[k] = k < n ? -1 : 0;
  for (int64_t b = 0; b < samples; ++b) {
    Bits bits;
    memcpy(&bits, terms + b * n, sizeof bits);
    const auto part = (Numbers<T, kWidth>)(bits & inside);
    if constexpr (kWidth == 8) {
      sums[b] = fold_8<T>(part);
    } else {
      sums[b] = fold_16<T>(part);
    }
  }
}
// Of so few terms the compiler makes vectors of samples.
template <int kSize, class T>
FASTSCORE_FN void sum_few(const T* __restrict terms, int64_t samples, double* __restrict sums) {
  for (int64_t b = 0; b < samples; ++b) {
    double sum = static_cast<double>(terms[b * kSize]);
    for (int i = 1; i < kSize; ++i) sum += static_cast<double>(terms[b * kSize + i]);
    sums[b] = sum;
  }
}

template <class T>
FASTSCORE_FN void short_sums(const T* terms, int64_t samples, int64_t n, double* sums) {
  if (n == 1) {
    sum_few<1>(terms, samples, sums);
  } else if (n == 2) {
    sum_few<2>(terms, samples, sums);
  } else if (n == 3) {
    sum_few<3>(terms, samples, sums);
  } else if (n == 4) {
    sum_few<4>(terms, samples, sums);
  } else if (n <= 8) {
    sum_each<8>(terms, samples, n, sums);
  } else {
    sum_each<16>(terms, samples, n, sums);
  }
}

// The terms of a tile's elements, and room to read past them.
template <class T>
struct Terms {
  T values[kTile + kMargin];
};

// Of samples that each have their number: those that lie across the end of a tile of the flat index
// are summed in two shares, as they are in the whole batch.
template <class T>
FASTSCORE_FN void sum_cut_samples(const NoiseArgs& noise, const T* terms, int64_t sample,
                                  int64_t samples, double* done) {
  const int64_t size = noise.sample_size;
  for (int64_t i = 0; i < samples; ++i) {
    const int64_t share = kTile - noise.numbers[sample + i] * size % kTile;
    if (share >= size) continue;
    double first, second;
    short_sums(terms + i * size, 1, share, &first);
    short_sums(terms + i * size + share, 1, size - share, &second);
    done[sample + i] = first + second;
  }
}

// Sums the terms of elements [begin, begin + count) of one tile over each short sample and files
// the sums.
template <class T>
FASTSCORE_FN void file_short_sums(const Terms<T>& all, const NoiseArgs& noise, int64_t sample_size,
                                  int64_t begin, int64_t count, int64_t tile, double* done,
                                  double* head, double* tail) {
  const T* terms = all.values;
  int64_t sample = begin / sample_size, at = 0;
  const auto file_part = [&](int64_t n) {
    double sum;
    short_sums(terms + at, 1, n, &sum);
    file_share(sum, sample, begin + at, n, sample_size, tile, done, head, tail);
    at += n;
    ++sample;
  };
  const int64_t begun = begin - sample * sample_size;
  if (begun > 0) file_part(sample_size - begun < count ? sample_size - begun : count);
  const int64_t whole = (count - at) / sample_size;
  short_sums(terms + at, whole, sample_size, done + sample);
  if (noise.numbers) sum_cut_samples(noise, terms, sample, whole, done);
  at += whole * sample_size;
  sample += whole;
  if (at < count) file_part(count - at);
}

}  // namespace fastscore::FASTSCORE_ISA
