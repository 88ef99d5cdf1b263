// What steps do to a tile before and after their update: a score of two terms, and what the columns
// m and u say.
#pragma once

#include "core/langevin.h"
#include "short_samples.h"

namespace fastscore::FASTSCORE_ISA {

// Where the row of a sample begins.
FASTSCORE_FN const double* row_at(const LangevinArgs& args, int64_t sample) {
  return args.rows + (args.batch_rows == 1 ? 0 : args.columns * sample);
}

template <class T, class Number>
FASTSCORE_FN void two_terms_run(const Number& w, const T* first, const T* second, int64_t n,
                                T* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = two_terms(w(0, i), first[i], w(1, i), second[i]);
}

// The score of a tile, in memory or in the buffer; of two terms, their weighted sum.
template <class T>
FASTSCORE_FN const T* load_score(const LangevinArgs& args, int64_t begin, int64_t count,
                                 T* buffer) {
  const T* first = load_tile(args.score, begin, count, buffer);
  if (!args.weights) return first;
  T second_buffer[kTile];
  Spread<T, 2> spread;
  const T* second = load_tile(args.second, begin, count, second_buffer);
  const auto load = [&](int64_t sample, T(&w)[2]) {
    const double* pair = args.weights + sample * args.weights_step;
    w[0] = static_cast<T>(pair[0]);
    w[1] = static_cast<T>(pair[args.weights_stride]);
  };
  const auto body = [&](const auto& w, int64_t at, int64_t n) {
    two_terms_run(w, first + at, second + at, n, buffer + at);
  };
  with_numbers(spread, args.weights_step != 0, args.sample_size, begin, count, load, body);
  return buffer;
}

// Calls body(m_or_u, at, n) with column `column` of each sample's row.
template <class T, class Body>
FASTSCORE_FN void with_column(const LangevinArgs& args, int column, int64_t begin, int64_t count,
                              const Body& body) {
  Spread<T, 1> spread;
  const auto load = [&](int64_t sample, T(&number)[1]) {
    number[0] = static_cast<T>(row_at(args, sample)[column]);
  };
  with_numbers(spread, args.batch_rows != 1, args.sample_size, begin, count, load, body);
}

// The known values of a tile, m known where the table has that column; null where there are none.
template <class T>
FASTSCORE_FN const T* load_known(const LangevinArgs& args, int64_t begin, int64_t count,
                                 T* buffer) {
  if (!args.mask) return nullptr;
  const T* known = load_tile(args.known, begin, count, buffer);
  if (args.columns == 4) return known;
  with_column<T>(args, 4, begin, count, [&](const auto& m, int64_t at, int64_t n) {
    for (int64_t i = at; i < at + n; ++i) buffer[i] = m(0, i - at) * known[i];
  });
  return buffer;
}

template <class T>
FASTSCORE_FN void clamp_run(T low, T high, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = clamped(out[i], low, high);
}

// Clamps a tile, to bounds times u where the table has that column.
template <class T>
FASTSCORE_FN void clamp_tile(const LangevinArgs& args, int64_t begin, int64_t count, T* out) {
  if (!args.clamp) return;
  const T low = static_cast<T>(args.low), high = static_cast<T>(args.high);
  if (args.columns == 4) return clamp_run(low, high, count, out);
  with_column<T>(args, 5, begin, count, [&](const auto& u, int64_t at, int64_t n) {
    for (int64_t i = at; i < at + n; ++i) {
      const T scale = u(0, i - at);
      out[i] = clamped(out[i], scaled_bound(scale, low), scaled_bound(scale, high));
    }
  });
}

}  // namespace fastscore::FASTSCORE_ISA
