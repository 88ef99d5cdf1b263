// CUDA side of the family `dsm`.
#include "core/dsm.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/noise.cuh"
#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"
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

__global__ void __launch_bounds__(kThreads)
    draw_labels(const NoiseSource source, const int64_t levels, int64_t* labels,
                const int64_t batch) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= batch) return;
  labels[i] = uniform_index(noise_key(source), static_cast<uint64_t>(source.origin + i),
                            static_cast<uint32_t>(levels));
}

// ---- elementwise: out = rule(in, z) ----------------------------------------------------------

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

template <class T>
struct ResidualGradient {
  struct Row {
    ResidualRow<T> row;
    T scale;
  };

  LabelledTable<3> table;
  const void* grad;  // float, or double if is_double
  int64_t stride;
  bool is_double;

  __device__ __forceinline__ Row row(int64_t sample) const {
    const ResidualRow<T> row = {static_cast<T>(table.at(sample, 0)),
                                static_cast<T>(table.at(sample, 1)),
                                static_cast<T>(table.at(sample, 2))};
    const T upstream = is_double ? static_cast<T>(static_cast<const double*>(grad)[sample * stride])
                                 : static_cast<T>(static_cast<const float*>(grad)[sample * stride]);
    return {row, upstream * row.w * row.p};
  }
  static __device__ __forceinline__ T apply(const Row& row, T out, T z) {
    return row.scale * residual(row.row, out, z);
  }
};

struct Extent {
  int64_t numel;
  Divider sample_size;
};

template <class Access, class Rule>
__global__ void __launch_bounds__(kThreads)
    map(const NoiseSource noise, const __grid_constant__ Access in,
        const __grid_constant__ Access out, const __grid_constant__ Rule rule,
        const __grid_constant__ Extent extent) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  const NoiseKey key = noise_key(noise);
  for (Tiles<Access> tile(noise.origin, extent.numel); tile.inside(); tile.next()) {
    typename Access::Raw raw[Access::kAtOnce];
    tile.load(in, raw);
#pragma unroll
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u);
      if (!tile.has(range)) continue;
      T x[V];
      float z[V];
      Access::unpack(raw[u], x);
      normals(key, noise.origin + range.i, z);
      for_each_sample<V>(
          extent.sample_size, range, [&](int64_t sample) { return rule.row(sample); },
          [&](int j, const auto& row) { x[j] = Rule::apply(row, x[j], static_cast<T>(z[j])); });
      out.store(range, tile.whole(), x);
    }
  }
}

template <class S, template <class> class Rule>
void map_as(const Launcher& launch, const NoiseSource& noise, const View& in, const View& out,
            const Rule<Compute<S>>& rule, const Extent& extent) {
  constexpr int V = kPack<S>;
  const auto run = [&](const auto& from, const auto& to) {
    using Access = std::decay_t<decltype(from)>;
    launch.tiles(tile_count<Access>(noise.origin, extent.numel), &map<Access, Rule<Compute<S>>>,
                 noise, from, to, rule, extent);
  };
  if (noise.origin % V == 0 && packable(in, V) && packable(out, V)) {
    run(packed<S>(in), packed<S>(out));
  } else {
    using Any = Spread<Compute<S>>;
    run(Any::of(in), Any::of(out));
  }
}

// make_rule(T()) is the rule for compute type T.
template <template <class> class Rule, class MakeRule>
void map_tensor(const Launcher& launch, const NoiseSource& noise, const View& in, const View& out,
                const MakeRule& make_rule, const Extent& extent) {
  if (extent.numel == 0) return;
  switch (in.dtype) {
    case DType::kFloat64:
      return map_as<double, Rule>(launch, noise, in, out, make_rule(double()), extent);
    case DType::kBFloat16:
      return map_as<BFloat16, Rule>(launch, noise, in, out, make_rule(float()), extent);
    case DType::kFloat16:
      return map_as<Float16, Rule>(launch, noise, in, out, make_rule(float()), extent);
    default:
      return map_as<float, Rule>(launch, noise, in, out, make_rule(float()), extent);
  }
}

// ---- the loss: sums over samples -------------------------------------------------------------

template <class Access>
struct ResidualSum {
  using Real = typename Access::Real;
  static constexpr int V = Access::V, kAtOnce = Access::kAtOnce, kSums = 1;
  using Inputs = typename Access::Raw;
  struct Row {
    ResidualRow<Real> row;
    NoiseKey key;
  };

  NoiseSource noise;
  Access output;
  LabelledTable<3> table;
  Real* loss;

  __device__ __forceinline__ int64_t jobs() const { return 1; }

  __device__ __forceinline__ Row row(int64_t sample, int64_t) const {
    return {
        {static_cast<Real>(table.at(sample, 0)), static_cast<Real>(table.at(sample, 1)), Real(0)},
        noise_key(noise)};
  }

  __device__ __forceinline__ Inputs load(int64_t, const Range& range, bool whole) const {
    return output.load(range, whole);
  }

  __device__ __forceinline__ void add(const Row& row, int64_t, const Inputs& inputs,
                                      const Range& range, bool whole, Real (&sums)[1]) const {
    Real out[V];
    float z[V];
    Access::unpack(inputs, out);
    normals(row.key, noise.origin + range.i, z);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Real r = residual(row.row, out[j], static_cast<Real>(z[j]));
      if (whole || (j >= range.low && j < range.high)) sums[0] = fma(r, r, sums[0]);
    }
  }

  __device__ __forceinline__ void finish(int64_t sample, int64_t, const double (&sums)[1]) const {
    loss[sample] = static_cast<Real>(0.5 * table.at(sample, 2) * sums[0]);
  }
};

template <class S>
void residual_as(const Launcher& launch, const NoiseSource& noise, const View& output,
                 const LabelledTable<3>& table, const RowShape& shape, Tensor& loss) {
  using T = Compute<S>;
  constexpr int V = kPack<S>;
  T* losses = loss.mutable_data_ptr<T>();
  const auto run = [&](const auto& access) {
    using Access = std::decay_t<decltype(access)>;
    sum_rows(launch, ResidualSum<Access>{noise, access, table, losses}, shape, loss);
  };
  if (noise.origin % V == 0 && packable(output, V)) {
    run(packed<S>(output));
  } else {
    run(Spread<T, V>::of(output));
  }
}

// ---- ops -------------------------------------------------------------------------------------

NoiseSource perturbation_noise(const Tensor& key, const Tensor& x, int64_t sample_offset) {
  return {key.const_data_ptr<int64_t>(), Stream::kPerturb, sample_offset * sample_size(x)};
}

Extent extent_of(const Tensor& x) { return {x.numel(), Divider::by(sample_size(x))}; }

Tensor new_labels(const Launcher& launch, const Tensor& x, const Tensor& key, int64_t levels,
                  int64_t sample_offset) {
  Tensor labels = new_tensor({batch_size(x)}, ScalarType::Long, x);
  const NoiseSource source = {key.const_data_ptr<int64_t>(), Stream::kLabel, sample_offset};
  launch.blocks(ceil_div(batch_size(x), kThreads), &draw_labels, source, levels,
                labels.mutable_data_ptr<int64_t>(), batch_size(x));
  return labels;
}

std::tuple<Tensor, Tensor> perturb(const Tensor& x, const Tensor& table, const Tensor& key,
                                   std::optional<Tensor> given, int64_t sample_offset) {
  const char* op = "perturb";
  check_perturb(op, x, table, key, given, sample_offset);
  const Launcher launch(x);
  Tensor labels = given ? torch::stable::clone(*given)
                        : new_labels(launch, x, key, table.size(0), sample_offset);
  Tensor out = new_like(x);
  const auto rows = LabelledTable<2>::of(table, labels);
  map_tensor<Perturbation>(
      launch, perturbation_noise(key, x, sample_offset), make_view(op, "x", x),
      make_view(op, "out", out), [&](auto type) { return Perturbation<decltype(type)>{rows}; },
      extent_of(x));
  return {out, labels};
}

Tensor dsm_residual(const Tensor& output, const Tensor& table, const Tensor& labels,
                    const Tensor& key, int64_t sample_offset) {
  const char* op = "dsm_residual";
  check_residual(op, output, table, labels, key, sample_offset);
  const Launcher launch(output);
  Tensor loss = new_tensor({batch_size(output)}, sum_dtype(output.scalar_type()), output);
  const NoiseSource noise = perturbation_noise(key, output, sample_offset);
  const View view = make_view(op, "output", output);
  const auto rows = LabelledTable<3>::of(table, labels);
  const RowShape shape = {batch_size(output), sample_size(output), noise.origin, 1};
  switch (view.dtype) {
    case DType::kFloat64:
      residual_as<double>(launch, noise, view, rows, shape, loss);
      break;
    case DType::kBFloat16:
      residual_as<BFloat16>(launch, noise, view, rows, shape, loss);
      break;
    case DType::kFloat16:
      residual_as<Float16>(launch, noise, view, rows, shape, loss);
      break;
    default:
      residual_as<float>(launch, noise, view, rows, shape, loss);
  }
  return loss;
}

Tensor dsm_residual_backward(const Tensor& grad, const Tensor& output, const Tensor& table,
                             const Tensor& labels, const Tensor& key, int64_t sample_offset) {
  const char* op = "dsm_residual_backward";
  check_residual(op, output, table, labels, key, sample_offset);
  check_residual_grad(op, grad, output);
  const Launcher launch(output);
  Tensor grad_output = new_like(output);
  const auto rows = LabelledTable<3>::of(table, labels);
  map_tensor<ResidualGradient>(
      launch, perturbation_noise(key, output, sample_offset), make_view(op, "output", output),
      make_view(op, "grad_output", grad_output),
      [&](auto type) {
        return ResidualGradient<decltype(type)>{rows, grad.data_ptr(), grad.stride(0),
                                                grad.scalar_type() == ScalarType::Double};
      },
      extent_of(output));
  return grad_output;
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

STABLE_TORCH_LIBRARY_IMPL(fastscore, CUDA, m) {
  using namespace fastscore::FASTSCORE_ISA;
  m.impl("perturb", TORCH_BOX(&perturb));
  m.impl("dsm_residual", TORCH_BOX(&dsm_residual));
  m.impl("dsm_residual_backward", TORCH_BOX(&dsm_residual_backward));
}
