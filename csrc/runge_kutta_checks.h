// What the ops of the family `runge_kutta` ask of their arguments, on every device.
#pragma once

#include <vector>

#include "checks.h"
#include "core/runge_kutta_args.h"

namespace fastscore {

// Rows of `columns` numbers: one for all samples, or one for each.
inline void check_rows(const char* op, const char* arg, const Tensor& rows, int64_t columns,
                       const Tensor& x) {
  const int64_t dim = rows.dim();
  const bool fits = (dim == 1 && rows.size(0) == columns) ||
                    (dim == 2 && rows.size(0) == batch_size(x) && rows.size(1) == columns);
  if (!fits || rows.scalar_type() != ScalarType::Double) {
    fail(op, arg, "float64 of shape (", columns, ",) or (", batch_size(x), ", ", columns, "), got ",
         describe(rows));
  }
  check_same_device(op, arg, rows, x, "the data");
}

// The same in memory one after the other; asking first saves a trip through the dispatcher.
inline Tensor dense_rows(const Tensor& rows) {
  return rows.is_contiguous() ? rows : torch::stable::contiguous(rows);
}

inline void check_state(const char* op, const Tensor& x) {
  check_data(op, "x", x);
  if (x.scalar_type() != ScalarType::Float && x.scalar_type() != ScalarType::Double) {
    fail(op, "x", "float32 or float64, in which a solver keeps its state, got ", describe(x));
  }
}

inline void check_like_state(const char* op, const char* arg, const Tensor& other,
                             const Tensor& x) {
  check_same_shape(op, arg, other, x, "x");
  check_same_dtype(op, arg, other, x, "x");
  check_same_device(op, arg, other, x, "x");
}

// What a network gives: of x's dtype, or narrower.
inline void check_slope(const char* op, const char* arg, const Tensor& slope, const Tensor& x) {
  check_same_shape(op, arg, slope, x, "x");
  check_same_device(op, arg, slope, x, "x");
  check_data(op, arg, slope);
  if (slope.scalar_type() != x.scalar_type() &&
      (x.scalar_type() != ScalarType::Float || slope.scalar_type() == ScalarType::Double)) {
    fail(op, arg, "of x's dtype (or of half precision when x is float32), got ", describe(slope),
         " for x, ", describe(x));
  }
}

inline void check_combination(const char* op, const Tensor& x, const std::vector<Tensor>& slopes,
                              const Tensor& coefficients) {
  check_state(op, x);
  if (slopes.empty() || slopes.size() > kMostSlopes) {
    fail(op, "slopes", "1 to ", kMostSlopes, " tensors, got ", slopes.size());
  }
  for (const Tensor& slope : slopes) {
    check_slope(op, "slopes", slope, x);
    check_same_dtype(op, "slopes", slope, slopes[0], "the first of them");
  }
  check_rows(op, "coefficients", coefficients, static_cast<int64_t>(slopes.size()) + 1, x);
}

inline void check_stage_out(const char* op, const Tensor& out, const Tensor& x,
                            const std::vector<Tensor>& slopes) {
  check_like_state(op, "out", out, x);
  check_writable(op, "out", out);
  check_no_partial_overlap(op, "x", x, out, "out");
  for (const Tensor& slope : slopes) check_no_partial_overlap(op, "slopes", slope, out, "out");
}

inline void check_error(const char* op, const Tensor& x, const Tensor& fresh,
                        const std::vector<Tensor>& slopes, const Tensor& coefficients,
                        const Tensor& tolerances) {
  check_combination(op, x, slopes, coefficients);
  check_like_state(op, "new", fresh, x);
  check_rows(op, "tolerances", tolerances, 2, x);
}

inline void check_advance(const char* op, const Tensor& x, const Tensor& first, const Tensor& fresh,
                          const Tensor& last, const Tensor& accepted,
                          const std::optional<Tensor>& out,
                          const std::optional<Tensor>& coefficients) {
  check_state(op, x);
  check_like_state(op, "new", fresh, x);
  check_slope(op, "first", first, x);
  check_slope(op, "last", last, x);
  check_same_dtype(op, "last", last, first, "first");
  if (accepted.scalar_type() != ScalarType::Bool || accepted.dim() != 1 ||
      accepted.size(0) != batch_size(x)) {
    fail(op, "accepted", "a bool tensor of shape (", batch_size(x), ",), got ", describe(accepted));
  }
  check_same_device(op, "accepted", accepted, x, "x");
  check_writable(op, "x", x);
  check_writable(op, "first", first);
  check_apart(op, "first", first, x, "x");
  check_no_partial_overlap(op, "new", fresh, x, "x");
  check_apart(op, "new", fresh, first, "first");
  check_no_partial_overlap(op, "last", last, first, "first");
  check_apart(op, "last", last, x, "x");
  if (out.has_value() != coefficients.has_value()) {
    fail(op, out ? "coefficients" : "out", "given together with ", out ? "out" : "coefficients",
         ", got None");
  }
  if (!out) return;
  check_rows(op, "coefficients", *coefficients, 2, x);
  check_like_state(op, "out", *out, x);
  check_writable(op, "out", *out);
  check_apart(op, "out", *out, x, "x");
  check_apart(op, "out", *out, first, "first");
  check_no_partial_overlap(op, "new", fresh, *out, "out");
  check_no_partial_overlap(op, "last", last, *out, "out");
}

}  // namespace fastscore
