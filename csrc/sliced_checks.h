// What the ops of the family `sliced` ask of their arguments, on every device.
#pragma once

#include <vector>

#include "checks.h"
#include "core/projections.h"

namespace fastscore {

inline void check_distribution(const char* op, int64_t distribution) {
  if (distribution < 0 || distribution >= kProjections) {
    fail(op, "distribution", "a number below ", kProjections, ", got ", distribution);
  }
}

// Elements in one sample of a tensor of shape (projections, batch, ...).
inline int64_t projection_sample_size(const Tensor& out) {
  int64_t size = 1;
  const auto sizes = out.sizes();
  for (size_t d = 2; d < sizes.size(); ++d) size *= sizes[d];
  return size;
}

inline void check_projections(const char* op, const Tensor& out, const Tensor& key,
                              int64_t distribution, int64_t sample_offset,
                              const std::optional<Tensor>& samples) {
  check_data(op, "out", out);
  if (out.dim() < 2) fail(op, "out", "of shape (projections, batch, ...), got ", describe(out));
  check_writable(op, "out", out);
  check_key(op, key, out, out.size(1));
  check_distribution(op, distribution);
  check_numbers(op, sample_offset, samples, key, out, out.size(1), projection_sample_size(out));
}

inline void check_sliced_terms(const char* op, const Tensor& score, const Tensor& jvp,
                               const Tensor& key, int64_t distribution, int64_t sample_offset,
                               const std::optional<Tensor>& samples) {
  check_data(op, "score", score);
  check_same_dtype(op, "jvp", jvp, score, "score");
  check_same_device(op, "jvp", jvp, score, "score");
  bool fits = jvp.dim() == score.dim() + 1 && jvp.size(0) >= 1;
  for (int64_t d = 0; fits && d < score.dim(); ++d) fits = jvp.size(d + 1) == score.size(d);
  if (!fits) {
    fail(op, "jvp", "of shape (projections, *score.shape) with at least one projection, got ",
         describe(jvp), " for score, ", describe(score));
  }
  check_key(op, key, score);
  check_distribution(op, distribution);
  check_numbers(op, sample_offset, samples, key, score);
}

inline void check_sliced_backward(const char* op, const Tensor& grad_vjv,
                                  const std::optional<Tensor>& grad_vs,
                                  const std::optional<Tensor>& grad_half_s2, const Tensor& score,
                                  const Tensor& key, int64_t distribution, int64_t sample_offset,
                                  const std::optional<Tensor>& samples) {
  check_data(op, "score", score);
  const int64_t batch = batch_size(score);
  const auto check_grad = [&](const char* arg, const Tensor& grad, bool fits) {
    const ScalarType dtype = sum_dtype(score.scalar_type());
    if (!fits || grad.scalar_type() != dtype) {
      fail(op, arg, dtype == ScalarType::Double ? "float64" : "float32",
           " of the shape of the output it belongs to, got ", describe(grad), " for score, ",
           describe(score));
    }
    check_same_device(op, arg, grad, score, "score");
  };
  check_grad("grad_vjv", grad_vjv,
             grad_vjv.dim() == 2 && grad_vjv.size(0) >= 1 && grad_vjv.size(1) == batch);
  if (grad_vs) check_grad("grad_vs", *grad_vs, same_shape(*grad_vs, grad_vjv));
  if (grad_half_s2) {
    check_grad("grad_half_s2", *grad_half_s2,
               grad_half_s2->dim() == 1 && grad_half_s2->size(0) == batch);
  }
  check_key(op, key, score);
  check_distribution(op, distribution);
  check_numbers(op, sample_offset, samples, key, score);
}

// A new contiguous tensor of shape (projections, *score.shape).
inline Tensor new_stacked(int64_t projections, const Tensor& score) {
  std::vector<int64_t> shape = {projections};
  for (const int64_t size : score.sizes()) shape.push_back(size);
  return new_tensor(shape, score.scalar_type(), score);
}

}  // namespace fastscore
