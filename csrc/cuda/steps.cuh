// What the steps of the families `langevin` and `multistep` have in common: their arguments, and a
// kernel that takes all that a step may have besides: a mask, two terms of the score, all columns
// of a table, a history, samples that draw on their own.
#pragma once

#include <limits>

#include "core/multistep.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/noisy_tiles.cuh"
#include "langevin_checks.h"

namespace fastscore::FASTSCORE_ISA {

// What a step needs beside the tensors. T is the type computed with.
template <class T>
struct StepArgs {
  NoiseSource noise;
  const double* table;       // rows x batch_rows x columns
  int64_t rows, batch_rows;  // batch_rows is 1, or the batch size
  int32_t columns;
  Divider sample_size;
  int64_t numel;
  bool clamp;
  T low, high;
};

template <class T>
T bound_or(std::optional<double> bound, double infinity) {
  return static_cast<T>(bound.value_or(infinity));
}
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
StepArgs<T> step_args(const StepInputs& in, const Noise& noise) {
  StepArgs<T> args = {};
  args.noise = noise.source;
  args.table = in.table.const_data_ptr<double>();
  args.rows = in.table.size(0);
  args.batch_rows = in.table.dim() == 3 ? in.table.size(1) : 1;
  args.columns = static_cast<int32_t>(in.table.size(in.table.dim() - 1));
  args.sample_size = Divider::by(sample_size(in.x));
  args.numel = in.x.numel();
  args.clamp = in.low || in.high;
  args.low = bound_or<T>(in.low, -kInfinity);
  args.high = bound_or<T>(in.high, kInfinity);
  return args;
}

// The tensors, and the memory of a mask that was not contiguous.
struct StepViews {
  View out{}, x{}, known{}, history{}, score{}, second{};
  bool* mask;  // contiguous; null when there is none
  std::optional<Tensor> dense_mask;

  StepViews(const char* op, const StepInputs& in, const Tensor& out_tensor) {
    out = make_view(op, "out", out_tensor);
    x = read_view(op, "x", in.x);
    score = read_view(op, "score", in.score);
    if (in.known) known = read_view(op, "known", *in.known);
    if (in.second) second = read_view(op, "second", *in.second);
    if (in.mask) dense_mask = torch::stable::contiguous(*in.mask);
    mask = dense_mask ? static_cast<bool*>(dense_mask->data_ptr()) : nullptr;
  }

  // Whether packs of v elements of all of them can be moved whole.
  bool packable_by(int v) const {
    const auto fits = [&](const View& view) { return !view.data || packable(view, v); };
    return fits(out) && fits(x) && fits(known) && fits(history) && fits(score) && fits(second) &&
           (!mask || aligned(mask, sizeof(bool), v));
  }
};

// Calls body(S(), R()): what state and score are stored as.
template <class Body>
void with_state_and_score(const StepViews& v, const Body& body) {
  switch (v.x.dtype) {
    case DType::kFloat64:
      return body(double(), double());
    case DType::kBFloat16:
      return body(BFloat16(), BFloat16());
    case DType::kFloat16:
      return body(Float16(), Float16());
    default:
      break;
  }
  switch (v.score.dtype) {
    case DType::kBFloat16:
      return body(float(), BFloat16());
    case DType::kFloat16:
      return body(float(), Float16());
    default:
      return body(float(), float());
  }
}

// ---- the step that may have everything --------------------------------------------------------
//
// Family::kHistory: whether there is one, and columns for it.

// The tensors: State is how x, known, the history and the result are reached, Score how the terms
// of the score are.
template <class State, class Score>
struct FullTensors {
  State out, x, known, history;
  Score score, second;
  Packed<bool, State::V> mask;           // null where there is none
  const double* weights;                 // null where the score is of one term
  int64_t weights_stride, weights_step;  // from one weight, and one sample's pair, to the next
  bool clip;
  typename State::Real clip_low, clip_high;
};

// A sample's coefficients.
template <class T>
struct FullRow {
  LangevinRow<T> step;
  T m = 1, u = 1;
  MultistepRow<T> past;
};

// Where a sample's row lies in the table.
template <class T>
__device__ __forceinline__ const double* row_at(const StepArgs<T>& args, int64_t sample) {
  const int64_t draw = args.noise.key[args.noise.keyed() ? 2 * sample + 1 : 1];
  const int64_t step = langevin_row(draw, args.rows);
  return args.table +
         (args.batch_rows != 1 ? step * args.batch_rows + sample : step) * args.columns;
}

template <class Family, class T>
__device__ __forceinline__ FullRow<T> full_row(const StepArgs<T>& args, int64_t sample) {
  const double* from = row_at(args, sample);
  const auto column = [&](int c) { return static_cast<T>(from[c]); };
  FullRow<T> row;
  row.step = {column(0), column(1), column(2), column(3)};
  if (args.columns > 4) {
    row.m = column(4);
    row.u = column(5);
  }
  if constexpr (Family::kHistory) row.past = {column(6), column(7), column(8), column(9)};
  return row;
}

// Which sample a pack's elements are of. Its row is loaded when it is used, for want of registers.
using OneSample = OneRow<int64_t>;

// Whether a pack has to draw: where it may be of several samples, it always does.
template <class T>
__device__ __forceinline__ bool asks_for_noise(const StepArgs<T>& args, bool masked,
                                               const OneSample& one) {
  const double* row = row_at(args, one.row);
  return row[2] != 0 || (masked && row[3] != 0);
}
template <class T, class Load>
__device__ __forceinline__ bool asks_for_noise(const StepArgs<T>&, bool,
                                               const RowPerSample<Load>&) {
  return true;
}

template <class T>
__device__ __forceinline__ T clamped_by(const StepArgs<T>& args, T u, T x) {
  return args.clamp ? clamped(x, scaled_bound(u, args.low), scaled_bound(u, args.high)) : x;
}

// One pack.
template <class Family, class State, class Score, class Whole, class Samples>
__device__ __forceinline__ void step_pack(const StepArgs<typename State::Real>& args,
                                          const FullTensors<State, Score>& t, const NoiseKey& key,
                                          const Range& range, Whole whole, const Samples& samples) {
  using T = typename State::Real;
  constexpr int V = State::V;
  const auto raw_x = t.x.load(range, whole);
  const auto raw_s = t.score.load(range, whole);
  typename State::Raw raw_past = {};
  if constexpr (Family::kHistory) raw_past = t.history.load(range, whole);
  float z[V] = {};
  if (asks_for_noise(args, t.mask.data, samples)) {
    if (args.noise.each) {
      draw<Normal, true>(args.noise, key, range, z);
    } else {
      draw<Normal, false>(args.noise, key, range, z);
    }
  }
  T x[V], s[V], past[V], known[V] = {};
  bool fixed[V] = {};
  State::unpack(raw_x, x);
  Score::unpack(raw_s, s);
  State::unpack(raw_past, past);
  // The rest is loaded late, for want of registers.
  if (t.weights) {
    T second[V];
    Score::unpack(t.second.load(range, whole), second);
    samples.template each<V>(range, [&](int j, int64_t sample) {
      const double* w = t.weights + sample * t.weights_step;
      const T w0 = static_cast<T>(w[0]), w1 = static_cast<T>(w[t.weights_stride]);
      s[j] = two_terms(w0, s[j], w1, second[j]);
    });
  }
  if (t.mask.data) {
    State::unpack(t.known.load(range, whole), known);
    unpack(t.mask.load(range, whole), fixed);
  }
  samples.template each<V>(range, [&](int j, int64_t sample) {
    const FullRow<T> row = full_row<Family>(args, sample);
    const T noise = static_cast<T>(z[j]);
    T next;
    if constexpr (Family::kHistory) {
      const Means<T> means = multistep_means(row.past, x[j], s[j], t.clip_low, t.clip_high);
      next = multistep_update(row.step, row.past, x[j], s[j], past[j], means, t.clip, noise);
      past[j] = means.clipped;
    } else {
      next = langevin_update(row.step, x[j], s[j], noise);
    }
    next = fixed[j] ? langevin_known(row.step, row.m * known[j], noise) : next;
    x[j] = clamped_by(args, row.u, next);
  });
  t.out.store(range, whole, x);
  if constexpr (Family::kHistory) t.history.store(range, whole, past);
}

// Of packs of four floats that move whole so many blocks share a multiprocessor that memory is kept
// busy; the rest need the registers.
template <class State>
constexpr int kFullBlocks =
    State::kMovesWhole && State::V == 4 && sizeof(typename State::Real) == 4 ? 4 : 2;

template <class Family, class State, class Score>
__global__ void __launch_bounds__(kThreads, kFullBlocks<State>)
    full_step(const __grid_constant__ StepArgs<typename State::Real> args,
              const __grid_constant__ FullTensors<State, Score> t) {
  static_assert(State::kAtOnce == 1);
  const NoiseKey key = noise_key(args.noise);
  const auto itself = [](int64_t sample) { return sample; };
  const Tile<State> tile(args.noise.origin, args.numel);
  const auto step = [&](auto whole, const auto& samples) {
    const Range range = tile.range(0, whole);
    if (!range.empty()) step_pack<Family>(args, t, key, range, whole, samples);
  };
  if (args.batch_rows != 1 || args.noise.keyed() || (t.weights && t.weights_step != 0)) {
    tile.split_rows(args.sample_size, itself, step);
  } else {
    tile.split([&](auto whole) { step(whole, OneSample{0}); });
  }
}

// `finish` fills in what only the family knows of the tensors.
template <class Family, class S, class R, class Finish>
void run_full_step(const Launcher& launch, const StepInputs& in, const Noise& noise,
                   const StepViews& v, const Finish& finish) {
  constexpr int V = kPack<S>;
  const StepArgs<Compute<S>> args = step_args<Compute<S>>(in, noise);
  const auto run = [&](const auto& state, const auto& score) {
    using State = decltype(state(v.x));
    using Score = decltype(score(v.score));
    FullTensors<State, Score> tensors = {state(v.out),     state(v.x),     state(v.known),
                                         state(v.history), score(v.score), score(v.second),
                                         {v.mask}};
    if (in.weights) {
      tensors.weights = in.weights->const_data_ptr<double>();
      tensors.weights_stride = in.weights->stride(in.weights->dim() - 1);
      tensors.weights_step = in.weights->dim() == 2 ? in.weights->stride(0) : 0;
    }
    finish(tensors);
    launch.blocks(tile_count<State>(args.noise.origin, args.numel),
                  &full_step<Family, State, Score>, args, tensors);
  };
  if (args.noise.origin % V == 0 && v.packable_by(V)) {
    run([](const View& view) { return packed<S, V, 1>(view); },
        [](const View& view) { return packed<R, V, 1>(view); });
  } else {
    const auto any = [](const View& view) { return Spread<Compute<S>>::of(view); };
    run(any, any);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
