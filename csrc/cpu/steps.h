// What the CPU sides of the families `langevin` and `multistep` have in common: from arguments to
// what the kernels take.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/noise.h"
#include "langevin_checks.h"

namespace fastscore {

// What the kernels read, and the memory of what is not as it was given.
class StepReader {
 public:
  // Fills in what does not hang on the noise, of a step with elements.
  StepReader(const char* op, const StepInputs& in, const Tensor& out, LangevinArgs& args) {
    const Tensor &x = in.x, &table = in.table, &key = in.key;
    args.out = make_view(op, "out", out);
    args.x = read_view(op, "x", x);
    args.score = read_view(op, "score", in.score);
    if (in.mask) mask_ = torch::stable::contiguous(*in.mask);
    args.mask = mask_ ? reinterpret_cast<const uint8_t*>(mask_->const_data_ptr<bool>()) : nullptr;
    if (in.known) args.known = read_view(op, "known", *in.known);
    args.columns = table.size(table.dim() - 1);
    args.rows = row_of(table, key.const_data_ptr<int64_t>()[key.stride(key.dim() - 1)]);
    args.batch_rows = table.dim() == 3 ? batch_size(x) : 1;
    if (key.dim() == 2) own_rows_ = rows_of(table, key);
    if (!own_rows_.empty()) {
      args.rows = own_rows_.data();
      args.batch_rows = batch_size(x);
    }
    args.noisy = asks_for_noise(args);
    args.sample_size = sample_size(x);
    args.clamp = in.low || in.high;
    args.low = in.low.value_or(-std::numeric_limits<double>::infinity());
    args.high = in.high.value_or(std::numeric_limits<double>::infinity());
    args.weights = nullptr;
    if (!in.second) return;
    args.second = read_view(op, "second", *in.second);
    args.weights = in.weights->const_data_ptr<double>();
    args.weights_stride = in.weights->stride(in.weights->dim() - 1);
    args.weights_step = in.weights->dim() == 2 ? in.weights->stride(0) : 0;
  }

 private:
  // The table's row of a draw; past the end, the last one.
  static const double* row_of(const Tensor& table, int64_t draw) {
    const int64_t row = std::clamp<int64_t>(draw, 0, table.size(0) - 1), dim = table.dim();
    return table.const_data_ptr<double>() +
           row * (dim == 3 ? table.size(1) : 1) * table.size(dim - 1);
  }

  // The rows of samples that have draws of their own, one after the other; or none where all have
  // the same.
  static std::vector<double> rows_of(const Tensor& table, const Tensor& keys) {
    const int64_t batch = keys.size(0), stride = keys.stride(0);
    const int64_t columns = table.size(table.dim() - 1), own = table.dim() == 3 ? columns : 0;
    const int64_t* draws = keys.const_data_ptr<int64_t>() + keys.stride(1);
    const double* first = table.const_data_ptr<double>();
    const int64_t last = table.size(0) - 1, row_size = own ? table.size(1) * columns : columns;
    const auto row_at = [&](int64_t i) { return std::clamp<int64_t>(draws[i * stride], 0, last); };
    bool same = true;
    for (int64_t i = 1; i < batch; ++i) same &= row_at(i) == row_at(0);
    if (same) return {};
    std::vector<double> rows(columns * batch);
    for (int64_t i = 0; i < batch; ++i) {
      std::copy_n(first + row_at(i) * row_size + i * own, columns, rows.begin() + columns * i);
    }
    return rows;
  }

  static bool asks_for_noise(const LangevinArgs& args) {
    for (int64_t i = 0; i < args.batch_rows; ++i) {
      const double* row = args.rows + args.columns * i;
      if (row[2] != 0 || (args.mask && row[3] != 0)) return true;
    }
    return false;
  }

  std::optional<Tensor> mask_;
  std::vector<double> own_rows_;
};

}  // namespace fastscore
