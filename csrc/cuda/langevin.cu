// CUDA side of the family `langevin`.
#include <type_traits>

#include "checks.h"
#include "core/langevin.h"
#include "cuda/steps.cuh"

namespace fastscore::FASTSCORE_ISA {
namespace {

// The tensors: State is how x, known and the result are reached, Score how the score is, or its two
// terms.
template <class State, class Score>
struct StepTensors {
  State out, x, known;
  Score score, second;
  Packed<bool, State::V> mask;
  const double* weights;   // null where the score is of one term
  int64_t weights_stride;  // from one to the other
};

// The score of a tile, unpacked when it is used; or the sum of its two terms, which is made at
// once, so that both have left their registers when noise is drawn.
template <class State, class Score>
struct OneTerm {
  typename Score::Raw raw[State::kAtOnce];

  template <class Whole>
  __device__ __forceinline__ OneTerm(const StepTensors<State, Score>& t, const Tile<State>& tile,
                                     Whole whole) {
    tile.load(t.score, whole, raw);
  }

  __device__ __forceinline__ void get(int u, typename State::Real (&s)[State::V]) const {
    Score::unpack(raw[u], s);
  }
};

template <class State, class Score>
struct TwoTerms {
  using T = typename State::Real;
  T sum[State::kAtOnce][State::V];

  template <class Whole>
  __device__ __forceinline__ TwoTerms(const StepTensors<State, Score>& t, const Tile<State>& tile,
                                      Whole whole) {
    typename Score::Raw first[State::kAtOnce], second[State::kAtOnce];
    tile.load(t.score, whole, first);
    tile.load(t.second, whole, second);
    const T w0 = static_cast<T>(t.weights[0]), w1 = static_cast<T>(t.weights[t.weights_stride]);
#pragma unroll
    for (int u = 0; u < State::kAtOnce; ++u) {
      T other[State::V];
      Score::unpack(first[u], sum[u]);
      Score::unpack(second[u], other);
#pragma unroll
      for (int j = 0; j < State::V; ++j) sum[u][j] = two_terms(w0, sum[u][j], w1, other[j]);
    }
  }

  __device__ __forceinline__ void get(int u, T (&s)[State::V]) const {
#pragma unroll
    for (int j = 0; j < State::V; ++j) s[j] = sum[u][j];
  }
};

// A sample's coefficients, and whether they ask for noise.
template <class T>
struct Coefficients {
  LangevinRow<T> row;
  bool noisy;
};

template <class T>
__device__ __forceinline__ Coefficients<T> coefficients(const double* row, bool masked) {
  const double a = row[0], b = row[1], c = row[2], k = row[3];
  return {{static_cast<T>(a), static_cast<T>(b), static_cast<T>(c), static_cast<T>(k)},
          c != 0 || (masked && k != 0)};
}

// One pack on its way through the step; x becomes the result.
template <class T, int V, bool kMasked>
struct StepPack {
  T x[V], s[V];
  T known[kMasked ? V : 1];
  bool fixed[kMasked ? V : 1];

  __device__ __forceinline__ void update(int j, const LangevinRow<T>& row, T z) {
    x[j] = langevin_update(row, x[j], s[j], z);
    if constexpr (kMasked) x[j] = fixed[j] ? langevin_known(row, known[j], z) : x[j];
  }
};

// One tile. Terms: how the score is made; kNoisy: noise is drawn.
template <bool kMasked, bool kEach, bool kNoisy, template <class, class> class Terms, class State,
          class Score, class Whole, class Rows>
__device__ __forceinline__ void step_tile(const StepArgs<typename State::Real>& args,
                                          const StepTensors<State, Score>& t, const NoiseKey& key,
                                          const Tile<State>& tile, Whole whole, const Rows& rows) {
  using T = typename State::Real;
  constexpr int V = State::V;
  typename State::Raw x[State::kAtOnce];
  tile.load(t.x, whole, x);
  const Terms<State, Score> score(t, tile, whole);
  const auto update = [&](int u, const Range& range, const float (&z)[V]) {
    StepPack<T, V, kMasked> p;
    State::unpack(x[u], p.x);
    score.get(u, p.s);
    if constexpr (kMasked) {  // Loaded late, for want of registers.
      State::unpack(t.known.load(range, whole), p.known);
      unpack(t.mask.load(range, whole), p.fixed);
    }
    rows.template each<V>(range, [&](int j, const Coefficients<T>& own) {
      p.update(j, own.row, static_cast<T>(z[j]));
    });
    if (args.clamp) {
#pragma unroll
      for (int j = 0; j < V; ++j) p.x[j] = clamped(p.x[j], args.low, args.high);
    }
    t.out.store(range, whole, p.x);
  };
  if constexpr (kNoisy) {
    constexpr int kTogether = kMasked ? 1 : kPacksTogether<State>;
    for_each_noisy_pack<kTogether, kEach>(key, args.noise, tile, whole, update);
  } else {
    const float silence[V] = {};
#pragma unroll
    for (int u = 0; u < State::kAtOnce; ++u) {
      const Range range = tile.range(u, whole);
      if (!range.empty()) update(u, range, silence);
    }
  }
}

// Packs of eight do not all fit the registers that four blocks would leave them.
template <class State, bool kMasked, bool kEach>
constexpr int kStepBlocks = State::V < 8                    ? kResidentBlocks<State>
                            : kMasked                       ? 2
                            : (kEach || State::kAtOnce > 2) ? 3
                                                            : kResidentBlocks<State>;

template <class State, class Score, bool kMasked, bool kEach,
          template <class, class> class Terms = OneTerm>
__global__ void __launch_bounds__(kThreads, kStepBlocks<State, kMasked, kEach>)
    langevin(const __grid_constant__ StepArgs<typename State::Real> args,
             const __grid_constant__ StepTensors<State, Score> t) {
  using T = typename State::Real;
  const NoiseKey key = noise_key(args.noise);
  const double* table =
      args.table + langevin_row(args.noise.key[1], args.rows) * args.batch_rows * 4;
  const bool keyed = kEach && args.noise.keyed(), per_sample = args.batch_rows != 1 || keyed;
  const auto row_of = [&](int64_t sample) {
    const double* row = table + 4 * sample;
    if constexpr (kEach) {
      if (keyed) {
        const int64_t step = langevin_row(args.noise.key[2 * sample + 1], args.rows);
        row = args.table + 4 * (args.batch_rows != 1 ? step * args.batch_rows + sample : step);
      }
    }
    return coefficients<T>(row, kMasked);
  };
  const OneRow<Coefficients<T>> common = {row_of(0)};
  const Tile<State> tile(args.noise.origin, args.numel);
  if (per_sample) {
    tile.split_rows(args.sample_size, row_of, [&](auto whole, const auto& rows) {
      step_tile<kMasked, kEach, true, Terms>(args, t, key, tile, whole, rows);
    });
  } else if (common.row.noisy) {
    tile.split([&](auto whole) {
      step_tile<kMasked, kEach, true, Terms>(args, t, key, tile, whole, common);
    });
  } else {
    tile.split([&](auto whole) {
      step_tile<kMasked, kEach, false, Terms>(args, t, key, tile, whole, common);
    });
  }
}

// ---- choosing the kernel --------------------------------------------------------------------

// Of a step with a mask, or whose samples draw on their own.
template <class State, class Score>
auto special_kernel(bool masked, bool each) {
  if (!masked) return &langevin<State, Score, false, true>;
  return each ? &langevin<State, Score, true, true> : &langevin<State, Score, true, false>;
}

template <class S, class R>
void run_as(const Launcher& launch, const StepInputs& in, const Noise& noise, const StepViews& v) {
  constexpr int V = kPack<S>;
  const StepArgs<Compute<S>> args = step_args<Compute<S>>(in, noise);
  const bool masked = v.mask, each = args.noise.each, plain = !masked && !each;
  const bool whole = args.noise.origin % V == 0 && v.packable_by(V);
  // state and score: from a view to how its elements are reached.
  const auto run = [&](const auto& state, const auto& score, const auto& kernel) {
    using State = decltype(state(v.x));
    const StepTensors<State, decltype(score(v.score))> tensors = {
        state(v.out), state(v.x), state(v.known), score(v.score), score(v.second), {v.mask}};
    launch.blocks(tile_count<State>(args.noise.origin, args.numel), kernel, args, tensors);
  };
  if (!whole) {
    using Any = Spread<Compute<S>>;
    const auto any = [](const View& view) { return Any::of(view); };
    return run(any, any,
               plain ? &langevin<Any, Any, false, false> : special_kernel<Any, Any>(masked, each));
  }
  using Score = Packed<R, V>;
  const auto score = [](const View& view) { return packed<R, V>(view); };
  if (plain) {
    // Half precision is bound by what is done for a pack, float by memory.
    constexpr int kPacks = sizeof(S) == 2 ? 3 : 2;
    return run([](const View& view) { return packed<S, V, kPacks>(view); }, score,
               &langevin<Packed<S, V, kPacks>, Score, false, false>);
  }
  run([](const View& view) { return packed<S>(view); }, score,
      special_kernel<Packed<S>, Score>(masked, each));
}

// A step with two terms of the score, or with all six columns.
struct Guided {
  static constexpr bool kHistory = false;
};

// The usual one of two terms: float, samples with the same weights, and nothing else.
template <class R>
bool run_two_terms(const Launcher& launch, const StepInputs& in, const Noise& noise,
                   const StepViews& v) {
  constexpr int V = kPack<float>, kPacks = 2;
  using State = Packed<float, V, kPacks>;
  using Score = Packed<R, V>;
  const StepArgs<float> args = step_args<float>(in, noise);
  const bool plain = in.second && args.columns == 4 && in.weights->dim() == 1 && !v.mask &&
                     !args.noise.each && args.noise.origin % V == 0 && v.packable_by(V);
  if (!plain) return false;
  const auto state = [](const View& view) { return packed<float, V, kPacks>(view); };
  const auto score = [](const View& view) { return packed<R, V>(view); };
  const StepTensors<State, Score> tensors = {state(v.out),
                                             state(v.x),
                                             state(v.known),
                                             score(v.score),
                                             score(v.second),
                                             {v.mask},
                                             in.weights->const_data_ptr<double>(),
                                             in.weights->stride(0)};
  launch.blocks(tile_count<State>(args.noise.origin, args.numel),
                &langevin<State, Score, false, false, TwoTerms>, args, tensors);
  return true;
}

void step(const char* op, const StepInputs& in, const Tensor& out) {
  const int64_t columns = langevin_columns(op, in.table);
  check_step(op, in, columns);
  if (in.x.numel() == 0) return;
  const Launcher launch(in.x);
  const Noise noise(in.key, Stream::kLangevin, in.sample_offset, in.samples, sample_size(in.x));
  const StepViews v(op, in, out);
  const bool full = columns == 6 || in.second;
  with_state_and_score(v, [&](auto s, auto r) {
    using S = decltype(s);
    using R = decltype(r);
    if constexpr (std::is_same_v<S, float>) {
      if (run_two_terms<R>(launch, in, noise, v)) return;
    }
    if (full) {
      run_full_step<Guided, S, R>(launch, in, noise, v, [](auto&) {});
    } else {
      run_as<S, R>(launch, in, noise, v);
    }
  });
}

void langevin_step_(Tensor x, const Tensor& score, const Tensor& table, const Tensor& key,
                    std::optional<Tensor> known, std::optional<Tensor> mask,
                    std::optional<double> low, std::optional<double> high, int64_t sample_offset,
                    std::optional<Tensor> samples, std::optional<Tensor> second,
                    std::optional<Tensor> weights) {
  const StepInputs in{x,   score, table,         key,     known,  mask,
                      low, high,  sample_offset, samples, second, weights};
  check_in_place("langevin_step_", in, x, "x");
  step("langevin_step_", in, x);
}

Tensor langevin_step(const Tensor& x, const Tensor& score, const Tensor& table, const Tensor& key,
                     std::optional<Tensor> known, std::optional<Tensor> mask,
                     std::optional<double> low, std::optional<double> high, int64_t sample_offset,
                     std::optional<Tensor> samples, std::optional<Tensor> second,
                     std::optional<Tensor> weights) {
  Tensor out = new_like(x);
  step("langevin_step",
       {x, score, table, key, known, mask, low, high, sample_offset, samples, second, weights},
       out);
  return out;
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

FASTSCORE_CUDA_OPS(m) {
  using namespace fastscore::FASTSCORE_ISA;
  m.impl("langevin_step_", TORCH_BOX(&langevin_step_));
  m.impl("langevin_step", TORCH_BOX(&langevin_step));
}
