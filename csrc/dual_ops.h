// The ops of the family `dual`: what they check, make and hand on is the same on every device,
// which gives only `run`, the launch of a pass.
#pragma once

#include "core/dual_args.h"
#include "dual_checks.h"

namespace fastscore {

// `like` says where the data are.
using DualRun = void (*)(const Tensor& like, const DualArgs& args, DualPass pass);

inline DualArgs dual_args(int64_t activation, double a, double b, int64_t numel, int64_t tangents) {
  DualArgs args = {};
  args.activation = static_cast<Activation>(activation);
  args.a = a;
  args.b = b;
  args.numel = numel;
  args.tangents = tangents;
  return args;
}

template <DualRun run>
std::tuple<Tensor, Tensor> dual(const Tensor& h, const Tensor& hdot, int64_t activation, double a,
                                double b) {
  const char* op = "dual";
  check_dual(op, h, hdot, activation);
  Tensor value = new_like(h), tangents = new_like(hdot);
  const bool flat = share_order(h, hdot, value, tangents);
  DualArgs args = dual_args(activation, a, b, h.numel(), hdot.size(0));
  args.h = ordered_view(op, "h", h, flat);
  args.hdot = ordered_view(op, "hdot", hdot, flat);
  args.value = ordered_view(op, "value", value, flat);
  args.out = ordered_view(op, "tangents", tangents, flat);
  run(h, args, DualPass::kForward);
  return {value, tangents};
}

template <DualRun run>
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
  DualArgs args = dual_args(activation, a, b, h.numel(), hdot.size(0));
  args.h = ordered_view(op, "h", h, flat);
  args.hdot = ordered_view(op, "hdot", hdot, flat);
  args.grad_value = ordered_view(op, "grad_value", grad_value, flat);
  args.grad_out = ordered_view(op, "grad_tangents", grad_tangents, flat);
  args.value = ordered_view(op, "grad_h", grad_h, flat);
  args.out = ordered_view(op, "grad_hdot", grad_hdot, flat);
  run(h, args, DualPass::kBackward);
  return {grad_h, grad_hdot};
}

template <DualRun run>
std::tuple<Tensor, Tensor> dual_slope(const Tensor& h, int64_t activation, double a, double b) {
  const char* op = "dual_slope";
  check_dual_slope(op, h, activation);
  Tensor value = new_like(h), slope = new_like(h);
  const bool flat = share_order(h, {&value, &slope});
  DualArgs args = dual_args(activation, a, b, h.numel(), 1);
  args.h = ordered_view(op, "h", h, flat);
  args.value = ordered_view(op, "value", value, flat);
  args.out = ordered_view(op, "slope", slope, flat);
  run(h, args, DualPass::kSlope);
  return {value, slope};
}

template <DualRun run>
Tensor dual_slope_backward(const Tensor& grad_value, const Tensor& grad_slope, const Tensor& h,
                           int64_t activation, double a, double b) {
  const char* op = "dual_slope_backward";
  check_dual_slope(op, h, activation);
  check_like(op, "grad_value", grad_value, h, "h");
  check_like(op, "grad_slope", grad_slope, h, "h");
  Tensor grad_h = new_like(h);
  const bool flat = share_order(h, {&grad_value, &grad_slope, &grad_h});
  DualArgs args = dual_args(activation, a, b, h.numel(), 1);
  args.h = ordered_view(op, "h", h, flat);
  args.grad_value = ordered_view(op, "grad_value", grad_value, flat);
  args.grad_out = ordered_view(op, "grad_slope", grad_slope, flat);
  args.value = ordered_view(op, "grad_h", grad_h, flat);
  run(h, args, DualPass::kSlopeBackward);
  return grad_h;
}

inline DualArgs stacked_args(const Tensor& h, int64_t activation, double a, double b) {
  const int64_t slices = h.size(0);
  DualArgs args = dual_args(activation, a, b, h.numel() / slices, slices - 1);
  args.first_tangent = args.numel;
  return args;
}

template <DualRun run>
Tensor dual_stacked(const Tensor& h, int64_t activation, double a, double b) {
  const char* op = "dual_stacked";
  check_dual_stacked(op, h, activation);
  Tensor out = new_like(h);
  const bool flat = has_dense_slices(h) && same_strides(out, h);
  DualArgs args = stacked_args(h, activation, a, b);
  args.h = args.hdot = ordered_view(op, "h", h, flat);
  args.value = args.out = ordered_view(op, "out", out, flat);
  run(h, args, DualPass::kForward);
  return out;
}

template <DualRun run>
Tensor dual_stacked_backward(const Tensor& grad, const Tensor& h, int64_t activation, double a,
                             double b) {
  const char* op = "dual_stacked_backward";
  check_dual_stacked(op, h, activation);
  check_like(op, "grad", grad, h, "h");
  Tensor grad_h = new_like(h);
  const bool flat = has_dense_slices(h) && same_strides(grad, h) && same_strides(grad_h, h);
  DualArgs args = stacked_args(h, activation, a, b);
  args.h = args.hdot = ordered_view(op, "h", h, flat);
  args.grad_value = args.grad_out = ordered_view(op, "grad", grad, flat);
  args.value = args.out = ordered_view(op, "grad_h", grad_h, flat);
  run(h, args, DualPass::kBackward);
  return grad_h;
}

}  // namespace fastscore

// Registers the ops of one device in its STABLE_TORCH_LIBRARY_IMPL block.
#define FASTSCORE_IMPL_DUAL(m, run)                                               \
  m.impl("dual", TORCH_BOX(&fastscore::dual<run>));                               \
  m.impl("dual_backward", TORCH_BOX(&fastscore::dual_backward<run>));             \
  m.impl("dual_slope", TORCH_BOX(&fastscore::dual_slope<run>));                   \
  m.impl("dual_slope_backward", TORCH_BOX(&fastscore::dual_slope_backward<run>)); \
  m.impl("dual_stacked", TORCH_BOX(&fastscore::dual_stacked<run>));               \
  m.impl("dual_stacked_backward", TORCH_BOX(&fastscore::dual_stacked_backward<run>))
