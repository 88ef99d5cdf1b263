// Kernels of the family `dual`.
#include "core/dual.h"

#include "tile.h"

namespace fastscore::FASTSCORE_ISA {

FASTSCORE_FN void load(const double* in, double& x) { x = *in; }
FASTSCORE_FN void store(double* out, double x) { *out = x; }

namespace {

// What a kernel of compute type T works on at a time.
template <class T>
struct LaneOf;
template <>
struct LaneOf<float> {
  using type = LaneF;
};
template <>
struct LaneOf<double> {
  using type = double;
};

// Two of the activation's derivatives at n elements.
template <class Part, class T, class Act>
void jets(const Act& activation, const T* h, int64_t n, T* first, T* second) {
  using F = typename LaneOf<T>::type;
  constexpr int64_t kLanes = sizeof(F) / sizeof(T);
  const auto lane = [&](const T* in, T* out_first, T* out_second) {
    F x, one, two;
    load(in, x);
    Part()(activation(x), one, two);
    store(out_first, one);
    store(out_second, two);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) lane(h + i, first + i, second + i);
  if (i < n) {
    T in[kLanes] = {}, one[kLanes], two[kLanes];
    for (int64_t k = 0; k < n - i; ++k) in[k] = h[i + k];
    lane(in, one, two);
    for (int64_t k = 0; k < n - i; ++k) {
      first[i + k] = one[k];
      second[i + k] = two[k];
    }
  }
}

template <class T>
void forward(const DualArgs& args, TileRange tiles) {
  T h_buffer[kTile], value_buffer[kTile], slope[kTile], in_buffer[kTile], out_buffer[kTile];
  for_each_tile(args.numel, tiles, [&](int64_t, int64_t begin, int64_t count) {
    const T* h = load_tile(args.h, begin, count, h_buffer);
    T* value = output_tile(args.value, begin, value_buffer);
    with_activation(args.activation, args.a, args.b,
                    [&](auto act) { jets<ValueAndSlope>(act, h, count, value, slope); });
    store_tile(args.value, begin, count, value);
    for (int64_t m = 0; m < args.tangents; ++m) {
      const int64_t at = args.first_tangent + m * args.numel + begin;
      const T* __restrict in = load_tile(args.hdot, at, count, in_buffer);
      T* __restrict out = output_tile(args.out, at, out_buffer);
      for (int64_t i = 0; i < count; ++i) out[i] = slope[i] * in[i];
      store_tile(args.out, at, count, out);
    }
  });
}

template <class T>
void backward(const DualArgs& args, TileRange tiles) {
  T h_buffer[kTile], grad_buffer[kTile], in_buffer[kTile], out_buffer[kTile];
  T slope[kTile], curvature[kTile], sum[kTile];
  for_each_tile(args.numel, tiles, [&](int64_t, int64_t begin, int64_t count) {
    bool curved = false;
    const T* h = load_tile(args.h, begin, count, h_buffer);
    with_activation(args.activation, args.a, args.b, [&](auto act) {
      jets<SlopeAndCurvature>(act, h, count, slope, curvature);
      curved = act.kCurved;
    });
    for (int64_t i = 0; i < count; ++i) sum[i] = 0;
    for (int64_t m = 0; m < args.tangents; ++m) {
      const int64_t at = args.first_tangent + m * args.numel + begin;
      const T* __restrict grad = load_tile(args.grad_out, at, count, grad_buffer);
      T* __restrict out = output_tile(args.out, at, out_buffer);
      if (curved) {
        const T* __restrict in = load_tile(args.hdot, at, count, in_buffer);
        for (int64_t i = 0; i < count; ++i) sum[i] = fma(grad[i], in[i], sum[i]);
      }
      for (int64_t i = 0; i < count; ++i) out[i] = grad[i] * slope[i];
      store_tile(args.out, at, count, out);
    }
    const T* __restrict grad = load_tile(args.grad_value, begin, count, grad_buffer);
    T* __restrict out = output_tile(args.value, begin, out_buffer);
    if (curved) {
      for (int64_t i = 0; i < count; ++i) out[i] = fma(grad[i], slope[i], curvature[i] * sum[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = grad[i] * slope[i];
    }
    store_tile(args.value, begin, count, out);
  });
}

template <class T>
void value_and_slope(const DualArgs& args, TileRange tiles) {
  T h_buffer[kTile], value_buffer[kTile], slope_buffer[kTile];
  for_each_tile(args.numel, tiles, [&](int64_t, int64_t begin, int64_t count) {
    const T* h = load_tile(args.h, begin, count, h_buffer);
    T* value = output_tile(args.value, begin, value_buffer);
    T* slope = output_tile(args.out, begin, slope_buffer);
    with_activation(args.activation, args.a, args.b,
                    [&](auto act) { jets<ValueAndSlope>(act, h, count, value, slope); });
    store_tile(args.value, begin, count, value);
    store_tile(args.out, begin, count, slope);
  });
}

template <class T>
void value_and_slope_backward(const DualArgs& args, TileRange tiles) {
  T h_buffer[kTile], value_buffer[kTile], slope_buffer[kTile], out_buffer[kTile];
  T slope[kTile], curvature[kTile];
  for_each_tile(args.numel, tiles, [&](int64_t, int64_t begin, int64_t count) {
    bool curved = false;
    const T* h = load_tile(args.h, begin, count, h_buffer);
    with_activation(args.activation, args.a, args.b, [&](auto act) {
      jets<SlopeAndCurvature>(act, h, count, slope, curvature);
      curved = act.kCurved;
    });
    const T* __restrict grad_value = load_tile(args.grad_value, begin, count, value_buffer);
    T* __restrict out = output_tile(args.value, begin, out_buffer);
    if (curved) {
      const T* __restrict grad_slope = load_tile(args.grad_out, begin, count, slope_buffer);
      for (int64_t i = 0; i < count; ++i) {
        out[i] = fma(grad_value[i], slope[i], curvature[i] * grad_slope[i]);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = grad_value[i] * slope[i];
    }
    store_tile(args.value, begin, count, out);
  });
}

}  // namespace

void dual_forward(const DualArgs& args, TileRange tiles) {
  if (args.h.dtype == DType::kFloat64) {
    forward<double>(args, tiles);
  } else {
    forward<float>(args, tiles);
  }
}

void dual_backward(const DualArgs& args, TileRange tiles) {
  if (args.h.dtype == DType::kFloat64) {
    backward<double>(args, tiles);
  } else {
    backward<float>(args, tiles);
  }
}

void slope_forward(const DualArgs& args, TileRange tiles) {
  if (args.h.dtype == DType::kFloat64) {
    value_and_slope<double>(args, tiles);
  } else {
    value_and_slope<float>(args, tiles);
  }
}

void slope_backward(const DualArgs& args, TileRange tiles) {
  if (args.h.dtype == DType::kFloat64) {
    value_and_slope_backward<double>(args, tiles);
  } else {
    value_and_slope_backward<float>(args, tiles);
  }
}

}  // namespace fastscore::FASTSCORE_ISA
