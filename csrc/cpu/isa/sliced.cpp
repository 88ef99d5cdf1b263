// Kernels of the family `sliced`.
#include "core/sliced.h"

#include "short_samples.h"
#include "signs.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// The float16 or bfloat16 numbers that v consists of when the data are such.
template <class Half>
void round_to(float* values, int64_t n) {
  Half halves[kTile];
  store_run(values, n, halves);
  load_run(halves, n, values);
}

void round_to(DType dtype, float* values, int64_t n) {
  if (dtype == DType::kBFloat16) round_to<BFloat16>(values, n);
  if (dtype == DType::kFloat16) round_to<Float16>(values, n);
}

// Normals to points on the sphere of radius sqrt(d).
void scale_to_sphere(const SlicedArgs& args, int64_t m, int64_t begin, int64_t count,
                     float* values) {
  const double* square_norm = args.square_norm + m * args.batch;
  const auto radius_of = [&](int64_t sample) {
    return sphere_radius(args.sample_size, square_norm[sample]);
  };
  if (is_short(args.sample_size)) {
    Spread<float, 1> spread;
    spread.fill(args.sample_size, begin, count,
                [&](int64_t sample, float (&radius)[1]) { radius[0] = radius_of(sample); });
    const float* radius = spread.column(0);
    for (int64_t i = 0; i < count; ++i) values[i] *= radius[i];
    return;
  }
  for_each_sample(args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
    const float radius = radius_of(sample);
    float* part = values + (first - begin);
    for (int64_t i = 0; i < n; ++i) part[i] *= radius;
  });
}

// Projection m at the elements of one tile: as numbers, or as signs only. Before the first tile of
// a run, start() makes the signs of all of them.
struct ProjectionTile {
  NoiseTile noise;
  SignRun signs;
  const float* v;  // null: only the signs are there

  void start(const SlicedArgs& args, int64_t m, int64_t flat, int64_t count) {
    if (args.distribution != Projection::kRademacher || args.noise.each) return;
    signs.fill(projection_key(noise_key(args.noise), args.projections, m), flat, flat + count);
  }

  // T is the type of the data to be multiplied by v: signs are applied to float as bits.
  template <class T>
  void fill(const SlicedArgs& args, DType dtype, int64_t m, int64_t flat, int64_t begin,
            int64_t count) {
    float* values = noise.values + flat % kTile;
    v = values;
    if (args.distribution == Projection::kRademacher && !args.noise.each) {
      signs.seek(flat);
      if (sizeof(T) == sizeof(float) && !is_short(args.sample_size)) {
        v = nullptr;
      } else {
        signs.write(count, values);
      }
      return;
    }
    const NoiseKey key = projection_key(noise_key(args.noise), args.projections, m);
    const DrawRule rule = {static_cast<uint32_t>(args.projections), static_cast<uint32_t>(m)};
    if (args.distribution == Projection::kRademacher) {
      sample_signs(args.noise, key, rule, begin, count, noise);
      return;
    }
    normals_of(noise, args.noise, key, flat, begin, count, NothingAhead(), rule);
    if (args.distribution == Projection::kSphere) scale_to_sphere(args, m, begin, count, values);
    round_to(dtype, values, count);
  }
};

FASTSCORE_FN void file_column(const SumSlots& slots, int64_t column, double sum, int64_t sample,
                              int64_t first, int64_t n, int64_t sample_size, int64_t slot) {
  file_share(sum, sample, first, n, sample_size, slot, slots.done + column * slots.rows,
             slots.head + column * slots.tiles, slots.tail + column * slots.tiles);
}

// Asks for what a run of 32 float32 elements will be in the next tile: the hardware does not look
// beyond a page, which is what a tile is.
FASTSCORE_FN void prefetch_next(const float* run) {
  __builtin_prefetch(run + kTile);
  __builtin_prefetch(run + kTile + 16);
}
FASTSCORE_FN void prefetch_next_write(const float* run) {
  __builtin_prefetch(run + kTile, 1);
  __builtin_prefetch(run + kTile + 16, 1);
}

// The sums v'j, v's and, for kSums = 3, s's over one sample's share of a tile.
template <int kSums, class T>
FASTSCORE_FN void weighted_sums(const float* v, const T* j, const T* s, int64_t n,
                                double (&sums)[kSums]) {
  ordered_sums<T>(
      n,
      [&](int64_t i, auto& at) {
        const float* weight = at(v + i);
        const T *left = at(j + i), *right = at(s + i);
        return [=](int sum, int k) {
          if (sum == 2) return right[k] * right[k];
          return static_cast<T>(weight[k]) * (sum == 0 ? left[k] : right[k]);
        };
      },
      sums);
}

template <int kSums>
FASTSCORE_FN void signed_sums(const SignRun& signs, int64_t first, const float* j, const float* s,
                              int64_t n, double (&sums)[kSums]) {
  ordered_sums<float>(
      n,
      [&](int64_t i, auto& at) {
        const uint32_t word = signs.word(first + i);
        prefetch_next(j + i);
        if (kSums == 3) prefetch_next(s + i);
        const float *left = at(j + i), *right = at(s + i);
        return [=](int sum, int k) {
          if (sum == 2) return right[k] * right[k];
          return flip_sign(sum == 0 ? left[k] : right[k], sign_of_bit(word, k));
        };
      },
      sums);
}

// The sums of a b over each short sample of a tile, filed in one column.
template <class T, class A, class B>
void file_short_column(const SlicedArgs& args, int64_t column, int64_t begin, int64_t count,
                       int64_t slot, const A* a, const B* b) {
  Terms<T> terms;
  for (int64_t i = 0; i < count; ++i) {
    terms.values[i] = static_cast<T>(a[i]) * static_cast<T>(b[i]);
  }
  const SumSlots& slots = args.sums;
  file_short_sums(terms, args.noise, args.sample_size, begin, count, slot,
                  slots.done + column * slots.rows, slots.head + column * slots.tiles,
                  slots.tail + column * slots.tiles);
}

// The sums of projection m over a tile, each sample's filed; with the first projection |s|^2 too.
template <int kSums, class T>
void file_sums(const SlicedArgs& args, const ProjectionTile& tile, int64_t m, int64_t begin,
               int64_t count, int64_t slot, const T* j, const T* s) {
  const int64_t columns[] = {m, args.projections + m, 2 * args.projections};
  if (is_short(args.sample_size)) {
    file_short_column<T>(args, columns[0], begin, count, slot, tile.v, j);
    file_short_column<T>(args, columns[1], begin, count, slot, tile.v, s);
    if (kSums == 3) file_short_column<T>(args, columns[2], begin, count, slot, s, s);
    return;
  }
  for_each_sample(args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
    const int64_t at = first - begin;
    double sums[kSums];
    if (tile.v) {
      weighted_sums(tile.v + at, j + at, s + at, n, sums);
    } else if constexpr (sizeof(T) == sizeof(float)) {
      signed_sums(tile.signs, at, j + at, s + at, n, sums);
    }
    for (int i = 0; i < kSums; ++i) {
      file_column(args.sums, columns[i], sums[i], sample, first, n, args.sample_size, slot);
    }
  });
}

// Run after run, and within each projection after projection: the run's scores stay in the
// first-level cache, and each projection is read in one long stream.
template <class T>
void terms(const SlicedArgs& args, TileRange tiles) {
  ProjectionTile tile;
  T s_buffer[kSignRun], j_buffer[kTile];
  for_each_tile<kSignRun>(args.noise, tiles, [&](int64_t run_flat, int64_t run, int64_t length) {
    const T* scores = load_tile(args.score, run, length, s_buffer);
    for (int64_t m = 0; m < args.projections; ++m) {
      tile.start(args, m, run_flat, length);
      for_each_piece<kTile>(run_flat, run, length, [&](int64_t flat, int64_t begin, int64_t count) {
        const int64_t slot = flat / kTile - args.noise.slot_zero;
        const T* s = scores + (begin - run);
        const T* j = load_tile(args.jvp, m * args.numel + begin, count, j_buffer);
        tile.fill<T>(args, args.score.dtype, m, flat, begin, count);
        if (m == 0) {
          file_sums<3>(args, tile, m, begin, count, slot, j, s);
        } else {
          file_sums<2>(args, tile, m, begin, count, slot, j, s);
        }
      });
    }
  });
}

// grad_jvp = g v and, where grad_score is not null, grad_score += c v.
// g(i) and c(i) are those of element i's sample.
template <class G, class C, class T>
FASTSCORE_FN void add_weighted(const G& g, const C& c, const float* __restrict v, int64_t n,
                               T* __restrict jvp, T* __restrict score) {
  for (int64_t i = 0; i < n; ++i) jvp[i] = g(i) * static_cast<T>(v[i]);
  if (!score) return;
  for (int64_t i = 0; i < n; ++i) score[i] = fma(c(i), static_cast<T>(v[i]), score[i]);
}

template <bool kScore>
FASTSCORE_FN void add_signs(uint32_t word, float g, float c, int64_t n, float* __restrict jvp,
                            float* __restrict score) {
  for (int k = 0; k < n; ++k) {
    jvp[k] = flip_sign(g, sign_of_bit(word, k));
    if (kScore) score[k] += flip_sign(c, sign_of_bit(word, k));
  }
}

template <bool kScore>
FASTSCORE_FN void add_signed(const SignRun& signs, int64_t at, float g, float c, int64_t n,
                             float* jvp, float* score) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    prefetch_next_write(jvp + i);
    add_signs<kScore>(signs.word(at + i), g, c, 32, jvp + i, score + i);
  }
  if (i < n) add_signs<kScore>(signs.word(at + i), g, c, n - i, jvp + i, score + i);
}

// grad_score = g s, or zeros.
template <class T>
void start_score(const SlicedArgs& args, int64_t begin, int64_t count, const T* __restrict s,
                 T* __restrict score) {
  if (!args.grad_s2) {
    for (int64_t i = 0; i < count; ++i) score[i] = 0;
  } else if (is_short(args.sample_size)) {
    Spread<T, 1> spread;
    spread.fill(args.sample_size, begin, count,
                [&](int64_t sample, T(&g)[1]) { g[0] = static_cast<T>(args.grad_s2[sample]); });
    const T* g = spread.column(0);
    for (int64_t i = 0; i < count; ++i) score[i] = g[i] * s[i];
  } else {
    for_each_sample(args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
      const T g = static_cast<T>(args.grad_s2[sample]);
      const T* in = s + (first - begin);
      T* out = score + (first - begin);
      for (int64_t i = 0; i < n; ++i) out[i] = g * in[i];
    });
  }
}

// What projection m adds over a tile.
template <class T>
void add_projection(const SlicedArgs& args, const ProjectionTile& tile, int64_t m, int64_t begin,
                    int64_t count, T* jvp, T* score) {
  const auto numbers_of = [&](int64_t sample, T(&numbers)[2]) {
    const int64_t row = m * args.batch + sample;
    numbers[0] = static_cast<T>(args.grad_vjv[row]);
    numbers[1] = args.grad_vs ? static_cast<T>(args.grad_vs[row]) : 0;
  };
  if (is_short(args.sample_size)) {
    Spread<T, 2> spread;
    spread.fill(args.sample_size, begin, count, numbers_of);
    const T *g = spread.column(0), *c = spread.column(1);
    add_weighted([=](int64_t i) { return g[i]; }, [=](int64_t i) { return c[i]; }, tile.v, count,
                 jvp, args.grad_vs ? score : nullptr);
    return;
  }
  for_each_sample(args.sample_size, begin, count, [&](int64_t sample, int64_t first, int64_t n) {
    const int64_t at = first - begin;
    T numbers[2];
    numbers_of(sample, numbers);
    const T g = numbers[0], c = numbers[1];
    if (tile.v) {
      add_weighted([=](int64_t) { return g; }, [=](int64_t) { return c; }, tile.v + at, n, jvp + at,
                   args.grad_vs ? score + at : nullptr);
    } else if constexpr (sizeof(T) == sizeof(float)) {
      if (args.grad_vs) {
        add_signed<true>(tile.signs, at, g, c, n, jvp + at, score + at);
      } else {
        add_signed<false>(tile.signs, at, g, c, n, jvp + at, score + at);
      }
    }
  });
}

// In the same order as terms, for the same reasons.
template <class T>
void terms_backward(const SlicedArgs& args, TileRange tiles) {
  ProjectionTile tile;
  T s_buffer[kSignRun], score_buffer[kSignRun], jvp_buffer[kTile];
  for_each_tile<kSignRun>(args.noise, tiles, [&](int64_t run_flat, int64_t run, int64_t length) {
    T* scores = output_tile(args.grad_score, run, score_buffer);
    const T* s = load_tile(args.score, run, length, s_buffer);
    for_each_piece<kTile>(run_flat, run, length, [&](int64_t, int64_t begin, int64_t count) {
      start_score(args, begin, count, s + (begin - run), scores + (begin - run));
    });
    for (int64_t m = 0; m < args.projections; ++m) {
      tile.start(args, m, run_flat, length);
      for_each_piece<kTile>(run_flat, run, length, [&](int64_t flat, int64_t begin, int64_t count) {
        T* jvp = output_tile(args.grad_jvp, m * args.numel + begin, jvp_buffer);
        tile.fill<T>(args, args.score.dtype, m, flat, begin, count);
        add_projection(args, tile, m, begin, count, jvp, scores + (begin - run));
        store_tile(args.grad_jvp, m * args.numel + begin, count, jvp);
      });
    }
    store_tile(args.grad_score, run, length, scores);
  });
}

// One projection after the other: memory is written in one stream.
template <class T>
void project_tiles(const SlicedArgs& args, TileRange tiles) {
  ProjectionTile tile;
  T buffer[kTile];
  for (int64_t m = 0; m < args.projections; ++m) {
    for_each_tile<kSignRun>(args.noise, tiles, [&](int64_t run_flat, int64_t run, int64_t length) {
      tile.start(args, m, run_flat, length);
      for_each_piece<kTile>(run_flat, run, length, [&](int64_t flat, int64_t begin, int64_t count) {
        T* out = output_tile(args.out, m * args.numel + begin, buffer);
        // Rounded when it is stored.
        tile.fill<float>(args, DType::kFloat32, m, flat, begin, count);
        if (tile.v) {
          for (int64_t i = 0; i < count; ++i) out[i] = tile.v[i];
        } else {
          tile.signs.write(count, out);
        }
        store_tile(args.out, m * args.numel + begin, count, out);
      });
    });
  }
}

}  // namespace

void project(const SlicedArgs& args, TileRange tiles) {
  if (args.out.dtype == DType::kFloat64) {
    project_tiles<double>(args, tiles);
  } else {
    project_tiles<float>(args, tiles);
  }
}

void sliced_norms(const SlicedArgs& args, TileRange tiles) {
  NoiseTile tile;
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const int64_t slot = flat / kTile - args.noise.slot_zero;
    for (int64_t m = 0; m < args.projections; ++m) {
      const NoiseKey key = projection_key(noise_key(args.noise), args.projections, m);
      const DrawRule rule = {static_cast<uint32_t>(args.projections), static_cast<uint32_t>(m)};
      const float* noise =
          normals_of(tile, args.noise, key, flat, begin, count, NothingAhead(), rule);
      if (is_short(args.sample_size)) {
        file_short_column<double>(args, m, begin, count, slot, noise, noise);
        continue;
      }
      for_each_sample(args.sample_size, begin, count,
                      [&](int64_t sample, int64_t first, int64_t n) {
                        // In double, so that another order, as on a GPU, gives the same float32
                        // radius but for a very rare row.
                        const float* g = noise + (first - begin);
                        double sum[1];
                        ordered_sums<double>(
                            n,
                            [&](int64_t i, auto& at) {
                              const float* part = at(g + i);
                              return [=](int, int k) {
                                return static_cast<double>(part[k]) * static_cast<double>(part[k]);
                              };
                            },
                            sum);
                        file_column(args.sums, m, sum[0], sample, first, n, args.sample_size, slot);
                      });
    }
  });
}

void sliced_terms(const SlicedArgs& args, TileRange tiles) {
  if (args.score.dtype == DType::kFloat64) {
    terms<double>(args, tiles);
  } else {
    terms<float>(args, tiles);
  }
}

void sliced_terms_backward(const SlicedArgs& args, TileRange tiles) {
  if (args.score.dtype == DType::kFloat64) {
    terms_backward<double>(args, tiles);
  } else {
    terms_backward<float>(args, tiles);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
