#include "capability.h"

#include <cstdlib>
#include <stdexcept>

namespace fastscore {
namespace {

bool runs(Capability which) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (which == Capability::kAvx2) return avx2;
  if (which == Capability::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
  return true;
}

Capability choose() {
  const char* wish = std::getenv("FASTSCORE_CPU_CAPABILITY");
  for (Capability which : {Capability::kAvx512, Capability::kAvx2, Capability::kDefault}) {
    const bool named = wish && *wish && capability_name(which) == std::string(wish);
    if (named && !runs(which)) {
      throw std::invalid_argument(std::string("FASTSCORE_CPU_CAPABILITY=") + wish +
                                  ": this machine does not have that instruction set");
    }
    if (named || ((!wish || !*wish) && runs(which))) return which;
  }
  throw std::invalid_argument(std::string("FASTSCORE_CPU_CAPABILITY must be default, avx2 or "
                                          "avx512, got ") +
                              wish);
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

const char* capability_name(Capability which) {
  switch (which) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

std::vector<std::string> available_capabilities() {
  std::vector<std::string> names;
  for (Capability which : {Capability::kDefault, Capability::kAvx2, Capability::kAvx512}) {
    if (runs(which)) names.emplace_back(capability_name(which));
  }
  return names;
}

}  // namespace fastscore
