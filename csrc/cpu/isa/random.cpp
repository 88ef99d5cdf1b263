// Kernels of the family `random`: fill a tensor with noise, draw labels, and the test hook that
// turns given words into normals.
#include "tile.h"

namespace fastscore::FASTSCORE_ISA {

const float* NoiseTile::signs(const NoiseKey& key, int64_t begin, int64_t end) {
  const int64_t origin = begin - begin % kTile;
  const int64_t first = (begin - origin) / kSignsPerBlock * kSignsPerBlock;
  for (int64_t i = first; i < end - origin; i += kSignsPerBlock) {
    const PhiloxBlock<uint32_t> w =
        philox_block(key, static_cast<uint64_t>(origin + i) / kSignsPerBlock);
    for (uint32_t word = 0; word < 4; ++word) {
      const uint32_t bits = word_of(w, word);
      float* out = values + i + 32 * word;
      for (int bit = 0; bit < 32; ++bit) {
        // 1.0 with the sign bit set where the drawn bit is clear.
        out[bit] = float_from_bits(0x3f800000u | ((~bits << (31 - bit)) & 0x80000000u));
      }
    }
  }
  return values + (begin - origin);
}

namespace {

const float* noise_of(NoiseTile& tile, Distribution distribution, const NoiseKey& key,
                      int64_t begin, int64_t end) {
  if (distribution == Distribution::kNormal) return tile.normals(key, begin, end);
  if (distribution == Distribution::kUniform) return tile.uniforms(key, begin, end);
  return tile.signs(key, begin, end);
}

template <class T>
void fill(const RandomArgs& args, TileRange tiles) {
  const NoiseKey key = noise_key(args.noise);
  NoiseTile tile;
  T buffer[kTile];
  for_each_tile(args.noise.origin, args.numel, tiles,
                [&](int64_t flat, int64_t begin, int64_t count) {
                  const float* z = noise_of(tile, args.distribution, key, flat, flat + count);
                  T* out = output_tile(args.out, begin, buffer);
                  for (int64_t i = 0; i < count; ++i) out[i] = z[i];
                  store_tile(args.out, begin, count, out);
                });
}

}  // namespace

void random_fill(const RandomArgs& args, TileRange tiles) {
  if (args.out.dtype == DType::kFloat64) {
    fill<double>(args, tiles);
  } else {
    fill<float>(args, tiles);
  }
}

void draw_labels(const NoiseArgs& args, int64_t levels, int64_t* labels, int64_t begin,
                 int64_t end) {
  const NoiseKey key = noise_key(args);
  for (int64_t i = begin; i < end; ++i) {
    labels[i] =
        uniform_index(key, static_cast<uint64_t>(args.origin + i), static_cast<uint32_t>(levels));
  }
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

}  // namespace fastscore::FASTSCORE_ISA
