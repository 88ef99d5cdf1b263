// Kernels of the family `dsm`.
#include "core/dsm.h"

#include "rows.h"
#include "tile.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

template <class T>
void perturb_tiles(const PerturbArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  NoiseTile tile;
  T x_buffer[kTile], out_buffer[kTile];
  for_each_tile(
      args.noise.origin, args.numel, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
        const float* noise = tile.normals(key, flat, flat + count, PrefetchTiles<T>(begin, args.x));
        const T* in = load_tile(args.x, begin, count, x_buffer);
        T* written = output_tile(args.out, begin, out_buffer);
        for_each_sample(
            args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
              const double* entry = args.table + 2 * args.labels[sample];
              const PerturbRow<T> row = {static_cast<T>(entry[0]), static_cast<T>(entry[1])};
              const T* __restrict x = in + (first - begin);
              const float* __restrict z = noise + (first - begin);
              T* __restrict out = written + (first - begin);
              for (int64_t i = 0; i < n; ++i) out[i] = perturbed(row, x[i], static_cast<T>(z[i]));
            });
        store_tile(args.out, begin, count, written);
      });
}

template <class T>
ResidualRow<T> row_of(const ResidualArgs& args, int64_t sample) {
  const double* entry = args.table + 3 * args.labels[sample];
  return {static_cast<T>(entry[0]), static_cast<T>(entry[1]), static_cast<T>(entry[2])};
}

// The gradient of one sample's share of a tile: d loss_b w p r.
template <class T>
FASTSCORE_FN void write_gradient(const ResidualRow<T>& row, double upstream, int64_t n,
                                 const T* __restrict out, const float* __restrict z,
                                 T* __restrict grad) {
  const T scale = static_cast<T>(upstream) * row.w * row.p;
  for (int64_t i = 0; i < n; ++i) grad[i] = scale * residual(row, out[i], static_cast<T>(z[i]));
}

template <class T>
void residual_tiles(const ResidualArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  NoiseTile tile;
  T buffer[kTile], grad_buffer[kTile];
  const bool gradient = args.grad_output.data;
  for_each_tile(
      args.noise.origin, args.numel, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
        const float* noise =
            tile.normals(key, flat, flat + count, PrefetchTiles<T>(begin, args.output));
        const T* output = load_tile(args.output, begin, count, buffer);
        T* written = gradient ? output_tile(args.grad_output, begin, grad_buffer) : nullptr;
        const int64_t slot = flat / kTile - args.noise.origin / kTile;
        for_each_sample(
            args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
              const ResidualRow<T> row = row_of<T>(args, sample);
              const T* out = output + (first - begin);
              const float* z = noise + (first - begin);
              // Before the sum, which gives the stores time to drain.
              if (gradient) {
                write_gradient(row, args.grad[sample], n, out, z, written + (first - begin));
              }
              const double sum = ordered_sum<T>(n, [&](int64_t i) {
                const T r = residual(row, out[i], static_cast<T>(z[i]));
                return r * r;
              });
              file_share(sum, sample, first, n, args.sample_size, slot, args.loss, args.head,
                         args.tail);
            });
        if (gradient) store_tile(args.grad_output, begin, count, written);
      });
}

template <class T>
void backward_tiles(const ResidualArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  NoiseTile tile;
  T buffer[kTile], grad_buffer[kTile];
  for_each_tile(
      args.noise.origin, args.numel, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
        const float* noise =
            tile.normals(key, flat, flat + count, PrefetchTiles<T>(begin, args.output));
        const T* output = load_tile(args.output, begin, count, buffer);
        T* written = output_tile(args.grad_output, begin, grad_buffer);
        for_each_sample(args.sample_size, begin, count,
                        [&](int64_t sample, int64_t first, int64_t n) {
                          write_gradient(row_of<T>(args, sample), args.grad[sample], n,
                                         output + (first - begin), noise + (first - begin),
                                         written + (first - begin));
                        });
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
