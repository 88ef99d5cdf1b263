// A tensor as the kernels see it: a pointer, an element type, and how a flat (C-order) index maps
// to memory. Plain data, shared by host and device.
#pragma once

#include <stdint.h>

namespace fastscore {

enum class DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int kMaxDims = 12;

// Dimensions merged where memory allows: a contiguous tensor, and one with any single stride, has
// ndim == 1.
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int32_t ndim = 1;
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxDims];  // in elements

  __attribute__((always_inline)) bool contiguous() const { return ndim == 1 && strides[0] == 1; }
};

}  // namespace fastscore
