// What the ops of the family `dual` ask of their arguments, on every device.
#pragma once

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

inline void check_dual(const char* op, const Tensor& h, const Tensor& hdot, int64_t activation) {
  check_dual_dtype(op, "h", h);
  check_activation(op, activation);
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
  check_dual_dtype(op, "h", h);
  check_activation(op, activation);
  if (h.dim() < 1 || h.size(0) < 1) {
    fail(op, "h", "of shape (1 + tangents, ...), got ", describe(h));
  }
}

// Whether x's slices x[0], x[1], ... lie one after the other in memory, each without a hole and in
// some order of its dimensions: a channels_last tensor for example.
inline bool has_dense_slices(const Tensor& x) {
  if (x.is_contiguous()) return true;
  const int64_t dims = x.dim();
  const auto sizes = x.sizes(), strides = x.strides();
  int64_t slice = 1;
  for (int64_t d = 1; d < dims; ++d) slice *= sizes[d];
  if (sizes[0] > 1 && strides[0] != slice) return false;
  // The dimension of stride 1, then the one whose stride is what the first spans, and so on.
  int64_t span = 1;
  while (span < slice) {
    int64_t next = 0;
    for (int64_t d = 1; d < dims && !next; ++d) {
      if (sizes[d] > 1 && strides[d] == span) next = d;
    }
    if (!next) return false;
    span *= sizes[next];
  }
  return true;
}

// Whether the dimensions of `like` lie in memory as x's last ones do.
inline bool same_strides(const Tensor& x, const Tensor& like) {
  const int64_t lead = x.dim() - like.dim();
  for (int64_t d = 0; d < like.dim(); ++d) {
    if (like.size(d) > 1 && like.stride(d) != x.stride(lead + d)) return false;
  }
  return true;
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
