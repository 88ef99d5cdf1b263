// Kernels of the family `random`: fill a tensor with noise, draw labels, and the test hook that
// turns given words into normals.
#include "sample_noise.h"
#include "signs.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

FASTSCORE_FN const float* uniforms_of(NoiseTile& tile, const NoiseArgs& noise, const NoiseKey& key,
                                      int64_t flat, int64_t begin, int64_t count) {
  if (!noise.each) return tile.uniforms(key, flat, flat + count);
  sample_numbers(noise, key, DrawRule(), MakeUniforms(), begin, count, tile);
  return tile.values;
}

FASTSCORE_FN const float* words_of(NoiseTile& tile, const NoiseArgs& noise, const NoiseKey& key,
                                   int64_t flat, int64_t begin, int64_t count) {
  if (!noise.each) return tile.words(key, flat, flat + count);
  sample_numbers(noise, key, DrawRule(), KeepWords(), begin, count, tile);
  return tile.values;
}

template <class T>
void fill_signs(const RandomArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  SignRun signs;
  T buffer[kSignRun];
  NoiseTile tile;
  for_each_tile<kSignRun>(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    T* out = output_tile(args.out, begin, buffer);
    if (args.noise.each) {
      sample_signs(args.noise, key, DrawRule(), begin, count, tile);
      for (int64_t i = 0; i < count; ++i) out[i] = tile.values[i];
    } else {
      signs.fill(key, flat, flat + count);
      signs.write(count, out);
    }
    store_tile(args.out, begin, count, out);
  });
}

template <class T>
void fill_numbers(const RandomArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  NoiseTile tile;
  T buffer[kTile];
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    T* out = output_tile(args.out, begin, buffer);
    const float* z = args.distribution == Distribution::kNormal
                         ? normals_of(tile, args.noise, key, flat, begin, count)
                         : uniforms_of(tile, args.noise, key, flat, begin, count);
    for (int64_t i = 0; i < count; ++i) out[i] = z[i];
    store_tile(args.out, begin, count, out);
  });
}

template <class T>
void fill(const RandomArgs& args, TileRange tiles) {
  if (args.distribution == Distribution::kRademacher) {
    fill_signs<T>(args, tiles);
  } else {
    fill_numbers<T>(args, tiles);
  }
}

}  // namespace

void random_fill(const RandomArgs& args, TileRange tiles) {
  if (args.out.dtype == DType::kFloat64) {
    fill<double>(args, tiles);
  } else {
    fill<float>(args, tiles);
  }
}

void draw_labels(const LabelArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  const uint32_t levels = static_cast<uint32_t>(args.levels);
  NoiseTile tile;
  for_each_tile(args.noise, tiles, [&](int64_t flat, int64_t begin, int64_t count) {
    const float* words = words_of(tile, args.noise, key, flat, begin, count);
    int64_t* labels = args.labels + begin;
    for (int64_t i = 0; i < count; ++i) {
      labels[i] = index_below(levels, bits_of(words[i]));
    }
  });
}

void philox_words(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
  const PhiloxBlock<LaneW> words =
      philox(PhiloxBlock<LaneW>{broadcast<LaneW>(counter[0]), broadcast<LaneW>(counter[1]),
                                broadcast<LaneW>(counter[2]), broadcast<LaneW>(counter[3])},
             key[0], key[1]);
  const LaneW* lanes[4] = {&words.w0, &words.w1, &words.w2, &words.w3};
  for (int k = 0; k < 4; ++k) memcpy(out + k, lanes[k], sizeof(uint32_t));
}

void box_muller_words(const uint32_t* words, int64_t pairs, float* log, float* cosine, float* sine,
                      float* normals) {
  constexpr int kLanes = sizeof(LaneF) / sizeof(float);
  for (int64_t i = 0; i < pairs; i += kLanes) {
    uint32_t radius[kLanes] = {}, angle[kLanes] = {};
    const int64_t n = pairs - i < kLanes ? pairs - i : kLanes;
    for (int64_t j = 0; j < n; ++j) {
      radius[j] = words[2 * (i + j)];
      angle[j] = words[2 * (i + j) + 1];
    }
    LaneU u, v;
    memcpy(&u, radius, sizeof u);
    memcpy(&v, angle, sizeof v);
    LaneF c, s, z0, z1;
    const LaneF l = neg2_log_uniform<LaneF>(u);
    cos_sin_turn<LaneF>(v, c, s);
    box_muller<LaneF>(u, v, z0, z1);
    float out[5][kLanes];
    store(out[0], l);
    store(out[1], c);
    store(out[2], s);
    store(out[3], z0);
    store(out[4], z1);
    for (int64_t j = 0; j < n; ++j) {
      log[i + j] = out[0][j];
      cosine[i + j] = out[1][j];
      sine[i + j] = out[2][j];
      normals[2 * (i + j)] = out[3][j];
      normals[2 * (i + j) + 1] = out[4][j];
    }
  }
}

// Nothing but fused multiply-adds, in chains enough to hide their latency; returns how many numbers
// they made. What is left of them keeps the compiler from dropping the work.
int64_t multiply_adds(int64_t rounds, float* sum) {
  constexpr int kLanes = sizeof(LaneF) / sizeof(float), kSums = 12;
  const LaneF factor = broadcast<LaneF>(0.5f), term = broadcast<LaneF>(1.0f);
  LaneF sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = broadcast<LaneF>(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
#ifdef __FMA__
      sums[i] = fma(sums[i], factor, term);
#else  // where fma is a matter of many instructions
      sums[i] = sums[i] * factor + term;
#endif
    }
  }
  for (int i = 1; i < kSums; ++i) sums[0] = sums[0] + sums[i];
  float lanes[kLanes];
  store(lanes, sums[0]);
  *sum = lanes[0];
  return rounds * kSums * kLanes;
}

}  // namespace fastscore::FASTSCORE_ISA
