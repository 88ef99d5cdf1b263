// CUDA side of the family `multistep`.
#include "cuda/steps.cuh"
#include "multistep_checks.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

struct Multistep {
  static constexpr bool kHistory = true;
};

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
  if (x.numel() == 0) return;
  const Launcher launch(x);
  const Noise noise(key, Stream::kLangevin, sample_offset, samples, sample_size(x));
  StepViews v(op, in, x);
  v.history = make_view(op, "history", history);
  with_state_and_score(v, [&](auto s, auto r) {
    run_full_step<Multistep, decltype(s), decltype(r)>(launch, in, noise, v, [&](auto& tensors) {
      using T = Compute<decltype(s)>;
      tensors.clip = clip_low || clip_high;
      tensors.clip_low = bound_or<T>(clip_low, -kInfinity);
      tensors.clip_high = bound_or<T>(clip_high, kInfinity);
    });
  });
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

FASTSCORE_CUDA_OPS(m) {
  m.impl("multistep_step_", TORCH_BOX(&fastscore::FASTSCORE_ISA::multistep_step_));
}
