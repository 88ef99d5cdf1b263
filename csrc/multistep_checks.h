// What multistep_step_ asks of its arguments besides, on every device.
#pragma once

#include "langevin_checks.h"

namespace fastscore {

// Columns a, b, c, k, m, u, h, d, e, r.
constexpr int64_t kMultistepColumns = 10;

inline void check_multistep(const char* op, const StepInputs& in, const Tensor& history,
                            std::optional<double> clip_low, std::optional<double> clip_high) {
  check_step(op, in, kMultistepColumns);
  check_same_shape(op, "history", history, in.x, "x");
  check_same_dtype(op, "history", history, in.x, "x");
  check_same_device(op, "history", history, in.x, "x");
  check_limits(op, "clip", clip_low, clip_high);
  check_in_place(op, in, in.x, "x");
  check_in_place(op, in, history, "history");
  check_no_partial_overlap(op, "history", history, in.x, "x");
  if (in.x.numel() > 0 && history.data_ptr() == in.x.data_ptr()) {
    fail(op, "history", "apart from x in memory, got the same memory");
  }
}

}  // namespace fastscore
