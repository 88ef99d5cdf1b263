// The numbers of the activations; fastscore/ops/dual.py has the same list.
#pragma once

#include <stdint.h>

namespace fastscore {

enum class Activation : int32_t {
  kSoftplus,
  kSilu,
  kTanh,
  kSigmoid,
  kElu,
  kGelu,
  kGeluTanh,
  kRelu,
  kLeakyRelu,
};
constexpr int32_t kActivations = 9;

}  // namespace fastscore
