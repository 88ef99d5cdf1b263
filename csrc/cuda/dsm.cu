// CUDA side of the family `dsm`.
#include <algorithm>
#include <limits>

#include "core/dsm.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/noisy_tiles.cuh"
#include "cuda/rows.cuh"
#include "dsm_checks.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// Each sample's row of a table. Whether a label is in range only the device knows, and it can raise
// no error: such a sample's row is NaN.
template <int kColumns>
struct LabelledTable {
  const double* table;
  const int64_t* labels;
  int64_t levels;

  __device__ __forceinline__ double at(int64_t sample, int column) const {
    const int64_t label = labels[sample];
    return label >= 0 && label < levels ? table[kColumns * label + column] : ::nan("");
  }

  static LabelledTable of(const Tensor& table, const Tensor& labels) {
    return {table.const_data_ptr<double>(), labels.const_data_ptr<int64_t>(), table.size(0)};
  }
};

// An element of an output, with that of x~ beside it.
template <class T>
struct Both {
  T output, noisy;
};

// What of an element is written: all of it, or the output of a pair.
template <class T>
__device__ __forceinline__ T& own(T& x) {
  return x;
}
template <class T>
__device__ __forceinline__ T& own(Both<T>& x) {
  return x.output;
}
template <class Out, class Value, int V>
__device__ __forceinline__ void store_own(const Out& out, const Range& range, bool whole,
                                          const Value (&x)[V]) {
  if constexpr (std::is_same_v<Value, typename Out::Real>) {
    out.store(range, whole, x);
  } else {
    typename Out::Real outputs[V];
#pragma unroll
    for (int j = 0; j < V; ++j) outputs[j] = x[j].output;
    out.store(range, whole, outputs);
  }
}

// How an output is reached together with x~: as one tensor whose elements are pairs.
template <class Output, class Noisy>
struct Beside {
  static constexpr int V = Output::V, kAtOnce = Output::kAtOnce;
  static constexpr bool kMovesWhole = Output::kMovesWhole;
  using Real = typename Output::Real;
  struct Raw {
    typename Output::Raw output;
    typename Noisy::Raw noisy;
  };

  Output output;
  Noisy noisy;

  __device__ __forceinline__ Raw load(const Range& r, bool whole) const {
    return {output.load(r, whole), noisy.load(r, whole)};
  }
  __device__ __forceinline__ static void unpack(const Raw& raw, Both<Real> (&x)[V]) {
    Real out[V], noisy[V];
    Output::unpack(raw.output, out);
    Noisy::unpack(raw.noisy, noisy);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = {out[j], noisy[j]};
  }
};

// What a kernel reads by In: an output alone, or an output and x~.
template <class In>
struct Reads {
  using Value = typename In::Real;
  using Output = In;
  static constexpr bool kNoisy = false;
};
template <class Out, class Noisy>
struct Reads<Beside<Out, Noisy>> {
  using Value = Both<typename Out::Real>;
  using Output = Out;
  static constexpr bool kNoisy = true;
};

__global__ void __launch_bounds__(kThreads)
    draw_labels(const NoiseSource source, const int64_t levels, int64_t* labels,
                const int64_t batch) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= batch) return;
  const OwnNoise own = source.of(i);
  labels[i] =
      uniform_index(own.key, static_cast<uint64_t>(own.origin + i), static_cast<uint32_t>(levels));
}

// ---- elementwise: out = rule(in, z) ----------------------------------------------------------

// Packs of a thread. A tile of float32 is 3 x 1024 elements: images of three channels and a
// multiple of 1024 pixels are whole tiles, each within one sample. Elsewhere more than two don't
// fit the registers.
template <class S, bool kEach>
constexpr int kMapPacks = sizeof(S) == 4 && !kEach ? 3 : 2;

template <class T>
struct Perturbation {
  LabelledTable<2> table;

  __device__ __forceinline__ PerturbRow<T> row(int64_t sample) const {
    return {static_cast<T>(table.at(sample, 0)), static_cast<T>(table.at(sample, 1))};
  }
  static __device__ __forceinline__ T apply(const PerturbRow<T>& row, T x, T z) {
    return perturbed(row, x, z);
  }
};

template <bool kNoisy>
using ResidualTable = LabelledTable<kResidualColumns<kNoisy>>;

template <class T, int kColumns>
__device__ __forceinline__ ResidualRow<T> residual_row(const LabelledTable<kColumns>& table,
                                                       int64_t sample) {
  return {static_cast<T>(table.at(sample, 0)), static_cast<T>(table.at(sample, 1)),
          static_cast<T>(table.at(sample, 2)),
          kColumns == 4 ? static_cast<T>(table.at(sample, 3)) : T(0)};
}

template <class T>
__device__ __forceinline__ T residual(const ResidualRow<T>& row, const Both<T>& x, T z) {
  return residual(row, x.output, x.noisy, z);
}

// What a residual is multiplied by to make its gradient.
template <class T>
__device__ __forceinline__ T residual_scale(const ResidualRow<T>& row, T upstream) {
  return upstream * row.w * row.p;
}

template <class T, bool kNoisy>
struct ResidualGradient {
  struct Row {
    ResidualRow<T> row;
    T scale;
  };

  ResidualTable<kNoisy> table;
  const void* grad;  // float, or double if is_double
  int64_t stride;
  bool is_double;

  static ResidualGradient of(const Tensor& table, const Tensor& labels, const Tensor& grad) {
    return {ResidualTable<kNoisy>::of(table, labels), grad.data_ptr(), grad.stride(0),
            grad.scalar_type() == ScalarType::Double};
  }

  __device__ __forceinline__ T upstream(int64_t sample) const {
    return is_double ? static_cast<T>(static_cast<const double*>(grad)[sample * stride])
                     : static_cast<T>(static_cast<const float*>(grad)[sample * stride]);
  }
  __device__ __forceinline__ Row row(int64_t sample) const {
    const ResidualRow<T> row = residual_row<T>(table, sample);
    return {row, residual_scale(row, upstream(sample))};
  }
  template <class Value>
  static __device__ __forceinline__ T apply(const Row& row, const Value& x, T z) {
    return row.scale * residual(row.row, x, z);
  }
};

struct Extent {
  int64_t numel;
  Divider sample_size;
};

Extent extent_of(const Tensor& x) { return {x.numel(), Divider::by(sample_size(x))}; }

Noise perturbation_noise(const Tensor& key, const Tensor& x, int64_t sample_offset,
                         const std::optional<Tensor>& samples) {
  return Noise(key, Stream::kPerturb, sample_offset, samples, sample_size(x));
}

template <bool kEach, class In, class Access, class Rule>
__device__ __forceinline__ void map_tile(const NoiseKey& key, const NoiseSource& noise,
                                         const Tile<Access>& tile, const In& in, const Access& out,
                                         const Rule& rule, const Divider& sample_size) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  const auto row_of = [&](int64_t sample) { return rule.row(sample); };
  tile.split_rows(sample_size, row_of, [&](auto whole, const auto& rows) {
    typename In::Raw raw[Access::kAtOnce];
    tile.load(in, whole, raw);
    for_each_noisy_pack<kPacksTogether<Access>, kEach>(
        key, noise, tile, whole, [&](int u, const Range& range, const float (&z)[V]) {
          typename Reads<In>::Value x[V];
          In::unpack(raw[u], x);
          rows.template each<V>(range, [&](int j, const auto& row) {
            own(x[j]) = Rule::apply(row, x[j], static_cast<T>(z[j]));
          });
          store_own(out, range, whole, x);
        });
  });
}

template <class Access, class Rule, bool kEach>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Access>)
    map(const NoiseSource noise, const __grid_constant__ Access in,
        const __grid_constant__ Access out, const __grid_constant__ Rule rule,
        const __grid_constant__ Extent extent) {
  const NoiseKey key = noise_key(noise);
  const Tile<Access> tile(noise.origin, extent.numel);
  map_tile<kEach>(key, noise, tile, in, out, rule, extent.sample_size);
}

template <class S, class Rule>
void map_as(const Launcher& launch, const Noise& all, const View& in, const View& out,
            const Rule& rule, const Extent& extent) {
  constexpr int V = kPack<S>;
  const NoiseSource& noise = all.source;
  all.split([&](auto each) {
    const auto run = [&](const auto& from, const auto& to) {
      using Access = std::decay_t<decltype(from)>;
      launch.blocks(tile_count<Access>(noise.origin, extent.numel), &map<Access, Rule, each()>,
                    noise, from, to, rule, extent);
    };
    if (noise.origin % V == 0 && packable(in, V) && packable(out, V)) {
      constexpr int kPacks = kMapPacks<S, each()>;
      run(packed<S, V, kPacks>(in), packed<S, V, kPacks>(out));
    } else {
      using Any = Spread<Compute<S>>;
      run(Any::of(in), Any::of(out));
    }
  });
}

// make_rule(T()) is the rule for compute type T.
template <class MakeRule>
void map_tensor(const Launcher& launch, const Noise& noise, const View& in, const View& out,
                const MakeRule& make_rule, const Extent& extent) {
  if (extent.numel == 0) return;
  with_storage(in.dtype, [&](auto stored) {
    using S = decltype(stored);
    map_as<S>(launch, noise, in, out, make_rule(Compute<S>()), extent);
  });
}

// ---- the residual's tensors ------------------------------------------------------------------

struct ResidualTensors {
  const Tensor &output, &table, &labels, &key;
  int64_t sample_offset;
  const std::optional<Tensor>&samples, &noisy;

  Noise noise() const { return perturbation_noise(key, output, sample_offset, samples); }
};

struct ResidualViews {
  View output;
  std::optional<View> noisy, grad_output;

  static ResidualViews of(const char* op, const ResidualTensors& t, const Tensor* grad_output) {
    ResidualViews v = {make_view(op, "output", t.output)};
    if (t.noisy) v.noisy = make_view(op, "noisy", *t.noisy);
    if (grad_output) v.grad_output = make_view(op, "grad_output", *grad_output);
    return v;
  }
};

// Calls run(from, to): how what a residual is made from is reached, and its gradient, whose place
// is null where it has no view. The output is stored as S; fits(V) says whether packs of V are cut
// where the noise is. kSpread is the V of a lone output that can't be moved in packs.
template <class S, int kSpread, class Fits, class Run>
void with_inputs(const ResidualViews& v, const Fits& fits, const Run& run) {
  using T = Compute<S>;
  const auto whole = [&](int packs) {
    return fits(packs) && packable(v.output, packs) && (!v.noisy || packable(*v.noisy, packs)) &&
           (!v.grad_output || packable(*v.grad_output, packs));
  };
  View to = v.grad_output.value_or(v.output);
  if (!v.grad_output) to.data = nullptr;
  if (!v.noisy) {
    if (whole(kPack<S>)) return run(packed<S>(v.output), packed<S>(to));
    using Any = Spread<T, kSpread>;
    return run(Any::of(v.output), Any::of(to));
  }
  constexpr int V = kPack<T>;  // of the wider one
  if (!whole(V)) {
    using Any = Spread<T, V>;
    return run(Beside<Any, Any>{Any::of(v.output), Any::of(*v.noisy)}, Any::of(to));
  }
  const auto beside = [&](auto stored) {
    using N = decltype(stored);
    using Pair = Beside<Packed<S, V>, Packed<N, V>>;
    run(Pair{packed<S, V>(v.output), packed<N, V>(*v.noisy)}, packed<S, V>(to));
  };
  if constexpr (sizeof(S) == 2) {
    if (v.noisy->dtype == DType::kFloat32) return beside(float());
  }
  beside(S());
}

// ---- the gradient, where it was made for another upstream gradient ---------------------------

// Whether the samples that elements [begin, end) are of have the expected upstream gradient. All
// threads of the block ask, and all get the answer.
template <class T, class Rule>
__device__ __forceinline__ bool as_expected(const Rule& rule, T expected,
                                            const Divider& sample_size, int64_t begin,
                                            int64_t end) {
  const int64_t first = sample_size(begin);
  const int64_t last = rule.stride == 0 ? first : sample_size(end - 1);  // All share one number.
  bool differs = false;
  for (int64_t sample = first + threadIdx.x; sample <= last; sample += kThreads) {
    differs |= rule.upstream(sample) != expected;
  }
  return !__syncthreads_or(differs);
}

// Pairs of float take too many registers unless they are counted. 0: as the compiler thinks best.
template <class In>
constexpr int kRegradBlocks = Reads<In>::kNoisy && sizeof(typename In::Real) == 4 ? 4 : 0;

// A block has `share` tiles in a row: where all is as expected it learns so at once.
template <class In, bool kEach>
__global__ void __launch_bounds__(kThreads, kRegradBlocks<In>)
    regrad(const NoiseSource noise, const __grid_constant__ In in,
           const __grid_constant__ typename Reads<In>::Output grad_output,
           const __grid_constant__ ResidualGradient<typename In::Real, Reads<In>::kNoisy> rule,
           const __grid_constant__ Extent extent, const typename In::Real expected,
           const int64_t tiles, const int64_t share) {
  using Access = typename Reads<In>::Output;
  const Divider& size = extent.sample_size;
  const int64_t first = blockIdx.x * share;
  const Tile<Access> whole(noise.origin, extent.numel, first);
  if (as_expected(rule, expected, size, whole.begin(), whole.end(share))) return;
  const NoiseKey key = noise_key(noise);
  for (int64_t t = 0; t < share && first + t < tiles; ++t) {
    const Tile<Access> tile(noise.origin, extent.numel, first + t);
    if (as_expected(rule, expected, size, tile.begin(), tile.end(1))) continue;
    map_tile<kEach>(key, noise, tile, in, grad_output, rule, size);
  }
}

template <class S>
void regrad_as(const Launcher& launch, const Noise& all, const ResidualTensors& t,
               const ResidualViews& v, const Tensor& grad, double expected) {
  const NoiseSource& noise = all.source;
  const Extent extent = extent_of(t.output);
  const auto fits = [&](int packs) { return noise.origin % packs == 0; };
  with_inputs<S, 4>(v, fits, [&](const auto& from, const auto& to) {
    using In = std::decay_t<decltype(from)>;
    using T = typename In::Real;
    const auto rule = ResidualGradient<T, Reads<In>::kNoisy>::of(t.table, t.labels, grad);
    const int64_t tiles = tile_count<In>(noise.origin, extent.numel);
    const int64_t share = ceil_div(tiles, launch.few_blocks());
    all.split([&](auto each) {
      launch.blocks(ceil_div(tiles, share), &regrad<In, each()>, noise, from, to, rule, extent,
                    static_cast<T>(expected), tiles, share);
    });
  });
}

// ---- the loss: sums over samples -------------------------------------------------------------

template <class In>
struct ResidualSum {
  using Real = typename In::Real;
  static constexpr bool kNoisy = Reads<In>::kNoisy;
  // Pairs of packs need more registers.
  static constexpr int V = In::V, kAtOnce = std::min(kRowPacks<In>, kNoisy ? 2 : 3), kSums = 1;
  using Inputs = typename In::Raw;
  struct Row {
    ResidualRow<Real> row;
    OwnNoise noise;
  };

  NoiseSource noise;
  In in;
  ResidualTable<kNoisy> table;
  Real* loss;

  __host__ __device__ __forceinline__ int64_t jobs() const { return 1; }
  __device__ __forceinline__ int64_t origin(int64_t sample) const {
    return noise.origin_of(sample);
  }

  __device__ __forceinline__ Row row(int64_t sample, int64_t) const {
    ResidualRow<Real> row = residual_row<Real>(table, sample);
    row.w = 0;  // finish() asks for it in float64
    return {row, noise.of(sample)};
  }

  __device__ __forceinline__ Inputs load(int64_t, const Range& range, bool whole) const {
    return in.load(range, whole);
  }

  __device__ __forceinline__ void residuals(const Row& row, const Inputs& inputs,
                                            const Range& range, Real (&r)[V]) const {
    float z[V];
    typename Reads<In>::Value x[V];
    In::unpack(inputs, x);
    normals(row.noise.key, row.noise.origin + range.i, z);
#pragma unroll
    for (int j = 0; j < V; ++j) r[j] = residual(row.row, x[j], static_cast<Real>(z[j]));
  }

  static __device__ __forceinline__ void add_squares(const Real (&r)[V], const Range& range,
                                                     bool whole, Real& sum) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (whole || (j >= range.low && j < range.high)) sum = fma(r[j], r[j], sum);
    }
  }

  __device__ __forceinline__ void add(const Row& row, int64_t, const Inputs& inputs,
                                      const Range& range, bool whole, Real (&sums)[1]) const {
    Real r[V];
    residuals(row, inputs, range, r);
    add_squares(r, range, whole, sums[0]);
  }

  __device__ __forceinline__ void finish(int64_t sample, int64_t, const double (&sums)[1]) const {
    loss[sample] = static_cast<Real>(0.5 * table.at(sample, 2) * sums[0]);
  }
};

// The same sum, and on the way the gradient for an upstream gradient of `expected`. Where x~ stands
// beside the output, this is also what runs without a gradient, which then goes to null.
template <class In>
struct ResidualSumWithGrad : ResidualSum<In> {
  using Sum = ResidualSum<In>;
  using typename Sum::Inputs, typename Sum::Real;
  static constexpr int V = In::V;
  struct Row {
    typename Sum::Row row;
    Real scale;
  };

  typename Reads<In>::Output grad_output;
  Real expected;

  __device__ __forceinline__ Row row(int64_t sample, int64_t job) const {
    const ResidualRow<Real> row = residual_row<Real>(this->table, sample);
    return {Sum::row(sample, job), residual_scale(row, expected)};
  }

  __device__ __forceinline__ void add(const Row& row, int64_t, const Inputs& inputs,
                                      const Range& range, bool whole, Real (&sums)[1]) const {
    Real r[V], grad[V];
    this->residuals(row.row, inputs, range, r);
    Sum::add_squares(r, range, whole, sums[0]);
    if (Sum::kNoisy && !grad_output.data) return;
#pragma unroll
    for (int j = 0; j < V; ++j) grad[j] = row.scale * r[j];
    grad_output.store(range, whole, grad);
  }
};

// Makes the sums of all samples, and the gradient for `expected` where it has a view.
template <class S>
void residual_as(const Launcher& launch, const NoiseSource& noise, const ResidualTensors& t,
                 const ResidualViews& v, Tensor& loss, double expected) {
  using T = Compute<S>;
  const RowShape shape = {batch_size(t.output), sample_size(t.output), 1};
  const auto fits = [&](int packs) { return rows_packable(noise, packs); };
  with_inputs<S, kPack<S>>(v, fits, [&](const auto& from, const auto& to) {
    using In = std::decay_t<decltype(from)>;
    constexpr bool kNoisy = Reads<In>::kNoisy;
    const ResidualSum<In> sum = {noise, from, ResidualTable<kNoisy>::of(t.table, t.labels),
                                 loss.mutable_data_ptr<T>()};
    if constexpr (!kNoisy) {
      if (!v.grad_output) return sum_rows(launch, sum, shape, loss);
    }
    const ResidualSumWithGrad<In> both = {sum, to, static_cast<T>(expected)};
    sum_rows(launch, both, shape, loss);
  });
}

// ---- ops -------------------------------------------------------------------------------------

Tensor new_labels(const Launcher& launch, const Tensor& x, const Tensor& key, int64_t levels,
                  int64_t sample_offset, const std::optional<Tensor>& samples) {
  Tensor labels = new_tensor({batch_size(x)}, ScalarType::Long, x);
  const Noise noise(key, Stream::kLabel, sample_offset, samples, 1);
  launch.blocks(ceil_div(batch_size(x), kThreads), &draw_labels, noise.source, levels,
                labels.mutable_data_ptr<int64_t>(), batch_size(x));
  return labels;
}

std::tuple<Tensor, Tensor> perturb(const Tensor& x, const Tensor& table, const Tensor& key,
                                   std::optional<Tensor> given, int64_t sample_offset,
                                   std::optional<Tensor> samples) {
  const char* op = "perturb";
  check_perturb(op, x, table, key, given, sample_offset, samples);
  const Launcher launch(x);
  Tensor labels = given ? torch::stable::clone(*given)
                        : new_labels(launch, x, key, table.size(0), sample_offset, samples);
  Tensor out = new_like(x);
  const auto rows = LabelledTable<2>::of(table, labels);
  map_tensor(
      launch, perturbation_noise(key, x, sample_offset, samples), make_view(op, "x", x),
      make_view(op, "out", out), [&](auto type) { return Perturbation<decltype(type)>{rows}; },
      extent_of(x));
  return {out, labels};
}

void check(const char* op, const ResidualTensors& t) {
  check_residual(op, t.output, t.table, t.labels, t.key, t.sample_offset, t.samples, t.noisy);
}

// The loss of each sample, and the gradient for `expected` where it has a tensor.
Tensor residual_loss(const char* op, const ResidualTensors& t, const Tensor* grad_output,
                     double expected) {
  const Launcher launch(t.output);
  Tensor loss = new_tensor({batch_size(t.output)}, sum_dtype(t.output.scalar_type()), t.output);
  const Noise noise = t.noise();
  const ResidualViews views = ResidualViews::of(op, t, grad_output);
  with_storage(views.output.dtype, [&](auto stored) {
    residual_as<decltype(stored)>(launch, noise.source, t, views, loss, expected);
  });
  return loss;
}

void mend(const char* op, const ResidualTensors& t, const Tensor& grad, const Tensor& grad_output,
          double expected) {
  if (t.output.numel() == 0) return;
  const Launcher launch(t.output);
  const ResidualViews views = ResidualViews::of(op, t, &grad_output);
  with_storage(views.output.dtype, [&](auto stored) {
    regrad_as<decltype(stored)>(launch, t.noise(), t, views, grad, expected);
  });
}

Tensor dsm_residual(const Tensor& output, const Tensor& table, const Tensor& labels,
                    const Tensor& key, int64_t sample_offset, std::optional<Tensor> samples,
                    std::optional<Tensor> noisy) {
  const char* op = "dsm_residual";
  const ResidualTensors t = {output, table, labels, key, sample_offset, samples, noisy};
  check(op, t);
  return residual_loss(op, t, nullptr, 0);
}

std::tuple<Tensor, Tensor> dsm_residual_with_grad(const Tensor& output, const Tensor& table,
                                                  const Tensor& labels, const Tensor& key,
                                                  int64_t sample_offset, double expected,
                                                  std::optional<Tensor> samples,
                                                  std::optional<Tensor> noisy) {
  const char* op = "dsm_residual_with_grad";
  const ResidualTensors t = {output, table, labels, key, sample_offset, samples, noisy};
  check(op, t);
  Tensor grad_output = new_like(output);
  return {residual_loss(op, t, &grad_output, expected), grad_output};
}

Tensor dsm_residual_backward(const Tensor& grad, const Tensor& output, const Tensor& table,
                             const Tensor& labels, const Tensor& key, int64_t sample_offset,
                             std::optional<Tensor> samples, std::optional<Tensor> noisy) {
  const char* op = "dsm_residual_backward";
  const ResidualTensors t = {output, table, labels, key, sample_offset, samples, noisy};
  check(op, t);
  check_residual_grad(op, grad, output);
  Tensor grad_output = new_like(output);
  if (noisy) {  // Nothing is as expected: all is made.
    mend(op, t, grad, grad_output, std::numeric_limits<double>::quiet_NaN());
    return grad_output;
  }
  const Launcher launch(output);
  map_tensor(
      launch, t.noise(), make_view(op, "output", output), make_view(op, "grad_output", grad_output),
      [&](auto type) { return ResidualGradient<decltype(type), false>::of(table, labels, grad); },
      extent_of(output));
  return grad_output;
}

void dsm_residual_regrad_(Tensor grad_output, const Tensor& grad, double expected,
                          const Tensor& output, const Tensor& table, const Tensor& labels,
                          const Tensor& key, int64_t sample_offset, std::optional<Tensor> samples,
                          std::optional<Tensor> noisy) {
  const char* op = "dsm_residual_regrad_";
  const ResidualTensors t = {output, table, labels, key, sample_offset, samples, noisy};
  check(op, t);
  check_residual_grad(op, grad, output);
  check_residual_regrad(op, grad_output, output);
  mend(op, t, grad, grad_output, expected);
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

FASTSCORE_CUDA_OPS(m) {
  using namespace fastscore::FASTSCORE_ISA;
  m.impl("perturb", TORCH_BOX(&perturb));
  m.impl("dsm_residual", TORCH_BOX(&dsm_residual));
  m.impl("dsm_residual_backward", TORCH_BOX(&dsm_residual_backward));
  m.impl("dsm_residual_with_grad", TORCH_BOX(&dsm_residual_with_grad));
  m.impl("dsm_residual_regrad_", TORCH_BOX(&dsm_residual_regrad_));
}
