// Every op's schema. What an op means stands in fastscore/ops/<family>.py.
#include "registration.h"

FASTSCORE_SCHEMAS(m) {
  // random
  m.def(
      "random_normal_(Tensor(a!) out, Tensor key, int stream, int sample_offset, Tensor? "
      "samples=None) -> ()");
  m.def(
      "random_uniform_(Tensor(a!) out, Tensor key, int stream, int sample_offset, Tensor? "
      "samples=None) -> ()");
  m.def(
      "random_rademacher_(Tensor(a!) out, Tensor key, int stream, int sample_offset, Tensor? "
      "samples=None) -> ()");
  // langevin
  m.def(
      "langevin_step_(Tensor(a!) x, Tensor score, Tensor table, Tensor key, Tensor? known, "
      "Tensor? mask, float? low, float? high, int sample_offset, Tensor? samples=None, "
      "Tensor? second=None, Tensor? weights=None) -> ()");
  m.def(
      "langevin_step(Tensor x, Tensor score, Tensor table, Tensor key, Tensor? known, "
      "Tensor? mask, float? low, float? high, int sample_offset, Tensor? samples=None, "
      "Tensor? second=None, Tensor? weights=None) -> Tensor");
  // multistep
  m.def(
      "multistep_step_(Tensor(a!) x, Tensor(b!) history, Tensor score, Tensor table, Tensor key, "
      "Tensor? known, Tensor? mask, float? low, float? high, float? clip_low, float? clip_high, "
      "int sample_offset, Tensor? samples=None, Tensor? second=None, Tensor? weights=None) -> ()");
  // dsm
  m.def(
      "perturb(Tensor x, Tensor table, Tensor key, Tensor? labels, int sample_offset, Tensor? "
      "samples=None) "
      "-> (Tensor, Tensor)");
  m.def(
      "dsm_residual(Tensor output, Tensor table, Tensor labels, Tensor key, int sample_offset, "
      "Tensor? samples=None, Tensor? noisy=None) -> Tensor");
  m.def(
      "dsm_residual_backward(Tensor grad, Tensor output, Tensor table, Tensor labels, Tensor key, "
      "int sample_offset, Tensor? samples=None, Tensor? noisy=None) -> Tensor");
  m.def(
      "dsm_residual_with_grad(Tensor output, Tensor table, Tensor labels, Tensor key, "
      "int sample_offset, float expected, Tensor? samples=None, Tensor? noisy=None) -> (Tensor "
      "loss, Tensor grad_output)");
  m.def(
      "dsm_residual_regrad_(Tensor(a!) grad_output, Tensor grad, float expected, Tensor output, "
      "Tensor table, Tensor labels, Tensor key, int sample_offset, Tensor? samples=None, Tensor? "
      "noisy=None) -> ()");
  // runge_kutta
  m.def("rk_stage(Tensor x, Tensor[] slopes, Tensor coefficients) -> Tensor");
  m.def("rk_stage_(Tensor(a!) out, Tensor x, Tensor[] slopes, Tensor coefficients) -> ()");
  m.def(
      "rk_error(Tensor x, Tensor new, Tensor[] slopes, Tensor coefficients, Tensor tolerances) "
      "-> Tensor");
  m.def(
      "rk_advance_(Tensor(a!) x, Tensor(b!) first, Tensor new, Tensor last, Tensor accepted, "
      "Tensor(c!)? out=None, Tensor? coefficients=None) -> ()");
  // sliced
  m.def(
      "project_(Tensor(a!) out, Tensor key, int distribution, int sample_offset, Tensor? "
      "samples=None) -> ()");
  m.def(
      "sliced_terms(Tensor score, Tensor jvp, Tensor key, int distribution, int sample_offset, "
      "Tensor? samples=None) "
      "-> (Tensor vjv, Tensor vs, Tensor half_vs2, Tensor half_s2)");
  m.def(
      "sliced_terms_backward(Tensor grad_vjv, Tensor? grad_vs, Tensor? grad_half_s2, Tensor score, "
      "Tensor key, int distribution, int sample_offset, Tensor? samples=None) -> (Tensor "
      "grad_score, Tensor grad_jvp)");
  // dual
  m.def(
      "dual(Tensor h, Tensor hdot, int activation, float a, float b) "
      "-> (Tensor value, Tensor tangents)");
  m.def(
      "dual_backward(Tensor grad_value, Tensor grad_tangents, Tensor h, Tensor hdot, "
      "int activation, float a, float b) -> (Tensor grad_h, Tensor grad_hdot)");
  m.def("dual_slope(Tensor h, int activation, float a, float b) -> (Tensor value, Tensor slope)");
  m.def(
      "dual_slope_backward(Tensor grad_value, Tensor grad_slope, Tensor h, int activation, "
      "float a, float b) -> Tensor");
  m.def("dual_stacked(Tensor h, int activation, float a, float b) -> Tensor");
  m.def("dual_stacked_backward(Tensor grad, Tensor h, int activation, float a, float b) -> Tensor");
}
