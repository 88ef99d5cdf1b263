// What the ops of the family `dsm` ask of their arguments, on every device. The values of the
// labels are the devices' own business: reading them on a GPU would wait for it.
#pragma once

#include "checks.h"

namespace fastscore {

inline void check_perturb(const char* op, const Tensor& x, const Tensor& table, const Tensor& key,
                          const std::optional<Tensor>& labels, int64_t sample_offset,
                          const std::optional<Tensor>& samples) {
  check_data(op, "x", x);
  check_table(op, table, 2, x);
  check_key(op, key, x);
  check_numbers(op, sample_offset, samples, key, x);
  if (labels) check_labels(op, *labels, x);
}

// What the fourth column of the loss table multiplies.
inline void check_noisy(const char* op, const Tensor& noisy, const Tensor& output) {
  check_same_shape(op, "noisy", noisy, output, "output");
  check_same_device(op, "noisy", noisy, output, "output");
  const ScalarType dtype = noisy.scalar_type(), own = output.scalar_type();
  const bool half = own == ScalarType::Half || own == ScalarType::BFloat16;
  if (dtype != own && !(half && dtype == ScalarType::Float)) {
    fail(op, "noisy", "of output's dtype (or float32 when output is of half precision), got ",
         describe(noisy), " for output, ", describe(output));
  }
}

inline void check_residual(const char* op, const Tensor& output, const Tensor& table,
                           const Tensor& labels, const Tensor& key, int64_t sample_offset,
                           const std::optional<Tensor>& samples,
                           const std::optional<Tensor>& noisy) {
  check_data(op, "output", output);
  if (noisy) check_noisy(op, *noisy, output);
  const int64_t columns = noisy ? 4 : 3;
  if (table.dim() == 2 && table.size(1) == 7 - columns) {
    fail(op, "table", "of shape (rows, 3) without noisy, (rows, 4) with it, got ", describe(table),
         noisy ? " with it" : " without it");
  }
  check_table(op, table, columns, output);
  check_labels(op, labels, output);
  check_key(op, key, output);
  check_numbers(op, sample_offset, samples, key, output);
}

// The upstream gradient of dsm_residual: float32 or float64, any stride.
inline void check_residual_grad(const char* op, const Tensor& grad, const Tensor& output) {
  const ScalarType dtype = grad.scalar_type();
  if (grad.dim() != 1 || grad.size(0) != batch_size(output) ||
      (dtype != ScalarType::Float && dtype != ScalarType::Double)) {
    fail(op, "grad", "float32 or float64 of shape (", batch_size(output), ",), got ",
         describe(grad));
  }
  check_same_device(op, "grad", grad, output, "output");
}

// What dsm_residual_regrad_ mends: a gradient of `output`, apart from it in memory.
inline void check_residual_regrad(const char* op, const Tensor& grad_output, const Tensor& output) {
  check_same_shape(op, "grad_output", grad_output, output, "output");
  check_same_dtype(op, "grad_output", grad_output, output, "output");
  check_same_device(op, "grad_output", grad_output, output, "output");
  check_writable(op, "grad_output", grad_output);
  check_no_partial_overlap(op, "output", output, grad_output, "grad_output");
}

}  // namespace fastscore
