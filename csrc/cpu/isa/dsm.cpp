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
template <class T>
FASTSCORE_FN ResidualRow<T> row_of(const ResidualArgs& args, int64_t sample) {
  const double* entry = args.table + 3 * args.labels[sample];
  return {static_cast<T>(entry[0]), static_cast<T>(entry[1]), static_cast<T>(entry[2])};
}

// d loss_b / d r of a sample's residuals, but for the residual: d loss_b w p.
template <class T>
FASTSCORE_FN T gradient_scale(const ResidualArgs& args, const ResidualRow<T>& row, int64_t sample) {
  const double upstream = args.grad ? args.grad[sample] : args.expected;
  return static_cast<T>(upstream) * row.w * row.p;
}

// ---- runs of elements; row(i) and scale(i) are what element i's sample has ---------------------

template <class T, class Row>
FASTSCORE_FN void perturb_run(const Row& row, int64_t n, const T* __restrict x,
                              const float* __restrict z, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = perturbed(row(i), x[i], static_cast<T>(z[i]));
}

template <class T, class Row, class Scale>
FASTSCORE_FN void gradient_run(const Row& row, const Scale& scale, int64_t n,
                               const T* __restrict out, const float* __restrict z,
                               T* __restrict grad) {
  for (int64_t i = 0; i < n; ++i) {
    grad[i] = scale(i) * residual(row(i), out[i], static_cast<T>(z[i]));
  }
}

template <class T, class Row>
FASTSCORE_FN void square_run(const Row& row, int64_t n, const T* __restrict out,
                             const float* __restrict z, T* __restrict square) {
  for (int64_t i = 0; i < n; ++i) {
    const T r = residual(row(i), out[i], static_cast<T>(z[i]));
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
template <class T>
struct ShortResidual {
  Spread<T, 3> spread;  // p, q and the gradient's scale
  Terms<T> squares;

  void fill(const ResidualArgs& args, int64_t begin, int64_t count) {
    spread.fill(args.sample_size, begin, count, [&](int64_t sample, T(&numbers)[3]) {
      const ResidualRow<T> row = row_of<T>(args, sample);
      numbers[0] = row.p;
      numbers[1] = row.q;
      numbers[2] = args.grad_output.data ? gradient_scale(args, row, sample) : 0;
    });
  }

  auto row() const {
    const T *p = spread.column(0), *q = spread.column(1);
    return [=](int64_t i) { return ResidualRow<T>{p[i], q[i], 0}; };
  }

  auto scale() const {
    const T* scales = spread.column(2);
    return [=](int64_t i) { return scales[i]; };
  }
};

// The sum of squares of one sample's share of a tile.
template <class T>
FASTSCORE_FN double squares_sum(const ResidualRow<T>& row, int64_t n, const T* out,
                                const float* z) {
  double sum[1];
  ordered_sums<T>(
      n,
      [&](int64_t i, auto& at) {
        const T* part = at(out + i);
        const float* noise_part = at(z + i);
        return [=](int, int k) {
          const T r = residual(row, part[k], static_cast<T>(noise_part[k]));
          return r * r;
        };
      },
      sum);
  return sum[0];
}

template <class T>
FASTSCORE_FN void sample_gradient(const ResidualArgs& args, const ResidualRow<T>& row,
                                  int64_t sample, int64_t n, const T* out, const float* z,
                                  T* grad) {
  const T scale = gradient_scale(args, row, sample);
  gradient_run([=](int64_t) { return row; }, [=](int64_t) { return scale; }, n, out, z, grad);
}

template <class T>
void residual_tiles(const ResidualArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  const bool gradient = args.grad_output.data, short_samples = is_short(args.sample_size);
  NoiseTile tile;
  ShortResidual<T> many;
  T buffer[kTile], grad_buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const float* noise =
        normals_of(tile, args.noise, key, flat, begin, count, PrefetchTiles<T>(begin, args.output));
    const T* output = load_tile(args.output, begin, count, buffer);
    T* written = gradient ? output_tile(args.grad_output, begin, grad_buffer) : nullptr;
    const int64_t slot = flat / kTile - args.noise.slot_zero;
    if (short_samples) {
      many.fill(args, begin, count);
      if (gradient) {
        gradient_run(many.row(), many.scale(), count, output, noise, written);
      }
      square_run(many.row(), count, output, noise, many.squares.values);
      file_short_sums(many.squares, args.noise, args.sample_size, begin, count, slot, args.loss,
                      args.head, args.tail);
    } else {
      for_each_sample(
          args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
            const int64_t at = first - begin;
            const ResidualRow<T> row = row_of<T>(args, sample);
            // Before the sum, which gives the stores time to drain.
            if (gradient) {
              sample_gradient(args, row, sample, n, output + at, noise + at, written + at);
            }
            file_share(squares_sum(row, n, output + at, noise + at), sample, first, n,
                       args.sample_size, slot, args.loss, args.head, args.tail);
          });
    }
    if (gradient) store_tile(args.grad_output, begin, count, written);
  });
}

template <class T>
void backward_tiles(const ResidualArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  const bool short_samples = is_short(args.sample_size);
  NoiseTile tile;
  ShortResidual<T> many;
  T buffer[kTile], grad_buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const float* noise =
        normals_of(tile, args.noise, key, flat, begin, count, PrefetchTiles<T>(begin, args.output));
    const T* output = load_tile(args.output, begin, count, buffer);
    T* written = output_tile(args.grad_output, begin, grad_buffer);
    if (short_samples) {
      many.fill(args, begin, count);
      gradient_run(many.row(), many.scale(), count, output, noise, written);
    } else {
      for_each_sample(args.sample_size, begin, count,
                      [&](int64_t sample, int64_t first, int64_t n) {
                        const int64_t at = first - begin;
                        sample_gradient(args, row_of<T>(args, sample), sample, n, output + at,
                                        noise + at, written + at);
                      });
    }
    store_tile(args.grad_output, begin, count, written);
  });
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
  if (args.output.dtype == DType::kFloat64) {
    residual_tiles<double>(args, tiles);
  } else {
    residual_tiles<float>(args, tiles);
  }
}

void dsm_residual_backward(const ResidualArgs& args, TileRange tiles) {
  if (args.output.dtype == DType::kFloat64) {
    backward_tiles<double>(args, tiles);
  } else {
    backward_tiles<float>(args, tiles);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
