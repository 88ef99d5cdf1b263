// Every op's schema. What an op means stands in fastscore/ops/<family>.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastscore, m) {
  // random
  m.def("random_normal_(Tensor(a!) out, Tensor key, int stream, int sample_offset) -> ()");
  m.def("random_uniform_(Tensor(a!) out, Tensor key, int stream, int sample_offset) -> ()");
  m.def("random_rademacher_(Tensor(a!) out, Tensor key, int stream, int sample_offset) -> ()");
  // langevin
  m.def(
      "langevin_step_(Tensor(a!) x, Tensor score, Tensor table, Tensor key, Tensor? known, "
      "Tensor? mask, float? low, float? high, int sample_offset) -> ()");
  m.def(
      "langevin_step(Tensor x, Tensor score, Tensor table, Tensor key, Tensor? known, "
      "Tensor? mask, float? low, float? high, int sample_offset) -> Tensor");
  // dsm
  m.def(
      "perturb(Tensor x, Tensor table, Tensor key, Tensor? labels, int sample_offset) "
      "-> (Tensor, Tensor)");
  m.def(
      "dsm_residual(Tensor output, Tensor table, Tensor labels, Tensor key, int sample_offset) "
      "-> Tensor");
  m.def(
      "dsm_residual_backward(Tensor grad, Tensor output, Tensor table, Tensor labels, Tensor key, "
      "int sample_offset) -> Tensor");
}
