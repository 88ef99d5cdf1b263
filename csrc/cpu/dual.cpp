// CPU side of the family `dual`.
#include "checks.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "dual_checks.h"

namespace fastscore {
namespace {

DualArgs dual_args(int64_t activation, double a, double b, int64_t numel, int64_t tangents) {
  DualArgs args;
  args.activation = static_cast<Activation>(activation);
  args.a = a;
  args.b = b;
  args.numel = numel;
  args.tangents = tangents;
  return args;
}

void run(void (*kernel)(const DualArgs&, TileRange), const DualArgs& args) {
  if (args.numel > 0) run_range(kernel, args, tiles_of(0, args.numel), 1 + args.tangents);
}

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
  args.first_tangent = 0;
  run(FASTSCORE_BEST(dual_forward), args);
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
  DualArgs args = dual_args(activation, a, b, h.numel(), hdot.size(0));
  args.h = ordered_view(op, "h", h, flat);
  args.hdot = ordered_view(op, "hdot", hdot, flat);
  args.grad_value = ordered_view(op, "grad_value", grad_value, flat);
  args.grad_out = ordered_view(op, "grad_tangents", grad_tangents, flat);
  args.value = ordered_view(op, "grad_h", grad_h, flat);
  args.out = ordered_view(op, "grad_hdot", grad_hdot, flat);
  args.first_tangent = 0;
  run(FASTSCORE_BEST(dual_backward), args);
  return {grad_h, grad_hdot};
}

std::tuple<Tensor, Tensor> dual_slope(const Tensor& h, int64_t activation, double a, double b) {
  const char* op = "dual_slope";
  check_dual_slope(op, h, activation);
  Tensor value = new_like(h), slope = new_like(h);
  const bool flat = share_order(h, {&value, &slope});
  DualArgs args = dual_args(activation, a, b, h.numel(), 1);
  args.h = ordered_view(op, "h", h, flat);
  args.value = ordered_view(op, "value", value, flat);
  args.out = ordered_view(op, "slope", slope, flat);
  run(FASTSCORE_BEST(slope_forward), args);
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
  DualArgs args = dual_args(activation, a, b, h.numel(), 1);
  args.h = ordered_view(op, "h", h, flat);
  args.grad_value = ordered_view(op, "grad_value", grad_value, flat);
  args.grad_out = ordered_view(op, "grad_slope", grad_slope, flat);
  args.value = ordered_view(op, "grad_h", grad_h, flat);
  run(FASTSCORE_BEST(slope_backward), args);
  return grad_h;
}

DualArgs stacked_args(const Tensor& h, int64_t activation, double a, double b) {
  const int64_t slices = h.size(0);
  DualArgs args = dual_args(activation, a, b, h.numel() / slices, slices - 1);
  args.first_tangent = args.numel;
  return args;
}

Tensor dual_stacked(const Tensor& h, int64_t activation, double a, double b) {
  const char* op = "dual_stacked";
  check_dual_stacked(op, h, activation);
  Tensor out = new_like(h);
  const bool flat = has_dense_slices(h) && same_strides(out, h);
  DualArgs args = stacked_args(h, activation, a, b);
  args.h = args.hdot = ordered_view(op, "h", h, flat);
  args.value = args.out = ordered_view(op, "out", out, flat);
  run(FASTSCORE_BEST(dual_forward), args);
  return out;
}

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
  run(FASTSCORE_BEST(dual_backward), args);
  return grad_h;
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("dual", TORCH_BOX(&fastscore::dual));
  m.impl("dual_backward", TORCH_BOX(&fastscore::dual_backward));
  m.impl("dual_slope", TORCH_BOX(&fastscore::dual_slope));
  m.impl("dual_slope_backward", TORCH_BOX(&fastscore::dual_slope_backward));
  m.impl("dual_stacked", TORCH_BOX(&fastscore::dual_stacked));
  m.impl("dual_stacked_backward", TORCH_BOX(&fastscore::dual_stacked_backward));
}
