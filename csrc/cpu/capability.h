// Which instruction set the CPU kernels use.
#pragma once

#include <string>
#include <vector>

namespace fastscore {

enum class Capability { kDefault, kAvx2, kAvx512 };

// The best that this machine offers, or what FASTSCORE_CPU_CAPABILITY (default, avx2 or avx512)
// asks for. Read once. Throws std::invalid_argument for a name or a machine that does not fit.
Capability capability();
const char* capability_name(Capability which);
// The names that this machine can run, the plainest first.
std::vector<std::string> available_capabilities();

// The kernel of the instruction set in use: one pointer of a family's three.
template <class Kernel>
Kernel* best_of(Kernel* plain, Kernel* avx2, Kernel* avx512) {
  switch (capability()) {
    case Capability::kAvx512:
      return avx512;
    case Capability::kAvx2:
      return avx2;
    default:
      return plain;
  }
}

#define FASTSCORE_BEST(kernel) best_of(&cpu_default::kernel, &cpu_avx2::kernel, &cpu_avx512::kernel)

}  // namespace fastscore
