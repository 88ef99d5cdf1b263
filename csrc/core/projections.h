// The distributions of projection vectors v, all with E[v v'] = I; fastscore/ops/sliced.py has the
// same list.
#pragma once

#include <stdint.h>

namespace fastscore {

enum class Projection : int32_t {
  kRademacher,  // +1 or -1 at equal odds
  kGaussian,    // standard normal
  kSphere,      // uniform on the sphere of radius sqrt(d): sqrt(d) g / |g|, g standard normal
};
constexpr int32_t kProjections = 3;

}  // namespace fastscore
