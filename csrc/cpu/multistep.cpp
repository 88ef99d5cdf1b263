// CPU side of the family `multistep`.
#include "cpu/capability.h"
#include "cpu/steps.h"
#include "multistep_checks.h"

namespace fastscore {
namespace {

void multistep_step_(Tensor x, Tensor history, const Tensor& score, const Tensor& table,
                     const Tensor& key, std::optional<Tensor> known, std::optional<Tensor> mask,
                     std::optional<double> low, std::optional<double> high,
                     std::optional<double> clip_low, std::optional<double> clip_high,
                     int64_t sample_offset, std::optional<Tensor> samples,
                     std::optional<Tensor> second, std::optional<Tensor> weights) {
  const char* op = "multistep_step_";
  const StepInputs in{x,   score, table,         key,     known,  mask,
                      low, high,  sample_offset, samples, second, weights};
  check_multistep(op, in, history, clip_low, clip_high);
  const Noise noise(op, key, Stream::kLangevin, sample_offset, samples, batch_size(x),
                    sample_size(x));
  if (x.numel() == 0) return;
  MultistepArgs args;
  const StepReader reader(op, in, x, args);
  args.history = make_view(op, "history", history);
  args.clip = clip_low || clip_high;
  args.clip_low = clip_low.value_or(-std::numeric_limits<double>::infinity());
  args.clip_high = clip_high.value_or(std::numeric_limits<double>::infinity());
  noise.run(FASTSCORE_BEST(multistep_step), args);
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("multistep_step_", TORCH_BOX(&fastscore::multistep_step_));
}
