// What langevin_step and langevin_step_ ask of their arguments, on every device.
#pragma once

#include <limits>

#include "checks.h"

namespace fastscore {

inline void check_langevin(const char* op, const Tensor& x, const Tensor& score,
                           const Tensor& table, const Tensor& key,
                           const std::optional<Tensor>& known, const std::optional<Tensor>& mask,
                           std::optional<double> low, std::optional<double> high,
                           int64_t sample_offset, const std::optional<Tensor>& samples) {
  check_data(op, "x", x);
  check_same_shape(op, "score", score, x, "x");
  check_same_device(op, "score", score, x, "x");
  check_data(op, "score", score);
  if (score.scalar_type() != x.scalar_type() &&
      (x.scalar_type() != ScalarType::Float || score.scalar_type() == ScalarType::Double)) {
    fail(op, "score", "of x's dtype (or of half precision when x is float32), got ",
         describe(score), " for x, ", describe(x));
  }
  check_table(op, table, 4, x, 3);
  if (table.dim() == 3 && table.size(1) != x.size(0)) {
    fail(op, "table", "of shape (rows, 4) or (rows, ", x.size(0), ", 4), got ", describe(table));
  }
  check_key(op, key, x);
  if (known.has_value() != mask.has_value()) {
    fail(op, known ? "mask" : "known", "given together with ", known ? "known" : "mask",
         ", got None");
  }
  if (known) {
    check_same_shape(op, "known", *known, x, "x");
    check_same_dtype(op, "known", *known, x, "x");
    check_same_device(op, "known", *known, x, "x");
    check_same_shape(op, "mask", *mask, x, "x");
    check_same_device(op, "mask", *mask, x, "x");
    if (mask->scalar_type() != ScalarType::Bool) {
      fail(op, "mask", "a bool tensor, got ", describe(*mask));
    }
  }
  const double infinity = std::numeric_limits<double>::infinity();
  const double bottom = low.value_or(-infinity), top = high.value_or(infinity);
  if (!(bottom <= top)) {
    fail(op, "clamp", "(low, high) with low <= high, got (", bottom, ", ", top, ")");
  }
  check_numbers(op, sample_offset, samples, key, x);
}

}  // namespace fastscore
