// CUDA side of the family `dual`.
#include "core/dual.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/tiles.cuh"
#include "dual_ops.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// What to compute, and where each tangent's elements lie in a tensor of them.
struct DualShape {
  Activation activation;
  double a, b;                             // its parameters
  int64_t numel, tangents, first_tangent;  // numel: of h

  __device__ __forceinline__ Range at(int64_t m, const Range& range) const {
    return {first_tangent + m * numel + range.i, range.low, range.high};
  }
};

// Two of the activation's derivatives at a pack; whether the second one is not all zeros.
template <class Part, class T, int V>
__device__ __forceinline__ bool jets(const DualShape& shape, const T (&h)[V], T (&first)[V],
                                     T (&second)[V]) {
  bool curved = false;
  with_activation(shape.activation, shape.a, shape.b, [&](const auto& activation) {
    curved = activation.kCurved;
#pragma unroll
    for (int j = 0; j < V; ++j) Part()(activation(h[j]), first[j], second[j]);
  });
  return curved;
}

template <class Access>
struct ForwardTensors {
  Access h, hdot, value, out;
};

template <class Access>
struct BackwardTensors {
  Access h, hdot, grad_value, grad_out, grad_h, grad_hdot;
};

template <class Access>
__global__ void __launch_bounds__(kThreads)
    forward(const DualShape shape, const __grid_constant__ ForwardTensors<Access> t) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  const Tile<Access> tile(0, shape.numel);
#pragma unroll 1
  for (int u = 0; u < Access::kAtOnce; ++u) {
    const Range range = tile.range(u, Constant<false>());
    if (range.empty()) continue;
    const bool whole = Access::kMovesWhole && range.holds(V);
    auto raw = t.h.load(range, whole);
    T h[V], value[V], slope[V], in[V];
    Access::unpack(raw, h);
    if (shape.tangents > 0) raw = t.hdot.load(shape.at(0, range), whole);
    jets<ValueAndSlope>(shape, h, value, slope);
    t.value.store(range, whole, value);
    for (int64_t m = 0; m < shape.tangents; ++m) {
      Access::unpack(raw, in);
      if (m + 1 < shape.tangents) raw = t.hdot.load(shape.at(m + 1, range), whole);
#pragma unroll
      for (int j = 0; j < V; ++j) in[j] = slope[j] * in[j];
      t.out.store(shape.at(m, range), whole, in);
    }
  }
}

template <class Access>
__global__ void __launch_bounds__(kThreads)
    backward(const DualShape shape, const __grid_constant__ BackwardTensors<Access> t) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  const Tile<Access> tile(0, shape.numel);
#pragma unroll 1
  for (int u = 0; u < Access::kAtOnce; ++u) {
    const Range range = tile.range(u, Constant<false>());
    if (range.empty()) continue;
    const bool whole = Access::kMovesWhole && range.holds(V);
    const auto raw_h = t.h.load(range, whole);
    const auto raw_grad = t.grad_value.load(range, whole);
    T h[V], slope[V], curvature[V], grad[V], sum[V];
    Access::unpack(raw_h, h);
    const bool curved = jets<SlopeAndCurvature>(shape, h, slope, curvature);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = 0;
    for (int64_t m = 0; m < shape.tangents; ++m) {
      const Range at = shape.at(m, range);
      T upstream[V];
      Access::unpack(t.grad_out.load(at, whole), upstream);
      if (curved) {
        T tangent[V];
        Access::unpack(t.hdot.load(at, whole), tangent);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] = fma(upstream[j], tangent[j], sum[j]);
      }
#pragma unroll
      for (int j = 0; j < V; ++j) upstream[j] = upstream[j] * slope[j];
      t.grad_hdot.store(at, whole, upstream);
    }
    Access::unpack(raw_grad, grad);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      grad[j] = curved ? fma(grad[j], slope[j], curvature[j] * sum[j]) : grad[j] * slope[j];
    }
    t.grad_h.store(range, whole, grad);
  }
}

// The value and the slope themselves.
template <class Access>
struct SlopeTensors {
  Access h, value, slope;
};

template <class Access>
struct SlopeBackwardTensors {
  Access h, grad_value, grad_slope, grad_h;
};

template <class Access>
__global__ void __launch_bounds__(kThreads)
    value_and_slope(const DualShape shape, const __grid_constant__ SlopeTensors<Access> t) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  const Tile<Access> tile(0, shape.numel);
#pragma unroll 1
  for (int u = 0; u < Access::kAtOnce; ++u) {
    const Range range = tile.range(u, Constant<false>());
    if (range.empty()) continue;
    const bool whole = Access::kMovesWhole && range.holds(V);
    T h[V], value[V], slope[V];
    Access::unpack(t.h.load(range, whole), h);
    jets<ValueAndSlope>(shape, h, value, slope);
    t.value.store(range, whole, value);
    t.slope.store(range, whole, slope);
  }
}

template <class Access>
__global__ void __launch_bounds__(kThreads)
    value_and_slope_backward(const DualShape shape,
                             const __grid_constant__ SlopeBackwardTensors<Access> t) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  const Tile<Access> tile(0, shape.numel);
#pragma unroll 1
  for (int u = 0; u < Access::kAtOnce; ++u) {
    const Range range = tile.range(u, Constant<false>());
    if (range.empty()) continue;
    const bool whole = Access::kMovesWhole && range.holds(V);
    const auto raw_h = t.h.load(range, whole);
    const auto raw_value = t.grad_value.load(range, whole);
    T h[V], slope[V], curvature[V], grad_value[V], grad_slope[V];
    Access::unpack(raw_h, h);
    const bool curved = jets<SlopeAndCurvature>(shape, h, slope, curvature);
    Access::unpack(raw_value, grad_value);
    if (curved) {
      Access::unpack(t.grad_slope.load(range, whole), grad_slope);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        grad_value[j] = fma(grad_value[j], slope[j], curvature[j] * grad_slope[j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) grad_value[j] = grad_value[j] * slope[j];
    }
    t.grad_h.store(range, whole, grad_value);
  }
}

// ---- choosing the kernel --------------------------------------------------------------------

// Two doubles are 16 bytes; the rest of the library takes four, for the sake of its noise.
template <class S>
constexpr int kDualPack = sizeof(S) == sizeof(double) ? 2 : kPack<S>;

bool all_packable(const DualArgs& args, int v) {
  const bool slices_fit = (args.tangents + (args.first_tangent > 0) <= 1) || args.numel % v == 0;
  const auto fits = [&](const View& view) { return view.data == nullptr || packable(view, v); };
  return slices_fit && fits(args.h) && fits(args.hdot) && fits(args.value) && fits(args.out) &&
         fits(args.grad_value) && fits(args.grad_out);
}

template <class S>
void run_as(const Launcher& launch, const DualArgs& args, DualPass pass) {
  constexpr int V = kDualPack<S>;
  const DualShape shape = {args.activation, args.a,        args.b,
                           args.numel,      args.tangents, args.first_tangent};
  const auto run = [&](const auto& access) {
    using Access = decltype(access(args.h));
    const int64_t blocks = tile_count<Access>(0, shape.numel);
    const Access h = access(args.h), value = access(args.value);
    const Access hdot = access(args.hdot), out = access(args.out);
    const Access grad_value = access(args.grad_value), grad_out = access(args.grad_out);
    switch (pass) {
      case DualPass::kForward:
        return launch.blocks(blocks, &forward<Access>, shape,
                             ForwardTensors<Access>{h, hdot, value, out});
      case DualPass::kBackward:
        return launch.blocks(blocks, &backward<Access>, shape,
                             BackwardTensors<Access>{h, hdot, grad_value, grad_out, value, out});
      case DualPass::kSlope:
        return launch.blocks(blocks, &value_and_slope<Access>, shape,
                             SlopeTensors<Access>{h, value, out});
      case DualPass::kSlopeBackward:
        return launch.blocks(blocks, &value_and_slope_backward<Access>, shape,
                             SlopeBackwardTensors<Access>{h, grad_value, grad_out, value});
    }
  };
  if (all_packable(args, V)) {
    run([](const View& view) { return packed<S, V>(view); });
  } else {
    run([](const View& view) { return Spread < Compute<S>, sizeof(S) == 8 ? 2 : 4 > ::of(view); });
  }
}

void run_dual(const Tensor& like, const DualArgs& args, DualPass pass) {
  if (args.numel == 0) return;
  const Launcher launch(like);
  switch (args.h.dtype) {
    case DType::kFloat64:
      return run_as<double>(launch, args, pass);
    case DType::kBFloat16:
      return run_as<BFloat16>(launch, args, pass);
    case DType::kFloat16:
      return run_as<Float16>(launch, args, pass);
    default:
      return run_as<float>(launch, args, pass);
  }
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

FASTSCORE_CUDA_OPS(m) { FASTSCORE_IMPL_DUAL(m, fastscore::FASTSCORE_ISA::run_dual); }
