// CUDA side of the family `dual`.
#include "core/dual.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/tiles.cuh"
#include "dual_checks.h"

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
  for (Tiles<Access> tile(0, shape.numel); tile.inside(); tile.next()) {
#pragma unroll 1
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u, Constant<false>());
      if (range.empty()) continue;
      const bool whole = Access::kMovesWhole && range.holds(V);
      auto raw = t.h.load(range, whole);
      T h[V], value[V], slope[V], in[V];
      Access::unpack(raw, h);
      if (shape.tangents > 0) raw = t.hdot.load(shape.at(0, range), whole);
      with_activation(shape.activation, shape.a, shape.b, [&](const auto& activation) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Jet<T> jet = activation(h[j]);
          value[j] = jet.value;
          slope[j] = jet.slope;
        }
      });
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
}

template <class Access>
__global__ void __launch_bounds__(kThreads)
    backward(const DualShape shape, const __grid_constant__ BackwardTensors<Access> t) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  for (Tiles<Access> tile(0, shape.numel); tile.inside(); tile.next()) {
#pragma unroll 1
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u, Constant<false>());
      if (range.empty()) continue;
      const bool whole = Access::kMovesWhole && range.holds(V);
      const auto raw_h = t.h.load(range, whole);
      const auto raw_grad = t.grad_value.load(range, whole);
      T h[V], slope[V], curvature[V], grad[V], sum[V];
      Access::unpack(raw_h, h);
      bool curved = false;
      with_activation(shape.activation, shape.a, shape.b, [&](const auto& activation) {
        curved = activation.kCurved;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Jet<T> jet = activation(h[j]);
          slope[j] = jet.slope;
          curvature[j] = jet.curvature;
        }
      });
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
  for (Tiles<Access> tile(0, shape.numel); tile.inside(); tile.next()) {
#pragma unroll 1
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u, Constant<false>());
      if (range.empty()) continue;
      const bool whole = Access::kMovesWhole && range.holds(V);
      T h[V], value[V], slope[V];
      Access::unpack(t.h.load(range, whole), h);
      with_activation(shape.activation, shape.a, shape.b, [&](const auto& activation) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Jet<T> jet = activation(h[j]);
          value[j] = jet.value;
          slope[j] = jet.slope;
        }
      });
      t.value.store(range, whole, value);
      t.slope.store(range, whole, slope);
    }
  }
}

template <class Access>
__global__ void __launch_bounds__(kThreads)
    value_and_slope_backward(const DualShape shape,
                             const __grid_constant__ SlopeBackwardTensors<Access> t) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  for (Tiles<Access> tile(0, shape.numel); tile.inside(); tile.next()) {
#pragma unroll 1
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u, Constant<false>());
      if (range.empty()) continue;
      const bool whole = Access::kMovesWhole && range.holds(V);
      const auto raw_h = t.h.load(range, whole);
      const auto raw_value = t.grad_value.load(range, whole);
      T h[V], slope[V], curvature[V], grad_value[V], grad_slope[V];
      Access::unpack(raw_h, h);
      bool curved = false;
      with_activation(shape.activation, shape.a, shape.b, [&](const auto& activation) {
        curved = activation.kCurved;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Jet<T> jet = activation(h[j]);
          slope[j] = jet.slope;
          curvature[j] = jet.curvature;
        }
      });
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
}

// ---- choosing the kernel --------------------------------------------------------------------

// Two doubles are 16 bytes; the rest of the library takes four, for the sake of its noise.
template <class S>
constexpr int kDualPack = sizeof(S) == sizeof(double) ? 2 : kPack<S>;

// What a kernel reads and writes; a view that it does not use has no data.
struct DualViews {
  View h, hdot, value, out, grad_value, grad_out;  // value and out: what is written

  bool packable(const DualShape& shape, int v) const {
    const bool slices_fit =
        (shape.tangents + (shape.first_tangent > 0) <= 1) || shape.numel % v == 0;
    const auto fits = [&](const View& view) {
      return view.data == nullptr || FASTSCORE_ISA::packable(view, v);
    };
    return slices_fit && fits(h) && fits(hdot) && fits(value) && fits(out) && fits(grad_value) &&
           fits(grad_out);
  }
};

enum class Pass { kForward, kBackward, kSlope, kSlopeBackward };

template <class S>
void run_as(const Launcher& launch, const DualShape& shape, const DualViews& v, Pass pass) {
  constexpr int V = kDualPack<S>;
  const auto run = [&](const auto& access) {
    using Access = decltype(access(v.h));
    const int64_t tiles = tile_count<Access>(0, shape.numel);
    const Access h = access(v.h), value = access(v.value);
    const Access hdot = access(v.hdot), out = access(v.out);
    const Access grad_value = access(v.grad_value), grad_out = access(v.grad_out);
    switch (pass) {
      case Pass::kForward:
        return launch.tiles(tiles, &forward<Access>, shape,
                            ForwardTensors<Access>{h, hdot, value, out});
      case Pass::kBackward:
        return launch.tiles(tiles, &backward<Access>, shape,
                            BackwardTensors<Access>{h, hdot, grad_value, grad_out, value, out});
      case Pass::kSlope:
        return launch.tiles(tiles, &value_and_slope<Access>, shape,
                            SlopeTensors<Access>{h, value, out});
      case Pass::kSlopeBackward:
        return launch.tiles(tiles, &value_and_slope_backward<Access>, shape,
                            SlopeBackwardTensors<Access>{h, grad_value, grad_out, value});
    }
  };
  if (v.packable(shape, V)) {
    run([](const View& view) { return packed<S, V>(view); });
  } else {
    run([](const View& view) { return Spread < Compute<S>, sizeof(S) == 8 ? 2 : 4 > ::of(view); });
  }
}

void run(const Tensor& like, const DualShape& shape, const DualViews& v, Pass pass) {
  if (shape.numel == 0) return;
  const Launcher launch(like);
  switch (v.h.dtype) {
    case DType::kFloat64:
      return run_as<double>(launch, shape, v, pass);
    case DType::kBFloat16:
      return run_as<BFloat16>(launch, shape, v, pass);
    case DType::kFloat16:
      return run_as<Float16>(launch, shape, v, pass);
    default:
      return run_as<float>(launch, shape, v, pass);
  }
}

// ---- ops -------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> dual(const Tensor& h, const Tensor& hdot, int64_t activation, double a,
                                double b) {
  const char* op = "dual";
  check_dual(op, h, hdot, activation);
  Tensor value = new_like(h), tangents = new_like(hdot);
  const bool flat = share_order(h, hdot, value, tangents);
  DualViews v = {};
  v.h = ordered_view(op, "h", h, flat);
  v.hdot = ordered_view(op, "hdot", hdot, flat);
  v.value = ordered_view(op, "value", value, flat);
  v.out = ordered_view(op, "tangents", tangents, flat);
  run(h, {static_cast<Activation>(activation), a, b, h.numel(), hdot.size(0), 0}, v,
      Pass::kForward);
  return {value, tangents};
}

std::tuple<Tensor, Tensor> dual_backward(const Tensor& grad_value, const Tensor& grad_tangents,
                                         const Tensor& h, const Tensor& hdot, int64_t activation,
                                         double a, double b) {
  const char* op = "dual_backward";
  check_dual(op, h, hdot, activation);
  check_like(op, "grad_value", grad_value, h, "h");
  check_like(op, "grad_tangents", grad_tangents, hdot, "hdot");
  Tensor grad_h = new_like(h), grad_hdot = new_like(hdot);
  const bool flat = share_order(h, hdot, grad_h, grad_hdot) && same_strides(grad_value, h) &&
                    same_strides(grad_tangents, hdot);
  DualViews v = {};
  v.h = ordered_view(op, "h", h, flat);
  v.hdot = ordered_view(op, "hdot", hdot, flat);
  v.grad_value = ordered_view(op, "grad_value", grad_value, flat);
  v.grad_out = ordered_view(op, "grad_tangents", grad_tangents, flat);
  v.value = ordered_view(op, "grad_h", grad_h, flat);
  v.out = ordered_view(op, "grad_hdot", grad_hdot, flat);
  run(h, {static_cast<Activation>(activation), a, b, h.numel(), hdot.size(0), 0}, v,
      Pass::kBackward);
  return {grad_h, grad_hdot};
}

std::tuple<Tensor, Tensor> dual_slope(const Tensor& h, int64_t activation, double a, double b) {
  const char* op = "dual_slope";
  check_dual_slope(op, h, activation);
  Tensor value = new_like(h), slope = new_like(h);
  const bool flat = share_order(h, {&value, &slope});
  DualViews v = {};
  v.h = ordered_view(op, "h", h, flat);
  v.value = ordered_view(op, "value", value, flat);
  v.out = ordered_view(op, "slope", slope, flat);
  run(h, {static_cast<Activation>(activation), a, b, h.numel(), 1, 0}, v, Pass::kSlope);
  return {value, slope};
}

Tensor dual_slope_backward(const Tensor& grad_value, const Tensor& grad_slope, const Tensor& h,
                           int64_t activation, double a, double b) {
  const char* op = "dual_slope_backward";
  check_dual_slope(op, h, activation);
  check_like(op, "grad_value", grad_value, h, "h");
  check_like(op, "grad_slope", grad_slope, h, "h");
  Tensor grad_h = new_like(h);
  const bool flat = share_order(h, {&grad_value, &grad_slope, &grad_h});
  DualViews v = {};
  v.h = ordered_view(op, "h", h, flat);
  v.grad_value = ordered_view(op, "grad_value", grad_value, flat);
  v.grad_out = ordered_view(op, "grad_slope", grad_slope, flat);
  v.value = ordered_view(op, "grad_h", grad_h, flat);
  run(h, {static_cast<Activation>(activation), a, b, h.numel(), 1, 0}, v, Pass::kSlopeBackward);
  return grad_h;
}

DualShape stacked_shape(const Tensor& h, int64_t activation, double a, double b) {
  const int64_t slices = h.size(0), numel = h.numel() / slices;
  return {static_cast<Activation>(activation), a, b, numel, slices - 1, numel};
}

Tensor dual_stacked(const Tensor& h, int64_t activation, double a, double b) {
  const char* op = "dual_stacked";
  check_dual_stacked(op, h, activation);
  Tensor out = new_like(h);
  const bool flat = has_dense_slices(h) && same_strides(out, h);
  DualViews v = {};
  v.h = v.hdot = ordered_view(op, "h", h, flat);
  v.value = v.out = ordered_view(op, "out", out, flat);
  run(h, stacked_shape(h, activation, a, b), v, Pass::kForward);
  return out;
}

Tensor dual_stacked_backward(const Tensor& grad, const Tensor& h, int64_t activation, double a,
                             double b) {
  const char* op = "dual_stacked_backward";
  check_dual_stacked(op, h, activation);
  check_like(op, "grad", grad, h, "h");
  Tensor grad_h = new_like(h);
  const bool flat = has_dense_slices(h) && same_strides(grad, h) && same_strides(grad_h, h);
  DualViews v = {};
  v.h = v.hdot = ordered_view(op, "h", h, flat);
  v.grad_value = v.grad_out = ordered_view(op, "grad", grad, flat);
  v.value = v.out = ordered_view(op, "grad_h", grad_h, flat);
  run(h, stacked_shape(h, activation, a, b), v, Pass::kBackward);
  return grad_h;
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

STABLE_TORCH_LIBRARY_IMPL(fastscore, CUDA, m) {
  using namespace fastscore::FASTSCORE_ISA;
  m.impl("dual", TORCH_BOX(&dual));
  m.impl("dual_backward", TORCH_BOX(&dual_backward));
  m.impl("dual_slope", TORCH_BOX(&dual_slope));
  m.impl("dual_slope_backward", TORCH_BOX(&dual_slope_backward));
  m.impl("dual_stacked", TORCH_BOX(&dual_stacked));
  m.impl("dual_stacked_backward", TORCH_BOX(&dual_stacked_backward));
}
