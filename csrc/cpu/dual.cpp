// CPU side of the family `dual`.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "dual_ops.h"

namespace fastscore {
namespace {

void run_dual(const Tensor&, const DualArgs& args, DualPass pass) {
  if (args.numel == 0) return;
  const auto run = [&](void (*kernel)(const DualArgs&, TileRange)) {
    run_range(kernel, args, tiles_of(0, args.numel), 1 + args.tangents);
  };
  switch (pass) {
    case DualPass::kForward:
      return run(FASTSCORE_BEST(dual_forward));
    case DualPass::kBackward:
      return run(FASTSCORE_BEST(dual_backward));
    case DualPass::kSlope:
      return run(FASTSCORE_BEST(slope_forward));
    case DualPass::kSlopeBackward:
      return run(FASTSCORE_BEST(slope_backward));
  }
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) { FASTSCORE_IMPL_DUAL(m, fastscore::run_dual); }
