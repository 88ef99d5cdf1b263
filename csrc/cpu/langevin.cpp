// CPU side of the family `langevin`.
#include "checks.h"
#include "cpu/capability.h"
#include "cpu/steps.h"

namespace fastscore {
namespace {

void step(const char* op, const StepInputs& in, const Tensor& out) {
  check_step(op, in, langevin_columns(op, in.table));
  const Noise noise(op, in.key, Stream::kLangevin, in.sample_offset, in.samples, batch_size(in.x),
                    sample_size(in.x));
  if (in.x.numel() == 0) return;
  LangevinArgs args;
  const StepReader reader(op, in, out, args);
  noise.run(FASTSCORE_BEST(langevin_step), args);
}

void langevin_step_(Tensor x, const Tensor& score, const Tensor& table, const Tensor& key,
                    std::optional<Tensor> known, std::optional<Tensor> mask,
                    std::optional<double> low, std::optional<double> high, int64_t sample_offset,
                    std::optional<Tensor> samples, std::optional<Tensor> second,
                    std::optional<Tensor> weights) {
  const StepInputs in{x,   score, table,         key,     known,  mask,
                      low, high,  sample_offset, samples, second, weights};
  check_in_place("langevin_step_", in, x, "x");
  step("langevin_step_", in, x);
}

Tensor langevin_step(const Tensor& x, const Tensor& score, const Tensor& table, const Tensor& key,
                     std::optional<Tensor> known, std::optional<Tensor> mask,
                     std::optional<double> low, std::optional<double> high, int64_t sample_offset,
                     std::optional<Tensor> samples, std::optional<Tensor> second,
                     std::optional<Tensor> weights) {
  Tensor out = new_like(x);
  step("langevin_step",
       {x, score, table, key, known, mask, low, high, sample_offset, samples, second, weights},
       out);
  return out;
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("langevin_step_", TORCH_BOX(&fastscore::langevin_step_));
  m.impl("langevin_step", TORCH_BOX(&fastscore::langevin_step));
}
