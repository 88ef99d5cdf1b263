// Kernel of the family `langevin`.
#include "core/langevin.h"

#include "guidance.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// row(i) is that of element i's sample.
template <class T, class Row>
FASTSCORE_FN void update_run(const Row& row, const T* x, const T* s, const float* z, int64_t n,
                             T* out) {
  // In place, out is x itself: no element is read after it is written.
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    out[i] = langevin_update(row(i), x[i], s[i], static_cast<T>(z[i]));
  }
}

template <class T>
void drift_run(const LangevinRow<T>& row, const T* x, const T* s, int64_t n, T* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = langevin_drift(row, x[i], s[i]);
}

template <class T, class Row>
FASTSCORE_FN void masked_run(const Row& row, const T* x, const T* s, const float* z, const T* known,
                             const uint8_t* mask, int64_t n, T* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T noise = static_cast<T>(z[i]);
    const T free = langevin_update(row(i), x[i], s[i], noise);
    const T held = langevin_known(row(i), known[i], noise);
    out[i] = mask[i] ? held : free;
  }
}

template <class T>
LangevinRow<T> row_of(const LangevinArgs& args, int64_t sample) {
  const double* row = row_at(args, sample);
  return {static_cast<T>(row[0]), static_cast<T>(row[1]), static_cast<T>(row[2]),
          static_cast<T>(row[3])};
}

template <class T>
void step(const LangevinArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  NoiseTile tile;
  Spread<T, 4> spread;
  for (int64_t i = 0; !args.noisy && i < kTile; ++i) tile.values[i] = 0;
  T x_buffer[kTile], s_buffer[kTile], known_buffer[kTile], out_buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const PrefetchTiles<T> ahead(begin, args.x, args.score);
    const float* z =
        args.noisy ? normals_of(tile, args.noise, key, flat, begin, count, ahead) : tile.values;
    const T* x = load_tile(args.x, begin, count, x_buffer);
    const T* s = load_score(args, begin, count, s_buffer);
    const T* known = load_known(args, begin, count, known_buffer);
    T* out = output_tile(args.out, begin, out_buffer);
    const auto run = [&](int64_t sample, int64_t first, int64_t n) {
      const LangevinRow<T> row = row_of<T>(args, sample);
      const auto same = [=](int64_t) { return row; };
      const int64_t at = first - begin;
      if (known) {
        masked_run(same, x + at, s + at, z + at, known + at, args.mask + first, n, out + at);
      } else if (row.c != 0) {
        update_run(same, x + at, s + at, z + at, n, out + at);
      } else {
        drift_run(row, x + at, s + at, n, out + at);
      }
    };
    if (args.batch_rows == 1) {
      run(0, begin, count);
    } else if (is_short(args.sample_size)) {
      spread.fill(args.sample_size, begin, count, [&](int64_t sample, T(&numbers)[4]) {
        const LangevinRow<T> row = row_of<T>(args, sample);
        numbers[0] = row.a;
        numbers[1] = row.b;
        numbers[2] = row.c;
        numbers[3] = row.k;
      });
      const T *a = spread.column(0), *b = spread.column(1), *c = spread.column(2);
      const T* k = spread.column(3);
      const auto own = [=](int64_t i) { return LangevinRow<T>{a[i], b[i], c[i], k[i]}; };
      if (known) {
        masked_run(own, x, s, z, known, args.mask + begin, count, out);
      } else {
        update_run(own, x, s, z, count, out);
      }
    } else {
      for_each_sample(args.sample_size, begin, count, run);
    }
    clamp_tile(args, begin, count, out);
    store_tile(args.out, begin, count, out);
  });
}

}  // namespace

void langevin_step(const LangevinArgs& args, TileRange tiles) {
  if (args.x.dtype == DType::kFloat64) {
    step<double>(args, tiles);
  } else {
    step<float>(args, tiles);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
