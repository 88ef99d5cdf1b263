// Kernel of the family `multistep`.
#include "core/multistep.h"

#include "guidance.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// The columns of a row that an element's update takes, in the table's order, but for m and u.
constexpr int kNumbers = 8, kSkipped = 2;

// One run of elements: what is read, and what is written.
template <class T>
struct Run {
  const T *x, *s, *past;
  const float* z;
  T *out, *history;
};

// number(c, i) is that of element i's sample. In place, no element is read after it is written.
template <bool kClip, class T, class Number>
FASTSCORE_FN void update_run(const Number& number, const Run<T>& t, T low, T high, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const LangevinRow<T> row = {number(0, i), number(1, i), number(2, i), number(3, i)};
    const MultistepRow<T> more = {number(4, i), number(5, i), number(6, i), number(7, i)};
    const T x = t.x[i], s = t.s[i];
    const Means<T> means = multistep_means(more, x, s, low, high);
    t.out[i] = multistep_update(row, more, x, s, t.past[i], means, kClip, static_cast<T>(t.z[i]));
    t.history[i] = means.clipped;
  }
}

// Over the known values of a tile, with row column k.
template <class T>
FASTSCORE_FN void hold_tile(const MultistepArgs& args, const T* known, const float* z,
                            int64_t begin, int64_t count, T* out) {
  with_column<T>(args, 3, begin, count, [&](const auto& k, int64_t at, int64_t n) {
    for (int64_t i = at; i < at + n; ++i) {
      const LangevinRow<T> row = {0, 0, 0, k(0, i - at)};
      const T held = langevin_known(row, known[i], static_cast<T>(z[i]));
      out[i] = args.mask[begin + i] ? held : out[i];
    }
  });
}

template <class T>
void step(const MultistepArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  const T low = static_cast<T>(args.clip_low), high = static_cast<T>(args.clip_high);
  NoiseTile tile;
  Spread<T, kNumbers> spread;
  for (int64_t i = 0; !args.noisy && i < kTile; ++i) tile.values[i] = 0;
  T x_buffer[kTile], s_buffer[kTile], past_buffer[kTile], known_buffer[kTile];
  T out_buffer[kTile], history_buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const PrefetchTiles<T> ahead(begin, args.x, args.score);
    const float* z =
        args.noisy ? normals_of(tile, args.noise, key, flat, begin, count, ahead) : tile.values;
    Run<T> all;
    all.x = load_tile(args.x, begin, count, x_buffer);
    all.s = load_score(args, begin, count, s_buffer);
    all.past = load_tile(args.history, begin, count, past_buffer);
    all.z = z;
    const T* known = load_known(args, begin, count, known_buffer);
    all.out = output_tile(args.out, begin, out_buffer);
    all.history = output_tile(args.history, begin, history_buffer);
    const auto load = [&](int64_t sample, T(&numbers)[kNumbers]) {
      const double* row = row_at(args, sample);
      for (int c = 0; c < kNumbers; ++c) {
        numbers[c] = static_cast<T>(row[c < 4 ? c : c + kSkipped]);
      }
    };
    const auto run = [&](const auto& number, int64_t at, int64_t n) {
      const Run<T> t = {all.x + at, all.s + at,   all.past + at,
                        all.z + at, all.out + at, all.history + at};
      if (args.clip) {
        update_run<true>(number, t, low, high, n);
      } else {
        update_run<false>(number, t, low, high, n);
      }
    };
    with_numbers(spread, args.batch_rows != 1, args.sample_size, begin, count, load, run);
    if (known) hold_tile(args, known, z, begin, count, all.out);
    clamp_tile(args, begin, count, all.out);
    store_tile(args.out, begin, count, all.out);
    store_tile(args.history, begin, count, all.history);
  });
}

}  // namespace

void multistep_step(const MultistepArgs& args, TileRange tiles) {
  if (args.x.dtype == DType::kFloat64) {
    step<double>(args, tiles);
  } else {
    step<float>(args, tiles);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
