// What random numbers are for: the fourth counter word. _support/streams.py has the same list.
#pragma once

#include <stdint.h>

namespace fastscore {

enum class Stream : uint32_t {
  kUser = 0,
  kLangevin = 1,
  kPerturb = 2,
  kProjection = 3,
  kLabel = 4,
  kInit = 5,
  kTime = 6,
  kDrop = 7,
  kDequantize = 8,
  kMeasure = 9,
};

}  // namespace fastscore
