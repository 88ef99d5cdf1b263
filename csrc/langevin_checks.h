// What a step asks of its arguments, on every device: langevin_step, langevin_step_ and
// multistep_step_.
#pragma once

#include <limits>

#include "checks.h"

namespace fastscore {

// What all steps take.
struct StepInputs {
  const Tensor &x, &score, &table, &key;
  const std::optional<Tensor>&known, &mask;
  std::optional<double> low, high;
  int64_t sample_offset;
  const std::optional<Tensor>&samples, &second, &weights;
};

// Of a row of langevin_step: a, b, c, k, and where there are six m, u.
inline int64_t langevin_columns(const char* op, const Tensor& table) {
  const int64_t dim = table.dim(), columns = dim > 0 ? table.size(dim - 1) : 0;
  if (columns != 4 && columns != 6) {
    fail(op, "table",
         "a contiguous float64 tensor of shape (rows, [batch, ] 4) or (rows, [batch, "
         "] 6), got ",
         describe(table));
  }
  return columns;
}

// Both or neither.
inline void check_pair(const char* op, const char* first, const std::optional<Tensor>& one,
                       const char* second, const std::optional<Tensor>& other) {
  if (one.has_value() != other.has_value()) {
    fail(op, one ? second : first, "given together with ", one ? first : second, ", got None");
  }
}

// (low, high) bounds.
inline void check_limits(const char* op, const char* arg, std::optional<double> low,
                         std::optional<double> high) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double bottom = low.value_or(-infinity), top = high.value_or(infinity);
  if (!(bottom <= top)) {
    fail(op, arg, "(low, high) with low <= high, got (", bottom, ", ", top, ")");
  }
}

inline void check_score(const char* op, const Tensor& x, const Tensor& score) {
  check_same_shape(op, "score", score, x, "x");
  check_same_device(op, "score", score, x, "x");
  check_data(op, "score", score);
  if (score.scalar_type() != x.scalar_type() &&
      (x.scalar_type() != ScalarType::Float || score.scalar_type() == ScalarType::Double)) {
    fail(op, "score", "of x's dtype (or of half precision when x is float32), got ",
         describe(score), " for x, ", describe(x));
  }
}

// The second term of the score, and the weights of both.
inline void check_second(const char* op, const StepInputs& in) {
  check_pair(op, "second", in.second, "weights", in.weights);
  if (!in.second) return;
  const Tensor &second = *in.second, &weights = *in.weights;
  check_same_shape(op, "second", second, in.score, "score");
  check_same_dtype(op, "second", second, in.score, "score");
  check_same_device(op, "second", second, in.score, "score");
  const int64_t dim = weights.dim(), batch = batch_size(in.x);
  const bool fits = (dim == 1 || (dim == 2 && weights.size(0) == batch)) &&
                    weights.size(dim - 1) == 2 && weights.scalar_type() == ScalarType::Double;
  if (!fits) {
    fail(op, "weights", "a float64 tensor of shape (2,) or (", batch, ", 2), got ",
         describe(weights));
  }
  check_same_device(op, "weights", weights, in.x, "x");
}

inline void check_step(const char* op, const StepInputs& in, int64_t columns) {
  const Tensor &x = in.x, &table = in.table;
  check_data(op, "x", x);
  check_score(op, x, in.score);
  check_table(op, table, columns, x, 3);
  if (table.dim() == 3 && table.size(1) != x.size(0)) {
    fail(op, "table", "of shape (rows, ", columns, ") or (rows, ", x.size(0), ", ", columns,
         "), got ", describe(table));
  }
  check_key(op, in.key, x);
  check_pair(op, "known", in.known, "mask", in.mask);
  if (in.known) {
    const Tensor &known = *in.known, &mask = *in.mask;
    check_same_shape(op, "known", known, x, "x");
    check_same_dtype(op, "known", known, x, "x");
    check_same_device(op, "known", known, x, "x");
    check_same_shape(op, "mask", mask, x, "x");
    check_same_device(op, "mask", mask, x, "x");
    if (mask.scalar_type() != ScalarType::Bool) {
      fail(op, "mask", "a bool tensor, got ", describe(mask));
    }
  }
  check_limits(op, "clamp", in.low, in.high);
  check_numbers(op, in.sample_offset, in.samples, in.key, x);
  check_second(op, in);
}

// Of a step that writes to `out`, x or the history: what else it reads lies apart from that.
inline void check_in_place(const char* op, const StepInputs& in, const Tensor& out,
                           const char* out_name) {
  check_writable(op, out_name, out);
  check_no_partial_overlap(op, "score", in.score, out, out_name);
  if (in.known) check_no_partial_overlap(op, "known", *in.known, out, out_name);
  if (in.second) check_no_partial_overlap(op, "second", *in.second, out, out_name);
}

}  // namespace fastscore
