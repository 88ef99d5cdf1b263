// What the per-instruction-set kernels take, and their declarations. Plain data only: the units in
// cpu/isa include no torch header and no std template.
#pragma once

#include <stdint.h>

#include "core/dual_args.h"
#include "core/projections.h"
#include "core/runge_kutta_args.h"
#include "core/streams.h"
#include "core/view.h"

namespace fastscore {

// A range [begin, end) of tiles of the flat index. Tile t holds elements
// [t * 1024 - origin, (t + 1) * 1024 - origin) of the tensor, where `origin` is the flat index of
// the tensor's first element.
struct TileRange {
  int64_t begin, end;
};

// Up to so many elements a sample is short: its kernels loop over tiles, never over samples.
constexpr int64_t kLongestShort = 16;

// Where the noise of elements [begin, end) comes from.
struct NoiseArgs {
  int64_t seed, draw;
  Stream stream;
  int64_t origin;  // flat index of the tensor's first element, or what it would be by these
  int64_t begin, end;
  int64_t slot_zero;  // the tile that files its sums in slot 0, see isa/rows.h

  // Short samples in any order, or with keys of their own: a tile is made of whole samples, each
  // of which draws by its number or by its key (see isa/sample_noise.h).
  bool each = false;
  int64_t sample_size = 0;
  const int64_t* numbers = nullptr;  // batch
  const int64_t* keys = nullptr;     // batch x 2
};

enum class Distribution : int32_t { kNormal, kUniform, kRademacher };

struct RandomArgs {
  NoiseArgs noise;
  Distribution distribution;
  View out;
};

struct LabelArgs {
  NoiseArgs noise;
  int64_t levels;
  int64_t* labels;
};

struct LangevinArgs {
  NoiseArgs noise;
  View out, x, score, known;
  const uint8_t* mask;  // contiguous bool, as bytes: GCC makes no vectors of bool; null for none
  const double* rows;   // the current row of each sample: batch_rows x columns
  int64_t batch_rows;   // 1, or the batch size
  int64_t columns;      // see core/langevin.h: 4, 6, or those of a multistep update
  bool noisy;           // whether any row asks for noise
  int64_t sample_size;
  bool clamp;
  double low, high;
  const double* weights;                 // of the score's two terms; null where there is one
  int64_t weights_stride, weights_step;  // from one weight, and one sample's pair, to the next
  View second;
};

struct MultistepArgs : LangevinArgs {
  View history;
  bool clip;
  double clip_low, clip_high;
};

struct PerturbArgs {
  NoiseArgs noise;
  View out, x;
  const double* table;    // levels x 2
  const int64_t* labels;  // batch
  int64_t sample_size;
};

struct ResidualArgs {
  NoiseArgs noise;
  View output;
  View noisy;             // data is null where there is none
  const double* table;    // levels x 3, or x 4 with noisy
  const int64_t* labels;  // batch
  int64_t sample_size;
  double* loss;                  // forward: batch
  double *head, *tail;           // forward: one slot a tile, see isa/rows.h
  const double* grad = nullptr;  // gradient: d loss, batch; null where all are `expected`
  double expected = 0;
  View grad_output;  // gradient; data is null where forward makes none
};

// Rows of numbers in double: one for all samples, or one for each.
struct SampleRows {
  const double* data;
  int64_t count, columns;

  __attribute__((always_inline)) const double* of(int64_t sample) const {
    return data + (count == 1 ? 0 : sample * columns);
  }
};

struct RungeKuttaArgs {
  View x, fresh, out;  // out: null data where an advance makes none
  View slopes[kMostSlopes];
  int slope_count;
  SampleRows coefficients;  // 1 + slope_count
  SampleRows tolerances;    // error: atol, rtol
  double* sums;      // error: of each sample, or of each piece of 1024 elements of a long one
  View first, last;  // advance
  const uint8_t* accepted;  // advance: bool as bytes, batch
  int64_t numel, sample_size;
};

// Where a kernel files its sums over samples, see isa/rows.h: `columns` of them, each `rows` sums
// and `tiles` slots long.
struct SumSlots {
  double *done, *head, *tail;
  int64_t rows, tiles;
};

struct SlicedArgs {
  NoiseArgs noise;
  Projection distribution;
  int64_t projections;
  View out;                   // project: projections x numel
  View score, jvp;            // terms; jvp is projections x numel
  SumSlots sums;              // norms: |g|^2; terms: v'Jv and v's of each projection, then |s|^2
  const double* square_norm;  // sphere: |g|^2, projections x batch
  const double* grad_vjv;     // backward: projections x batch
  const double* grad_vs;      // backward: the same, or null
  const double* grad_s2;      // backward: batch, or null
  View grad_score, grad_jvp;
  int64_t numel, sample_size, batch;  // of the score
};

#define FASTSCORE_KERNELS(isa)                                                           \
  namespace isa {                                                                        \
  void random_fill(const RandomArgs& args, TileRange tiles);                             \
  void langevin_step(const LangevinArgs& args, TileRange tiles);                         \
  void multistep_step(const MultistepArgs& args, TileRange tiles);                       \
  void perturb(const PerturbArgs& args, TileRange tiles);                                \
  void dsm_residual(const ResidualArgs& args, TileRange tiles);                          \
  void dsm_residual_backward(const ResidualArgs& args, TileRange tiles);                 \
  void rk_stage(const RungeKuttaArgs& args, TileRange tiles);                            \
  void rk_error(const RungeKuttaArgs& args, TileRange tiles);                            \
  void rk_advance(const RungeKuttaArgs& args, TileRange tiles);                          \
  void project(const SlicedArgs& args, TileRange tiles);                                 \
  void sliced_norms(const SlicedArgs& args, TileRange tiles);                            \
  void sliced_terms(const SlicedArgs& args, TileRange tiles);                            \
  void sliced_terms_backward(const SlicedArgs& args, TileRange tiles);                   \
  void dual_forward(const DualArgs& args, TileRange tiles);                              \
  void dual_backward(const DualArgs& args, TileRange tiles);                             \
  void slope_forward(const DualArgs& args, TileRange tiles);                             \
  void slope_backward(const DualArgs& args, TileRange tiles);                            \
  void draw_labels(const LabelArgs& args, TileRange tiles);                              \
  void philox_words(const uint32_t* counter, const uint32_t* key, uint32_t* out);        \
  void box_muller_words(const uint32_t* words, int64_t pairs, float* log, float* cosine, \
                        float* sine, float* normals);                                    \
  int64_t multiply_adds(int64_t rounds, float* sum);                                     \
  }

FASTSCORE_KERNELS(cpu_default)
FASTSCORE_KERNELS(cpu_avx2)
FASTSCORE_KERNELS(cpu_avx512)

}  // namespace fastscore
