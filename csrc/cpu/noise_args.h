// Reading a key tensor that lies in host memory.
#pragma once

#include "checks.h"
#include "cpu/kernels.h"

namespace fastscore {

inline NoiseArgs noise_args(const Tensor& key, Stream stream, int64_t origin) {
  const int64_t* words = key.const_data_ptr<int64_t>();
  return {words[0], words[1], stream, origin};
}

}  // namespace fastscore
