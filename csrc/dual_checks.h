// What the ops of the family `dual` ask of their arguments, on every device.
#pragma once

#include <initializer_list>

#include "checks.h"
#include "core/activations.h"

namespace fastscore {

inline void check_activation(const char* op, int64_t activation) {
  if (activation < 0 || activation >= kActivations) {
    fail(op, "activation", "a number below ", kActivations, ", got ", activation);
  }
}

inline void check_dual_dtype(const char* op, const char* arg, const Tensor& x) {
  const ScalarType t = x.scalar_type();
  if (t != ScalarType::Float && t != ScalarType::Double && t != ScalarType::BFloat16 &&
      t != ScalarType::Half) {
    fail(op, arg, "float32, float64, bfloat16 or float16, got ", describe(x));
  }
}

inline void check_like(const char* op, const char* arg, const Tensor& x, const Tensor& like,
                       const char* like_name) {
  check_same_shape(op, arg, x, like, like_name);
  check_same_dtype(op, arg, x, like, like_name);
  check_same_device(op, arg, x, like, like_name);
}

inline void check_dual_slope(const char* op, const Tensor& h, int64_t activation) {
  check_dual_dtype(op, "h", h);
  check_activation(op, activation);
}

inline void check_dual(const char* op, const Tensor& h, const Tensor& hdot, int64_t activation) {
  check_dual_slope(op, h, activation);
  bool fits = hdot.dim() == h.dim() + 1;
  for (int64_t d = 0; fits && d < h.dim(); ++d) fits = hdot.size(d + 1) == h.size(d);
  if (!fits) {
    fail(op, "hdot", "of shape (tangents, *h.shape), got ", describe(hdot), " for h, ",
         describe(h));
  }
  check_same_dtype(op, "hdot", hdot, h, "h");
  check_same_device(op, "hdot", hdot, h, "h");
}

inline void check_dual_stacked(const char* op, const Tensor& h, int64_t activation) {
  check_dual_slope(op, h, activation);
  if (h.dim() < 1 || h.size(0) < 1) {
    fail(op, "h", "of shape (1 + tangents, ...), got ", describe(h));
  }
}

// Whether x's slices x[0], x[1], ... lie one after the other in memory, each dense.
inline bool has_dense_slices(const Tensor& x) {
  if (x.is_contiguous()) return true;
  int64_t slice = 1;
  for (int64_t d = 1; d < x.dim(); ++d) slice *= x.size(d);
  return (x.size(0) <= 1 || x.stride(0) == slice) && is_dense(x, 1);
}

// Elementwise work may follow the order of memory where all tensors share it.
inline bool share_order(const Tensor& h, const Tensor& hdot, const Tensor& value,
                        const Tensor& out) {
  return has_dense_slices(hdot) && same_strides(hdot, h) && same_strides(value, h) &&
         same_strides(out, hdot);
}

// The same of tensors of h's shape.
inline bool share_order(const Tensor& h, std::initializer_list<const Tensor*> others) {
  bool shared = h.is_contiguous() || is_dense(h, 0);
  for (const Tensor* other : others) shared = shared && same_strides(*other, h);
  return shared;
}

// The tensor's view; when `flat`, with its elements in the order of memory.
inline View ordered_view(const char* op, const char* arg, const Tensor& x, bool flat) {
  View view = make_view(op, arg, x);
  if (flat) {
    view.ndim = 1;
    view.sizes[0] = x.numel();
    view.strides[0] = 1;
  }
  return view;
}

}  // namespace fastscore
