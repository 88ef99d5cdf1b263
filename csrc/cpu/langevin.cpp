// CPU side of the family `langevin`.
#include <limits>

#include "checks.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/noise_args.h"
#include "cpu/parallel.h"
#include "langevin_checks.h"

namespace fastscore {
namespace {

void step(const char* op, const Tensor& x, const Tensor& score, const Tensor& table,
          const Tensor& key, const std::optional<Tensor>& known, const std::optional<Tensor>& mask,
          std::optional<double> low, std::optional<double> high, int64_t sample_offset,
          const Tensor& out) {
  check_langevin(op, x, score, table, key, known, mask, low, high, sample_offset);
  LangevinArgs args;
  args.noise = noise_args(key, Stream::kLangevin, sample_offset * sample_size(x));
  args.out = make_view(op, "out", out);
  args.x = make_view(op, "x", x);
  args.score = make_view(op, "score", score);
  std::optional<Tensor> dense_mask;
  if (mask) dense_mask = torch::stable::contiguous(*mask);
  args.mask =
      dense_mask ? reinterpret_cast<const uint8_t*>(dense_mask->const_data_ptr<bool>()) : nullptr;
  if (known) args.known = make_view(op, "known", *known);
  args.batch_rows = table.dim() == 3 ? table.size(1) : 1;
  const int64_t last = table.size(0) - 1;
  const int64_t row = args.noise.draw < 0 ? 0 : (args.noise.draw < last ? args.noise.draw : last);
  args.rows = table.const_data_ptr<double>() + row * args.batch_rows * 4;
  args.numel = x.numel();
  args.sample_size = sample_size(x);
  args.clamp = low || high;
  args.low = low.value_or(-std::numeric_limits<double>::infinity());
  args.high = high.value_or(std::numeric_limits<double>::infinity());
  run_tiles(FASTSCORE_BEST(langevin_step), args);
}

void langevin_step_(Tensor x, const Tensor& score, const Tensor& table, const Tensor& key,
                    std::optional<Tensor> known, std::optional<Tensor> mask,
                    std::optional<double> low, std::optional<double> high, int64_t sample_offset) {
  check_writable("langevin_step_", "x", x);
  check_no_partial_overlap("langevin_step_", "score", score, x, "x");
  if (known) check_no_partial_overlap("langevin_step_", "known", *known, x, "x");
  step("langevin_step_", x, score, table, key, known, mask, low, high, sample_offset, x);
}

Tensor langevin_step(const Tensor& x, const Tensor& score, const Tensor& table, const Tensor& key,
                     std::optional<Tensor> known, std::optional<Tensor> mask,
                     std::optional<double> low, std::optional<double> high, int64_t sample_offset) {
  Tensor out = new_like(x);
  step("langevin_step", x, score, table, key, known, mask, low, high, sample_offset, out);
  return out;
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("langevin_step_", TORCH_BOX(&fastscore::langevin_step_));
  m.impl("langevin_step", TORCH_BOX(&fastscore::langevin_step));
}
