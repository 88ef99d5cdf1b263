// CUDA side of the family `runge_kutta`.
#include <vector>

#include "core/runge_kutta.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"
#include "runge_kutta_checks.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// ---- coefficients ------------------------------------------------------------------------------

// Rows of numbers in double, one for all samples or one for each; `columns` is 0 for the former.
struct SampleRows {
  const double* data;
  int64_t columns;

  __device__ __forceinline__ const double* of(int64_t sample) const {
    return data + sample * columns;
  }

  // Of rows that lie in memory one after the other.
  static SampleRows of(const Tensor& dense) {
    return {dense.const_data_ptr<double>(), dense.dim() == 2 ? dense.size(1) : 0};
  }
};

// A sample's coefficients: in registers, for loops that are unrolled, or read where they are used.
template <class T, bool kHeld>
class Row {
 public:
  __device__ __forceinline__ Row(const double* row, int slopes) : row_(row) {
    if constexpr (kHeld) {
#pragma unroll
      for (int j = 0; j <= kMostSlopes; ++j) held_[j] = j <= slopes ? static_cast<T>(row[j]) : 0;
    }
  }

  __device__ __forceinline__ T at(int j) const {
    if constexpr (kHeld) return held_[j];
    return static_cast<T>(row_[j]);
  }

 private:
  const double* row_;
  T held_[kHeld ? kMostSlopes + 1 : 1];
};

// ---- sums of slopes ----------------------------------------------------------------------------

template <class Slope>
struct Slopes {
  Slope of[kMostSlopes];
  int count;
};

// Adds c_j k_j to kPacks packs of one sample. Slopes of coefficient 0 are left in memory.
template <bool kHeld, int kPacks, class Slope, class T>
__device__ __forceinline__ void add_slopes(const Slopes<Slope>& slopes, const Row<T, kHeld>& row,
                                           const Range (&range)[kPacks], bool whole,
                                           T (&sum)[kPacks][Slope::V]) {
  const auto add = [&](int j) {
    const T c = row.at(j + 1);
    if (c == 0) return;
    typename Slope::Raw raw[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) raw[u] = slopes.of[j].load(range[u], whole);
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      T k[Slope::V];
      Slope::unpack(raw[u], k);
#pragma unroll
      for (int v = 0; v < Slope::V; ++v) sum[u][v] = rk_add(sum[u][v], c, k[v]);
    }
  };
  if constexpr (kHeld) {
#pragma unroll
    for (int j = 0; j < kMostSlopes; ++j) add(j);
  } else {
#pragma unroll 1
    for (int j = 0; j < slopes.count; ++j) add(j);
  }
}

// ---- a tile, sample by sample ------------------------------------------------------------------

// Calls body(sample, share) for each sample that has a share in a pack.
template <class Body>
__device__ __forceinline__ void for_each_share(const Divider& sample_size, const Range& range,
                                               const Body& body) {
  if (range.empty()) return;
  int64_t sample = sample_size(range.i + range.low);
#pragma unroll 1
  for (int low = range.low; low < range.high; ++sample) {
    const int64_t end = (sample + 1) * sample_size.divisor - range.i;
    const int high = end < range.high ? static_cast<int>(end) : range.high;
    body(sample, Range{range.i, low, high});
    low = high;
  }
}

// Calls fast(sample, ranges, true) where the tile is whole and of one sample, else
// slow(sample, range, whole) for each share in each of the thread's packs. `each`: whether samples
// differ at all.
template <class Access, class Fast, class Slow>
__device__ __forceinline__ void by_sample(const Tile<Access>& tile, const Divider& sample_size,
                                          bool each, const Fast& fast, const Slow& slow) {
  tile.split([&](auto whole) {
    if constexpr (whole) {
      const int64_t sample = each ? sample_size(tile.begin()) : 0;
      if (!each || tile.end(1) <= (sample + 1) * sample_size.divisor) {
        Range range[Access::kAtOnce];
#pragma unroll
        for (int u = 0; u < Access::kAtOnce; ++u) range[u] = tile.range(u, whole);
        return fast(sample, range);
      }
    }
#pragma unroll 1
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const auto share = [&](int64_t sample, const Range& range) {
        const Range one[1] = {range};
        slow(sample, one, Access::kMovesWhole && range.holds(Access::V));
      };
      const Range range = tile.range(u, whole);
      if (each) {
        for_each_share(sample_size, range, share);
      } else if (!range.empty()) {
        share(0, range);
      }
    }
  });
}

// ---- a stage -----------------------------------------------------------------------------------

struct StageArgs {
  SampleRows coefficients;
  Divider sample_size;
  int64_t numel;
};

template <class State, class Slope>
struct StageTensors {
  State out, x;
  Slopes<Slope> slopes;
};

template <bool kHeld, int kPacks, class State, class Slope>
__device__ __forceinline__ void stage_packs(const double* coefficients,
                                            const StageTensors<State, Slope>& t,
                                            const Range (&range)[kPacks], bool whole) {
  using T = typename State::Real;
  const Row<T, kHeld> row(coefficients, t.slopes.count);
  T sum[kPacks][State::V];
  typename State::Raw raw[kPacks];
#pragma unroll
  for (int u = 0; u < kPacks; ++u) raw[u] = t.x.load(range[u], whole);
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    State::unpack(raw[u], sum[u]);
#pragma unroll
    for (int v = 0; v < State::V; ++v) sum[u][v] = rk_first(row.at(0), sum[u][v]);
  }
  add_slopes(t.slopes, row, range, whole, sum);
#pragma unroll
  for (int u = 0; u < kPacks; ++u) t.out.store(range[u], whole, sum[u]);
}

template <class State, class Slope>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<State>)
    stage(const __grid_constant__ StageArgs args,
          const __grid_constant__ StageTensors<State, Slope> t) {
  const Tile<State> tile(0, args.numel);
  by_sample(
      tile, args.sample_size, args.coefficients.columns != 0,
      [&](int64_t sample, const Range(&range)[State::kAtOnce]) {
        stage_packs<true>(args.coefficients.of(sample), t, range, true);
      },
      [&](int64_t sample, const Range(&range)[1], bool whole) {
        stage_packs<false>(args.coefficients.of(sample), t, range, whole);
      });
}

// ---- the advance -------------------------------------------------------------------------------

struct AdvanceArgs {
  const bool* accepted;
  SampleRows coefficients;
  bool makes_out;
  Divider sample_size;
  int64_t numel;
};

template <class State, class Slope>
struct AdvanceTensors {
  State x, fresh, out;
  Slope first, last;
};

template <int kPacks, class State, class Slope>
__device__ __forceinline__ void advance_packs(const AdvanceArgs& args, int64_t sample,
                                              const AdvanceTensors<State, Slope>& t,
                                              const Range (&range)[kPacks], bool whole) {
  using T = typename State::Real;
  constexpr int V = State::V;
  const bool accepted = args.accepted[sample];
  if (!accepted && !args.makes_out) return;
  typename State::Raw raw_x[kPacks];
  typename Slope::Raw raw_first[kPacks];
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    raw_x[u] = accepted ? t.fresh.load(range[u], whole) : t.x.load(range[u], whole);
    raw_first[u] = accepted ? t.last.load(range[u], whole) : t.first.load(range[u], whole);
  }
  T c[2] = {};
  if (args.makes_out) {
    const double* row = args.coefficients.of(sample);
    c[0] = static_cast<T>(row[0]), c[1] = static_cast<T>(row[1]);
  }
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    T x[V], first[V];
    State::unpack(raw_x[u], x);
    Slope::unpack(raw_first[u], first);
    if (accepted) {
      t.x.store(range[u], whole, x);
      t.first.store(range[u], whole, first);
    }
    if (args.makes_out) {
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = rk_add(rk_first(c[0], x[v]), c[1], first[v]);
      t.out.store(range[u], whole, x);
    }
  }
}

template <class State, class Slope>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<State>)
    advance(const __grid_constant__ AdvanceArgs args,
            const __grid_constant__ AdvanceTensors<State, Slope> t) {
  const Tile<State> tile(0, args.numel);
  by_sample(
      tile, args.sample_size, true,
      [&](int64_t sample, const Range(&range)[State::kAtOnce]) {
        advance_packs(args, sample, t, range, true);
      },
      [&](int64_t sample, const Range(&range)[1], bool whole) {
        advance_packs(args, sample, t, range, whole);
      });
}

// ---- the error: sums over samples --------------------------------------------------------------

template <class State, class Slope>
struct ErrorSum {
  using Real = typename State::Real;
  static constexpr int V = State::V, kAtOnce = 1, kSums = 1;
  static constexpr int kBlocks = State::kMovesWhole && sizeof(Real) == 4 ? 8 : 4;
  struct Inputs {};
  struct Row {
    FASTSCORE_ISA::Row<Real, State::kMovesWhole> coefficients;
    Real atol, rtol;
  };

  State x, fresh;
  Slopes<Slope> slopes;
  SampleRows coefficients, tolerances;
  double* norms;
  int64_t size;  // of a sample

  __host__ __device__ __forceinline__ int64_t jobs() const { return 1; }
  // Packs are cut from a sample's first element on, so that its sum is its own.
  __device__ __forceinline__ int64_t origin(int64_t sample) const { return -sample * size; }

  __device__ __forceinline__ Row row(int64_t sample, int64_t) const {
    const double* own = tolerances.of(sample);
    return {{coefficients.of(sample), slopes.count},
            static_cast<Real>(own[0]),
            static_cast<Real>(own[1])};
  }

  // Which slopes to load only the row tells.
  __device__ __forceinline__ Inputs load(int64_t, const Range&, bool) const { return {}; }

  __device__ __forceinline__ void add(const Row& row, int64_t, const Inputs&, const Range& range,
                                      bool whole, Real (&sums)[1]) const {
    const Range one[1] = {range};
    const auto raw_x = x.load(range, whole), raw_fresh = fresh.load(range, whole);
    Real before[V], after[V], error[1][V];
    State::unpack(raw_x, before);
#pragma unroll
    for (int v = 0; v < V; ++v) error[0][v] = rk_first(row.coefficients.at(0), before[v]);
    add_slopes(slopes, row.coefficients, one, whole, error);
    State::unpack(raw_fresh, after);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Real r = rk_ratio(error[0][v], before[v], after[v], row.atol, row.rtol);
      if (whole || (v >= range.low && v < range.high)) sums[0] = fma(r, r, sums[0]);
    }
  }

  __device__ __forceinline__ void finish(int64_t sample, int64_t, const double (&sums)[1]) const {
    norms[sample] = rk_norm(sums[0], size);
  }
};

// ---- choosing the kernel -----------------------------------------------------------------------

// What the ops are given, as kernels see it. Views that an op does not use have no data.
struct Views {
  View x, fresh, out, first, last;
  View slopes[kMostSlopes];
  int count = 0;

  Views(const char* op, const Tensor& state, const std::vector<Tensor>& given)
      : x(read_view(op, "x", state)), count(static_cast<int>(given.size())) {
    for (int j = 0; j < count; ++j) slopes[j] = read_view(op, "slopes", given[j]);
  }

  bool packable(int v) const {
    const auto fits = [&](const View& view) {
      return view.data == nullptr || FASTSCORE_ISA::packable(view, v);
    };
    bool all = fits(x) && fits(fresh) && fits(out) && fits(first) && fits(last);
    for (int j = 0; j < count; ++j) all = all && fits(slopes[j]);
    return all;
  }
};

template <class MakeSlope>
auto slopes_of(const Views& views, const MakeSlope& slope) {
  Slopes<decltype(slope(views.slopes[0]))> slopes = {};
  for (int j = 0; j < views.count; ++j) slopes.of[j] = slope(views.slopes[j]);
  slopes.count = views.count;
  return slopes;
}

// Calls body(state, slope), which make what reaches a view's elements: a state's, and a slope's of
// dtype `narrow`. Packs of V (of float) or kDoubles elements, kPacks in flight, move whole if
// `whole` says so of packs of a number of elements.
template <int kDoubles, int kPacks, class Whole, class Body>
void with_access(const Views& views, DType narrow, const Whole& whole, const Body& body) {
  const auto run = [&](auto stored, auto stored_slope) {
    using S = decltype(stored);
    using R = decltype(stored_slope);
    constexpr int V = sizeof(S) == sizeof(double) ? kDoubles : kPack<S>;
    if (whole(V) && views.packable(V)) {
      body([](const View& view) { return packed<S, V, kPacks>(view); },
           [](const View& view) { return packed<R, V, kPacks>(view); });
    } else {
      const auto any = [](const View& view) { return Spread<Compute<S>, V>::of(view); };
      body(any, any);
    }
  };
  if (views.x.dtype == DType::kFloat64) return run(double(), double());
  if (narrow == DType::kBFloat16) return run(float(), BFloat16());
  if (narrow == DType::kFloat16) return run(float(), Float16());
  run(float(), float());
}

// Packs of a thread: a tile of float32 is 3 x 1024 elements, as in the family `dsm`. Two doubles
// are 16 bytes.
constexpr int kTilePacks = 3, kTileDoubles = 2;

constexpr auto any_size = [](int) { return true; };

// ---- ops ---------------------------------------------------------------------------------------

void run_stage(const char* op, const Tensor& out, const Tensor& x,
               const std::vector<Tensor>& slopes, const Tensor& coefficients) {
  if (x.numel() == 0) return;
  const Launcher launch(x);
  const Tensor dense = dense_rows(coefficients);
  const StageArgs args = {SampleRows::of(dense), Divider::by(sample_size(x)), x.numel()};
  Views views(op, x, slopes);
  views.out = make_view(op, "out", out);
  with_access<kTileDoubles, kTilePacks>(
      views, views.slopes[0].dtype, any_size, [&](const auto& state, const auto& slope) {
        using State = decltype(state(views.x));
        using Slope = decltype(slope(views.x));
        const StageTensors<State, Slope> t = {state(views.out), state(views.x),
                                              slopes_of(views, slope)};
        launch.blocks(tile_count<State>(0, args.numel), &stage<State, Slope>, args, t);
      });
}

Tensor rk_stage(const Tensor& x, const std::vector<Tensor>& slopes, const Tensor& coefficients) {
  check_combination("rk_stage", x, slopes, coefficients);
  Tensor out = new_like(x);
  run_stage("rk_stage", out, x, slopes, coefficients);
  return out;
}

void rk_stage_(Tensor out, const Tensor& x, const std::vector<Tensor>& slopes,
               const Tensor& coefficients) {
  const char* op = "rk_stage";  // the name its users know
  check_combination(op, x, slopes, coefficients);
  check_stage_out(op, out, x, slopes);
  run_stage(op, out, x, slopes, coefficients);
}

Tensor rk_error(const Tensor& x, const Tensor& fresh, const std::vector<Tensor>& slopes,
                const Tensor& coefficients, const Tensor& tolerances) {
  const char* op = "rk_error";
  check_error(op, x, fresh, slopes, coefficients, tolerances);
  const Launcher launch(x);
  const int64_t batch = batch_size(x), size = sample_size(x);
  Tensor norms = new_tensor({batch}, ScalarType::Double, x);
  double* norm = norms.mutable_data_ptr<double>();
  if (batch == 0) return norms;
  const Tensor dense = dense_rows(coefficients);
  const Tensor scales = dense_rows(tolerances);
  Views views(op, x, slopes);
  views.fresh = read_view(op, "new", fresh);
  with_access<kPack<double>, 1>(
      views, views.slopes[0].dtype, [&](int v) { return size % v == 0; },
      [&](const auto& state, const auto& slope) {
        using State = decltype(state(views.x));
        using Slope = decltype(slope(views.x));
        const ErrorSum<State, Slope> sum = {state(views.x),
                                            state(views.fresh),
                                            slopes_of(views, slope),
                                            SampleRows::of(dense),
                                            SampleRows::of(scales),
                                            norm,
                                            size};
        sum_rows(launch, sum, {batch, size, 1}, norms);
      });
  return norms;
}

void rk_advance_(Tensor x, Tensor first, const Tensor& fresh, const Tensor& last,
                 const Tensor& accepted, std::optional<Tensor> out,
                 std::optional<Tensor> coefficients) {
  const char* op = "rk_advance_";
  check_advance(op, x, first, fresh, last, accepted, out, coefficients);
  if (x.numel() == 0) return;
  const Launcher launch(x);
  const Tensor flags = dense_rows(accepted);
  std::optional<Tensor> dense;
  AdvanceArgs args = {
      flags.const_data_ptr<bool>(), {}, out.has_value(), Divider::by(sample_size(x)), x.numel()};
  Views views(op, x, {});
  views.x = make_view(op, "x", x);
  views.first = make_view(op, "first", first);
  views.fresh = read_view(op, "new", fresh);
  views.last = read_view(op, "last", last);
  if (out) {
    dense = dense_rows(*coefficients);
    args.coefficients = SampleRows::of(*dense);
    views.out = make_view(op, "out", *out);
  }
  with_access<kTileDoubles, kTilePacks>(
      views, views.first.dtype, any_size, [&](const auto& state, const auto& slope) {
        using State = decltype(state(views.x));
        using Slope = decltype(slope(views.x));
        const AdvanceTensors<State, Slope> t = {state(views.x), state(views.fresh),
                                                out ? state(views.out) : State{},
                                                slope(views.first), slope(views.last)};
        launch.blocks(tile_count<State>(0, args.numel), &advance<State, Slope>, args, t);
      });
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

FASTSCORE_CUDA_OPS(m) {
  using namespace fastscore::FASTSCORE_ISA;
  m.impl("rk_stage", TORCH_BOX(&rk_stage));
  m.impl("rk_stage_", TORCH_BOX(&rk_stage_));
  m.impl("rk_error", TORCH_BOX(&rk_error));
  m.impl("rk_advance_", TORCH_BOX(&rk_advance_));
}
