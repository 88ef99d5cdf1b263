// CPU side of the family `langevin`.
#include <algorithm>
#include <limits>
#include <vector>

#include "checks.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/noise.h"
#include "langevin_checks.h"

namespace fastscore {
namespace {

// The table's row of a draw; past the end, the last one.
const double* row_of(const Tensor& table, int64_t draw) {
  const int64_t row = std::clamp<int64_t>(draw, 0, table.size(0) - 1);
  return table.const_data_ptr<double>() + row * (table.dim() == 3 ? table.size(1) : 1) * 4;
}

// The rows of samples that have draws of their own, one after the other; or none where all have the
// same.
std::vector<double> rows_of(const Tensor& table, const Tensor& keys) {
  const int64_t batch = keys.size(0), stride = keys.stride(0), own = table.dim() == 3 ? 4 : 0;
  const int64_t* draws = keys.const_data_ptr<int64_t>() + keys.stride(1);
  const double* first = table.const_data_ptr<double>();
  const int64_t last = table.size(0) - 1, row_size = own ? table.size(1) * 4 : 4;
  const auto row_at = [&](int64_t i) { return std::clamp<int64_t>(draws[i * stride], 0, last); };
  bool same = true;
  for (int64_t i = 1; i < batch; ++i) same &= row_at(i) == row_at(0);
  if (same) return {};
  std::vector<double> rows(4 * batch);
  for (int64_t i = 0; i < batch; ++i) {
    std::copy_n(first + row_at(i) * row_size + i * own, 4, rows.begin() + 4 * i);
  }
  return rows;
}

bool asks_for_noise(const LangevinArgs& args) {
  for (int64_t i = 0; i < args.batch_rows; ++i) {
    if (args.rows[4 * i + 2] != 0 || (args.mask && args.rows[4 * i + 3] != 0)) return true;
  }
  return false;
}

void step(const char* op, const Tensor& x, const Tensor& score, const Tensor& table,
          const Tensor& key, const std::optional<Tensor>& known, const std::optional<Tensor>& mask,
          std::optional<double> low, std::optional<double> high, int64_t sample_offset,
          const std::optional<Tensor>& samples, const Tensor& out) {
  check_langevin(op, x, score, table, key, known, mask, low, high, sample_offset, samples);
  const Noise noise(op, key, Stream::kLangevin, sample_offset, samples, batch_size(x),
                    sample_size(x));
  if (x.numel() == 0) return;
  LangevinArgs args;
  args.out = make_view(op, "out", out);
  args.x = make_view(op, "x", x);
  args.score = make_view(op, "score", score);
  std::optional<Tensor> dense_mask;
  if (mask) dense_mask = torch::stable::contiguous(*mask);
  args.mask =
      dense_mask ? reinterpret_cast<const uint8_t*>(dense_mask->const_data_ptr<bool>()) : nullptr;
  if (known) args.known = make_view(op, "known", *known);
  std::vector<double> own_rows;
  args.rows = row_of(table, key.const_data_ptr<int64_t>()[key.stride(key.dim() - 1)]);
  args.batch_rows = table.dim() == 3 ? batch_size(x) : 1;
  if (key.dim() == 2) own_rows = rows_of(table, key);
  if (!own_rows.empty()) {
    args.rows = own_rows.data();
    args.batch_rows = batch_size(x);
  }
  args.noisy = asks_for_noise(args);
  args.sample_size = sample_size(x);
  args.clamp = low || high;
  args.low = low.value_or(-std::numeric_limits<double>::infinity());
  args.high = high.value_or(std::numeric_limits<double>::infinity());
  noise.run(FASTSCORE_BEST(langevin_step), args);
}

void langevin_step_(Tensor x, const Tensor& score, const Tensor& table, const Tensor& key,
                    std::optional<Tensor> known, std::optional<Tensor> mask,
                    std::optional<double> low, std::optional<double> high, int64_t sample_offset,
                    std::optional<Tensor> samples) {
  check_writable("langevin_step_", "x", x);
  check_no_partial_overlap("langevin_step_", "score", score, x, "x");
  if (known) check_no_partial_overlap("langevin_step_", "known", *known, x, "x");
  step("langevin_step_", x, score, table, key, known, mask, low, high, sample_offset, samples, x);
}

Tensor langevin_step(const Tensor& x, const Tensor& score, const Tensor& table, const Tensor& key,
                     std::optional<Tensor> known, std::optional<Tensor> mask,
                     std::optional<double> low, std::optional<double> high, int64_t sample_offset,
                     std::optional<Tensor> samples) {
  Tensor out = new_like(x);
  step("langevin_step", x, score, table, key, known, mask, low, high, sample_offset, samples, out);
  return out;
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("langevin_step_", TORCH_BOX(&fastscore::langevin_step_));
  m.impl("langevin_step", TORCH_BOX(&fastscore::langevin_step));
}
