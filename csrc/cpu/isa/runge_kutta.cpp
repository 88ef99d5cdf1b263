// Kernels of the family `runge_kutta`.
#include "core/runge_kutta.h"

#include "short_samples.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// ---- sums of slopes ----------------------------------------------------------------------------

// c_0 x + sum_j c_j k_j of one sample, all of whose coefficients ask for their slopes. The terms of
// an element are added one after the other, whatever the instruction set.
template <int kSlopes, class T>
FASTSCORE_FN void combine_run(const T* coefficients, const T* const* slopes, const T* x, int64_t n,
                              T* out) {
  T c[kSlopes + 1];
  const T* k[kSlopes + 1];
#pragma GCC unroll 8
  for (int j = 0; j <= kSlopes; ++j) {
    c[j] = coefficients[j];
    k[j] = j == 0 ? x : slopes[j - 1];
  }
  // In place, out is one of them: no element is read after it is written.
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T sum = c[0] * k[0][i];
#pragma GCC unroll 8
    for (int j = 1; j <= kSlopes; ++j) sum = fma(c[j], k[j][i], sum);
    out[i] = sum;
  }
}

template <class T>
void combine_run(int slopes, const T* c, const T* const* k, const T* x, int64_t n, T* out) {
  switch (slopes) {
    case 0:
      return combine_run<0>(c, k, x, n, out);
    case 1:
      return combine_run<1>(c, k, x, n, out);
    case 2:
      return combine_run<2>(c, k, x, n, out);
    case 3:
      return combine_run<3>(c, k, x, n, out);
    case 4:
      return combine_run<4>(c, k, x, n, out);
    case 5:
      return combine_run<5>(c, k, x, n, out);
    case 6:
      return combine_run<6>(c, k, x, n, out);
    default:
      return combine_run<7>(c, k, x, n, out);
  }
}

// Sums over elements of one tile, with the room that they need.
template <class T>
class Combination {
 public:
  // slope(j, begin, n, buffer) gives elements [begin, begin + n) of slope j.
  template <class Slope>
  FASTSCORE_FN void operator()(const SampleRows& rows, int slope_count, int64_t sample_size,
                               int64_t begin, int64_t count, const T* x, const Slope& slope,
                               T* out) {
    if (rows.count == 1) {
      one_sample(rows.data, slope_count, begin, count, x, slope, out);
    } else if (is_short(sample_size)) {
      short_samples(rows, slope_count, sample_size, begin, count, x, slope, out);
    } else {
      for_each_sample(sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
        const int64_t at = first - begin;
        one_sample(rows.of(sample), slope_count, first, n, x + at, slope, out + at);
      });
    }
  }

 private:
  template <class Slope>
  FASTSCORE_FN void one_sample(const double* row, int slope_count, int64_t begin, int64_t n,
                               const T* x, const Slope& slope, T* out) {
    T c[kMostSlopes + 1] = {static_cast<T>(row[0])};
    const T* k[kMostSlopes];
    int used = 0;
    for (int j = 0; j < slope_count; ++j) {
      const T own = static_cast<T>(row[j + 1]);
      if (own == 0) continue;
      k[used] = slope(j, begin, n, slopes_[used]);
      c[++used] = own;
    }
    if (c[0] == 0) {
      c[0] = 0;  // not -0
      for (int64_t i = 0; i < n; ++i) sum_[i] = 0;
      x = sum_;
    }
    combine_run(used, c, k, x, n, out);
  }

  // One slope after the other, each element with its sample's coefficient.
  template <class Slope>
  FASTSCORE_FN void short_samples(const SampleRows& rows, int slope_count, int64_t sample_size,
                                  int64_t begin, int64_t count, const T* x, const Slope& slope,
                                  T* out) {
    const auto spread = [&](int column) {
      spread_.fill(sample_size, begin, count, [&](int64_t sample, T(&number)[1]) {
        number[0] = static_cast<T>(rows.of(sample)[column]);
      });
      return spread_.column(0);
    };
    const T* c = spread(0);
    for (int64_t i = 0; i < count; ++i) sum_[i] = rk_first(c[i], x[i]);
    for (int j = 0; j < slope_count; ++j) {
      const T* k = slope(j, begin, count, slopes_[0]);
      c = spread(j + 1);
      for (int64_t i = 0; i < count; ++i) sum_[i] = rk_add(sum_[i], c[i], k[i]);
    }
    for (int64_t i = 0; i < count; ++i) out[i] = sum_[i];
  }

  T slopes_[kMostSlopes][kTile], sum_[kTile];
  Spread<T, 1> spread_;
};

// Elements of a slope of the arguments.
template <class T>
auto slopes_of(const RungeKuttaArgs& args) {
  return [&args](int j, int64_t begin, int64_t n, T* buffer) {
    return load_tile(args.slopes[j], begin, n, buffer);
  };
}

template <class T>
void stage(const RungeKuttaArgs& args, TileRange tiles) {
  Combination<T> combine;
  T x_buffer[kTile], out_buffer[kTile];
  for_each_tile(args.numel, tiles, [&](int64_t, int64_t begin, int64_t count) {
    const T* x = load_tile(args.x, begin, count, x_buffer);
    T* out = output_tile(args.out, begin, out_buffer);
    combine(args.coefficients, args.slope_count, args.sample_size, begin, count, x,
            slopes_of<T>(args), out);
    store_tile(args.out, begin, count, out);
  });
}

// ---- the error ---------------------------------------------------------------------------------

template <class T>
FASTSCORE_FN double squares_sum(const T* ratio, int64_t n) {
  double sum[1];
  ordered_sums<T>(
      n,
      [&](int64_t i, auto& at) {
        const T* part = at(ratio + i);
        return [=](int, int k) { return part[k] * part[k]; };
      },
      sum);
  return sum[0];
}

template <class T>
FASTSCORE_FN void ratio_run(const double* tolerances, const T* x, const T* fresh, int64_t n,
                            T* error) {
  const T atol = static_cast<T>(tolerances[0]), rtol = static_cast<T>(tolerances[1]);
  for (int64_t i = 0; i < n; ++i) error[i] = rk_ratio(error[i], x[i], fresh[i], atol, rtol);
}

// What a tile's part of the error needs.
template <class T>
struct ErrorTile {
  Combination<T> combine;
  Spread<T, 2> tolerances;
  Terms<T> error;
  T x_buffer[kTile], fresh_buffer[kTile];

  // error becomes the ratio of elements [begin, begin + count).
  void fill(const RungeKuttaArgs& args, int64_t begin, int64_t count) {
    const T* x = load_tile(args.x, begin, count, x_buffer);
    const T* fresh = load_tile(args.fresh, begin, count, fresh_buffer);
    T* ratio = error.values;
    combine(args.coefficients, args.slope_count, args.sample_size, begin, count, x,
            slopes_of<T>(args), ratio);
    if (args.tolerances.count == 1) {
      ratio_run(args.tolerances.data, x, fresh, count, ratio);
    } else if (is_short(args.sample_size)) {
      tolerances.fill(args.sample_size, begin, count, [&](int64_t sample, T(&numbers)[2]) {
        numbers[0] = static_cast<T>(args.tolerances.of(sample)[0]);
        numbers[1] = static_cast<T>(args.tolerances.of(sample)[1]);
      });
      const T *atol = tolerances.column(0), *rtol = tolerances.column(1);
      for (int64_t i = 0; i < count; ++i) {
        ratio[i] = rk_ratio(ratio[i], x[i], fresh[i], atol[i], rtol[i]);
      }
    } else {
      for_each_sample(args.sample_size, begin, count,
                      [&](int64_t sample, int64_t first, int64_t n) {
                        const int64_t at = first - begin;
                        ratio_run(args.tolerances.of(sample), x + at, fresh + at, n, ratio + at);
                      });
    }
  }
};

// A tile is made of whole samples, or is a piece of a long one, so that each sample's sum is its
// own.
template <class T>
void error_norms(const RungeKuttaArgs& args, TileRange tiles) {
  ErrorTile<T> tile;
  T* ratio = tile.error.values;
  const int64_t size = args.sample_size, pieces = (size + kTile - 1) / kTile;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    if (pieces > 1) {
      const int64_t at = t % pieces * kTile, n = size - at < kTile ? size - at : kTile;
      tile.fill(args, t / pieces * size + at, n);
      args.sums[t] = squares_sum(ratio, n);
      continue;
    }
    const int64_t first = t * (kTile / size), begin = first * size;
    int64_t count = kTile - kTile % size;
    if (count > args.numel - begin) count = args.numel - begin;
    tile.fill(args, begin, count);
    if (is_short(size)) {
      for (int64_t i = 0; i < count; ++i) ratio[i] = ratio[i] * ratio[i];
      short_sums(ratio, count / size, size, args.sums + first);
    } else {
      for (int64_t i = 0; i * size < count; ++i) {
        args.sums[first + i] = squares_sum(ratio + i * size, size);
      }
    }
  }
}

// ---- the advance -------------------------------------------------------------------------------

// Where a tile's samples are accepted, `to` becomes `from`, and so do the elements of the view that
// `to` was loaded from. Those of others are left as they are, NaN of any kind.
template <class T>
FASTSCORE_FN void take_accepted(const RungeKuttaArgs& args, const View& view, int64_t begin,
                                int64_t count, const T* from, T* to) {
  for_each_sample(args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
    if (!args.accepted[sample]) return;
    const int64_t at = first - begin;
    for (int64_t i = at; i < at + n; ++i) to[i] = from[i];
    store_tile(view, first, n, to + at);
  });
}

template <class T>
void advance(const RungeKuttaArgs& args, TileRange tiles) {
  Combination<T> combine;
  T x_buffer[kTile], fresh_buffer[kTile], first_buffer[kTile], last_buffer[kTile];
  T out_buffer[kTile];
  for_each_tile(args.numel, tiles, [&](int64_t, int64_t begin, int64_t count) {
    // Where these lie in memory as they are computed with, they are changed there.
    T* x = const_cast<T*>(load_tile(args.x, begin, count, x_buffer));
    T* first = const_cast<T*>(load_tile(args.first, begin, count, first_buffer));
    const T* fresh = load_tile(args.fresh, begin, count, fresh_buffer);
    const T* last = load_tile(args.last, begin, count, last_buffer);
    take_accepted(args, args.x, begin, count, fresh, x);
    take_accepted(args, args.first, begin, count, last, first);
    if (!args.out.data) return;
    T* out = output_tile(args.out, begin, out_buffer);
    const auto slope = [&](int, int64_t at, int64_t, T*) -> const T* {
      return first + (at - begin);
    };
    combine(args.coefficients, 1, args.sample_size, begin, count, x, slope, out);
    store_tile(args.out, begin, count, out);
  });
}

}  // namespace

void rk_stage(const RungeKuttaArgs& args, TileRange tiles) {
  if (args.x.dtype == DType::kFloat64) {
    stage<double>(args, tiles);
  } else {
    stage<float>(args, tiles);
  }
}

void rk_error(const RungeKuttaArgs& args, TileRange tiles) {
  if (args.x.dtype == DType::kFloat64) {
    error_norms<double>(args, tiles);
  } else {
    error_norms<float>(args, tiles);
  }
}

void rk_advance(const RungeKuttaArgs& args, TileRange tiles) {
  if (args.x.dtype == DType::kFloat64) {
    advance<double>(args, tiles);
  } else {
    advance<float>(args, tiles);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
