// Kernels of the family `dsm`.
#include "core/dsm.h"

#include "short_samples.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// The rows of the tables in the compute type.
template <class T>
FASTSCORE_FN PerturbRow<T> row_of(const PerturbArgs& args, int64_t sample) {
  const double* entry = args.table + 2 * args.labels[sample];
  return {static_cast<T>(entry[0]), static_cast<T>(entry[1])};
}
template <bool kNoisy, class T>
FASTSCORE_FN ResidualRow<T> row_of(const ResidualArgs& args, int64_t sample) {
  const double* entry = args.table + kResidualColumns<kNoisy> * args.labels[sample];
  return {static_cast<T>(entry[0]), static_cast<T>(entry[1]), static_cast<T>(entry[2]),
          kNoisy ? static_cast<T>(entry[3]) : 0};
}

// d loss_b / d r of a sample's residuals, but for the residual: d loss_b w p.
template <class T>
FASTSCORE_FN T gradient_scale(const ResidualArgs& args, const ResidualRow<T>& row, int64_t sample) {
  const double upstream = args.grad ? args.grad[sample] : args.expected;
  return static_cast<T>(upstream) * row.w * row.p;
}

// The residual of element i; only where kNoisy is x~ looked at.
template <bool kNoisy, class T>
FASTSCORE_FN T residual_at(const ResidualRow<T>& row, const T* out, const T* noisy, const float* z,
                           int64_t i) {
  if constexpr (kNoisy) return residual(row, out[i], noisy[i], static_cast<T>(z[i]));
  return residual(row, out[i], static_cast<T>(z[i]));
}

// ---- runs of elements; row(i) and scale(i) are what element i's sample has ---------------------

template <class T, class Row>
FASTSCORE_FN void perturb_run(const Row& row, int64_t n, const T* __restrict x,
                              const float* __restrict z, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = perturbed(row(i), x[i], static_cast<T>(z[i]));
}

template <bool kNoisy, class T, class Row, class Scale>
FASTSCORE_FN void gradient_run(const Row& row, const Scale& scale, int64_t n,
                               const T* __restrict out, const T* __restrict noisy,
                               const float* __restrict z, T* __restrict grad) {
  for (int64_t i = 0; i < n; ++i) {
    grad[i] = scale(i) * residual_at<kNoisy>(row(i), out, noisy, z, i);
  }
}

template <bool kNoisy, class T, class Row>
FASTSCORE_FN void square_run(const Row& row, int64_t n, const T* __restrict out,
                             const T* __restrict noisy, const float* __restrict z,
                             T* __restrict square) {
  for (int64_t i = 0; i < n; ++i) {
    const T r = residual_at<kNoisy>(row(i), out, noisy, z, i);
    square[i] = r * r;
  }
}

// ---- perturb -----------------------------------------------------------------------------------

template <class T>
void perturb_tiles(const PerturbArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  const bool short_samples = is_short(args.sample_size);
  NoiseTile tile;
  Spread<T, 2> spread;
  T x_buffer[kTile], out_buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const float* noise =
        normals_of(tile, args.noise, key, flat, begin, count, PrefetchTiles<T>(begin, args.x));
    const T* in = load_tile(args.x, begin, count, x_buffer);
    T* written = output_tile(args.out, begin, out_buffer);
    if (short_samples) {
      spread.fill(args.sample_size, begin, count, [&](int64_t sample, T(&numbers)[2]) {
        const PerturbRow<T> row = row_of<T>(args, sample);
        numbers[0] = row.a;
        numbers[1] = row.sigma;
      });
      const T *a = spread.column(0), *sigma = spread.column(1);
      perturb_run([=](int64_t i) { return PerturbRow<T>{a[i], sigma[i]}; }, count, in, noise,
                  written);
    } else {
      for_each_sample(
          args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
            const int64_t at = first - begin;
            const PerturbRow<T> row = row_of<T>(args, sample);
            perturb_run([=](int64_t) { return row; }, n, in + at, noise + at, written + at);
          });
    }
    store_tile(args.out, begin, count, written);
  });
}

// ---- residual ----------------------------------------------------------------------------------

// What short samples' loss and gradient over one tile need.
template <bool kNoisy, class T>
struct ShortResidual {
  Spread<T, kResidualColumns<kNoisy>> spread;  // p, q, the gradient's scale and h
  Terms<T> squares;

  void fill(const ResidualArgs& args, int64_t begin, int64_t count) {
    spread.fill(args.sample_size, begin, count, [&](int64_t sample, auto& numbers) {
      const ResidualRow<T> row = row_of<kNoisy, T>(args, sample);
      numbers[0] = row.p;
      numbers[1] = row.q;
      numbers[2] = args.grad_output.data ? gradient_scale(args, row, sample) : 0;
      if constexpr (kNoisy) numbers[3] = row.h;
    });
  }

  auto row() const {
    const T *p = spread.column(0), *q = spread.column(1), *h = spread.column(kNoisy ? 3 : 0);
    return [=](int64_t i) { return ResidualRow<T>{p[i], q[i], 0, kNoisy ? h[i] : 0}; };
  }

  auto scale() const {
    const T* scales = spread.column(2);
    return [=](int64_t i) { return scales[i]; };
  }
};

// The sum of squares of one sample's share of a tile.
template <bool kNoisy, class T>
FASTSCORE_FN double squares_sum(const ResidualRow<T>& row, int64_t n, const T* out, const T* noisy,
                                const float* z) {
  double sum[1];
  ordered_sums<T>(
      n,
      [&](int64_t i, auto& at) {
        const T *part = at(out + i), *noisy_part = nullptr;
        const float* noise_part = at(z + i);
        if constexpr (kNoisy) noisy_part = at(noisy + i);
        return [=](int, int k) {
          const T r = residual_at<kNoisy>(row, part, noisy_part, noise_part, k);
          return r * r;
        };
      },
      sum);
  return sum[0];
}

template <bool kNoisy, class T>
FASTSCORE_FN void sample_gradient(const ResidualArgs& args, const ResidualRow<T>& row,
                                  int64_t sample, int64_t n, const T* out, const T* noisy,
                                  const float* z, T* grad) {
  const T scale = gradient_scale(args, row, sample);
  gradient_run<kNoisy>([=](int64_t) { return row; }, [=](int64_t) { return scale; }, n, out, noisy,
                       z, grad);
}

// The tensors of the next tile, to ask memory for.
template <bool kNoisy, class T>
FASTSCORE_FN PrefetchTiles<T> tiles_ahead(const ResidualArgs& args, int64_t begin) {
  if constexpr (kNoisy) return PrefetchTiles<T>(begin, args.output, args.noisy);
  return PrefetchTiles<T>(begin, args.output);
}

template <bool kNoisy, class T>
void residual_tiles(const ResidualArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  const bool gradient = args.grad_output.data, short_samples = is_short(args.sample_size);
  NoiseTile tile;
  ShortResidual<kNoisy, T> many;
  T buffer[kTile], noisy_buffer[kNoisy ? kTile : 1], grad_buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const float* noise =
        normals_of(tile, args.noise, key, flat, begin, count, tiles_ahead<kNoisy, T>(args, begin));
    const T* output = load_tile(args.output, begin, count, buffer);
    const T* noisy = kNoisy ? load_tile(args.noisy, begin, count, noisy_buffer) : nullptr;
    T* written = gradient ? output_tile(args.grad_output, begin, grad_buffer) : nullptr;
    const int64_t slot = flat / kTile - args.noise.slot_zero;
    if (short_samples) {
      many.fill(args, begin, count);
      if (gradient) {
        gradient_run<kNoisy>(many.row(), many.scale(), count, output, noisy, noise, written);
      }
      square_run<kNoisy>(many.row(), count, output, noisy, noise, many.squares.values);
      file_short_sums(many.squares, args.noise, args.sample_size, begin, count, slot, args.loss,
                      args.head, args.tail);
    } else {
      for_each_sample(
          args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
            const int64_t at = first - begin;
            const ResidualRow<T> row = row_of<kNoisy, T>(args, sample);
            const T* own = kNoisy ? noisy + at : nullptr;
            // Before the sum, which gives the stores time to drain.
            if (gradient) {
              sample_gradient<kNoisy>(args, row, sample, n, output + at, own, noise + at,
                                      written + at);
            }
            file_share(squares_sum<kNoisy>(row, n, output + at, own, noise + at), sample, first, n,
                       args.sample_size, slot, args.loss, args.head, args.tail);
          });
    }
    if (gradient) store_tile(args.grad_output, begin, count, written);
  });
}

template <bool kNoisy, class T>
void backward_tiles(const ResidualArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  const bool short_samples = is_short(args.sample_size);
  NoiseTile tile;
  ShortResidual<kNoisy, T> many;
  T buffer[kTile], noisy_buffer[kNoisy ? kTile : 1], grad_buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const float* noise =
        normals_of(tile, args.noise, key, flat, begin, count, tiles_ahead<kNoisy, T>(args, begin));
    const T* output = load_tile(args.output, begin, count, buffer);
    const T* noisy = kNoisy ? load_tile(args.noisy, begin, count, noisy_buffer) : nullptr;
    T* written = output_tile(args.grad_output, begin, grad_buffer);
    if (short_samples) {
      many.fill(args, begin, count);
      gradient_run<kNoisy>(many.row(), many.scale(), count, output, noisy, noise, written);
    } else {
      for_each_sample(
          args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
            const int64_t at = first - begin;
            sample_gradient<kNoisy>(args, row_of<kNoisy, T>(args, sample), sample, n, output + at,
                                    kNoisy ? noisy + at : nullptr, noise + at, written + at);
          });
    }
    store_tile(args.grad_output, begin, count, written);
  });
}

template <bool kNoisy>
void residual_by(const ResidualArgs& args, TileRange tiles) {
  if (args.output.dtype == DType::kFloat64) {
    residual_tiles<kNoisy, double>(args, tiles);
  } else {
    residual_tiles<kNoisy, float>(args, tiles);
  }
}

template <bool kNoisy>
void backward_by(const ResidualArgs& args, TileRange tiles) {
  if (args.output.dtype == DType::kFloat64) {
    backward_tiles<kNoisy, double>(args, tiles);
  } else {
    backward_tiles<kNoisy, float>(args, tiles);
  }
}

}  // namespace

void perturb(const PerturbArgs& args, TileRange tiles) {
  if (args.x.dtype == DType::kFloat64) {
    perturb_tiles<double>(args, tiles);
  } else {
    perturb_tiles<float>(args, tiles);
  }
}

void dsm_residual(const ResidualArgs& args, TileRange tiles) {
  args.noisy.data ? residual_by<true>(args, tiles) : residual_by<false>(args, tiles);
}

void dsm_residual_backward(const ResidualArgs& args, TileRange tiles) {
  args.noisy.data ? backward_by<true>(args, tiles) : backward_by<false>(args, tiles);
}

}  // namespace fastscore::FASTSCORE_ISA
