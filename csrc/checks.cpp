#include "checks.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <vector>

namespace fastscore {
namespace {

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    default:
      return "other dtype";
  }
}

std::string shape_of(const Tensor& x) {
  std::ostringstream out;
  out << "(";
  for (int64_t d = 0; d < x.dim(); ++d) out << (d ? ", " : "") << x.size(d);
  out << (x.dim() == 1 ? ",)" : ")");
  return out.str();
}

std::string device_of(const Tensor& x) {
  if (x.is_cpu()) return "cpu";
  if (x.is_cuda()) return "cuda:" + std::to_string(x.get_device_index());
  return "another device";
}

}  // namespace

std::string describe(const Tensor& x) {
  return std::string("a ") + dtype_name(x.scalar_type()) + " tensor of shape " + shape_of(x) +
         " on " + device_of(x);
}

bool same_shape(const Tensor& a, const Tensor& b) {
  const auto sizes_a = a.sizes(), sizes_b = b.sizes();
  if (sizes_a.size() != sizes_b.size()) return false;
  for (size_t d = 0; d < sizes_a.size(); ++d) {
    if (sizes_a[d] != sizes_b[d]) return false;
  }
  return true;
}

void check_data(const char* op, const char* arg, const Tensor& x) {
  const ScalarType t = x.scalar_type();
  if (t != ScalarType::Float && t != ScalarType::Double && t != ScalarType::BFloat16 &&
      t != ScalarType::Half) {
    fail(op, arg, "float32, float64, bfloat16 or float16, got ", describe(x));
  }
  if (x.dim() < 1) fail(op, arg, "a tensor whose first dimension is the batch, got ", describe(x));
}

void check_same_device(const char* op, const char* arg, const Tensor& x, const Tensor& like,
                       const char* like_name) {
  if (x.is_cpu() != like.is_cpu() || x.get_device_index() != like.get_device_index()) {
    fail(op, arg, "on ", device_of(like), " like ", like_name, ", got ", describe(x));
  }
}

void check_same_shape(const char* op, const char* arg, const Tensor& x, const Tensor& like,
                      const char* like_name) {
  if (!same_shape(x, like)) {
    fail(op, arg, "of shape ", shape_of(like), " like ", like_name, ", got shape ", shape_of(x));
  }
}

void check_same_dtype(const char* op, const char* arg, const Tensor& x, const Tensor& like,
                      const char* like_name) {
  if (x.scalar_type() != like.scalar_type()) {
    fail(op, arg, dtype_name(like.scalar_type()), " like ", like_name, ", got ",
         dtype_name(x.scalar_type()));
  }
}

void check_key(const char* op, const Tensor& key, const Tensor& like, int64_t batch) {
  const int64_t dims = key.dim();
  const bool one = dims == 1 && key.size(0) == 2 && key.stride(0) == 1;
  const bool each = dims == 2 && key.size(0) == batch && key.size(1) == 2;
  if (!(one || each) || key.scalar_type() != ScalarType::Long) {
    fail(op, "key", "a contiguous int64 tensor [seed, draw] (see fastscore.random.key), or (",
         batch, ", 2) for a key of each sample's own, got ", describe(key));
  }
  check_same_device(op, "key", key, like, "the data");
}

void check_key(const char* op, const Tensor& key, const Tensor& like) {
  check_key(op, key, like, batch_size(like));
}

void check_stream(const char* op, int64_t stream) {
  if (stream < 0 || stream > 0xffffffffll) {
    fail(op, "stream", "a 32-bit stream number (see fastscore.random.Stream), got ", stream);
  }
}

void check_numbers(const char* op, int64_t sample_offset, const std::optional<Tensor>& samples,
                   const Tensor& key, const Tensor& like, int64_t batch, int64_t size) {
  if (sample_offset < 0) fail(op, "sample_offset", "at least 0, got ", sample_offset);
  int64_t last, end;
  if (__builtin_add_overflow(sample_offset, batch, &last) ||
      __builtin_mul_overflow(last, std::max<int64_t>(size, 1), &end) ||
      __builtin_add_overflow(end, int64_t{1} << 20, &end)) {
    fail(op, "sample_offset", "such that every flat index fits 63 bits, got ", sample_offset,
         " with ", batch, " samples of ", size, " elements");
  }
  if (sample_offset != 0 && (samples || key.dim() == 2)) {
    fail(op, "sample_offset", "0 where ", samples ? "samples" : "keys (batch, 2)",
         " are given, got ", sample_offset);
  }
  if (!samples) return;
  if (samples->scalar_type() != ScalarType::Long || samples->dim() != 1 ||
      samples->size(0) != batch) {
    fail(op, "samples", "an int64 tensor of shape (", batch, ",), got ", describe(*samples));
  }
  check_same_device(op, "samples", *samples, like, "the data");
  if (key.dim() == 2) {
    fail(op, "samples", "None where keys (batch, 2) are given, got ", describe(*samples));
  }
}

void check_numbers(const char* op, int64_t sample_offset, const std::optional<Tensor>& samples,
                   const Tensor& key, const Tensor& x) {
  check_numbers(op, sample_offset, samples, key, x, batch_size(x), sample_size(x));
}

void check_writable(const char* op, const char* arg, const Tensor& x) {
  if (x.numel() == 0) return;
  const auto sizes = x.sizes(), strides = x.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] > 1 && strides[d] == 0) {
      fail(op, arg, "a tensor whose elements have memory of their own (not an expanded one), got ",
           describe(x), " with stride 0 in dimension ", d);
    }
  }
}

bool is_dense(const Tensor& x, int64_t first) {
  const int64_t dims = x.dim();
  const auto sizes = x.sizes(), strides = x.strides();
  int64_t whole = 1;
  for (int64_t d = first; d < dims; ++d) whole *= sizes[d];
  // The dimension of stride 1, then the one whose stride is what the first spans, and so on.
  int64_t span = 1;
  while (span < whole) {
    int64_t next = first;
    while (next < dims && !(sizes[next] > 1 && strides[next] == span)) ++next;
    if (next == dims) return false;
    span *= sizes[next];
  }
  return true;
}

bool same_strides(const Tensor& x, const Tensor& like) {
  const int64_t lead = x.dim() - like.dim();
  for (int64_t d = 0; d < like.dim(); ++d) {
    if (like.size(d) > 1 && like.stride(d) != x.stride(lead + d)) return false;
  }
  return true;
}

namespace {

// Whether two tensors share memory, as far as can be said: views with holes may lie between each
// other's elements.
bool share_memory(const Tensor& x, const Tensor& out) {
  if (!x.is_contiguous() && !is_dense(x, 0)) return false;
  if (!out.is_contiguous() && !is_dense(out, 0)) return false;
  const char* b = static_cast<const char*>(out.data_ptr());
  const char* a = static_cast<const char*>(x.const_data_ptr());
  return a < b + out.numel() * static_cast<int64_t>(out.element_size()) &&
         b < a + x.numel() * static_cast<int64_t>(x.element_size());
}

}  // namespace

void check_no_partial_overlap(const char* op, const char* arg, const Tensor& x, const Tensor& out,
                              const char* out_name) {
  // In this order: what is written may move, from memory that it shares until then.
  const void* begin = out.data_ptr();
  const bool same =
      x.const_data_ptr() == begin && x.scalar_type() == out.scalar_type() && same_strides(x, out);
  if (!same && share_memory(x, out)) {
    fail(op, arg, "apart from ", out_name, " in memory or exactly the same, got an overlap");
  }
}

void check_apart(const char* op, const char* arg, const Tensor& x, const Tensor& out,
                 const char* out_name) {
  if (share_memory(x, out)) fail(op, arg, "apart from ", out_name, " in memory, got an overlap");
}

void check_table(const char* op, const Tensor& table, int64_t columns, const Tensor& like,
                 int64_t most_dims) {
  const int64_t dim = table.dim();
  if (table.scalar_type() != ScalarType::Double || dim < 2 || dim > most_dims ||
      table.size(dim - 1) != columns || table.size(0) < 1 || !table.is_contiguous()) {
    fail(op, "table", "a contiguous float64 tensor of shape (rows, ",
         most_dims > 2 ? "[batch, ] " : "", columns, ") with at least one row, got ",
         describe(table));
  }
  check_same_device(op, "table", table, like, "the data");
}

void check_labels(const char* op, const Tensor& labels, const Tensor& x) {
  if (labels.scalar_type() != ScalarType::Long || labels.dim() != 1 ||
      labels.size(0) != x.size(0) || !labels.is_contiguous()) {
    fail(op, "labels", "a contiguous int64 tensor of shape (", x.size(0), ",), got ",
         describe(labels));
  }
  check_same_device(op, "labels", labels, x, "the data");
}

int64_t batch_size(const Tensor& x) { return x.size(0); }

int64_t sample_size(const Tensor& x) {
  int64_t size = 1;
  const auto sizes = x.sizes();
  for (size_t d = 1; d < sizes.size(); ++d) size *= sizes[d];
  return size;
}

namespace {

View view_at(const char* op, const char* arg, const Tensor& x, void* data) {
  View view;
  view.data = data;
  switch (x.scalar_type()) {
    case ScalarType::Double:
      view.dtype = DType::kFloat64;
      break;
    case ScalarType::BFloat16:
      view.dtype = DType::kBFloat16;
      break;
    case ScalarType::Half:
      view.dtype = DType::kFloat16;
      break;
    default:
      view.dtype = DType::kFloat32;
  }
  view.sizes[0] = x.numel();
  view.strides[0] = 1;
  if (x.is_contiguous()) return view;
  const auto sizes = x.sizes(), strides = x.strides();
  int ndim = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    if (ndim > 0 && view.strides[ndim - 1] == sizes[d] * strides[d]) {
      view.sizes[ndim - 1] *= sizes[d];
      view.strides[ndim - 1] = strides[d];
      continue;
    }
    if (ndim == kMaxDims) {
      fail(op, arg, "a tensor with at most ", kMaxDims,
           " dimensions that cannot be merged (call .contiguous()), got ", describe(x));
    }
    view.sizes[ndim] = sizes[d];
    view.strides[ndim] = strides[d];
    ++ndim;
  }
  view.ndim = ndim > 0 ? ndim : 1;
  return view;
}

}  // namespace

View make_view(const char* op, const char* arg, const Tensor& x) {
  return view_at(op, arg, x, x.data_ptr());
}

View read_view(const char* op, const char* arg, const Tensor& x) {
  return view_at(op, arg, x, const_cast<void*>(x.const_data_ptr()));
}

namespace {

// Of fresh memory the first touch of each page costs more than a kernel's work on it: ask for pages
// of 2 MiB where some fit. Only a wish, so what the system answers does not matter.
void wish_for_huge_pages(Tensor& x) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(x.data_ptr());
  const uintptr_t end = (begin + x.numel() * x.element_size()) & ~(kHuge - 1);
  const uintptr_t first = (begin + kHuge - 1) & ~(kHuge - 1);
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

Tensor new_memory(Tensor x) {
  if (x.is_cpu()) wish_for_huge_pages(x);
  return x;
}

}  // namespace

// By the plain C function: going through the dispatcher, as torch::stable::new_empty does, costs
// several microseconds.
Tensor new_tensor(std::span<const int64_t> shape, ScalarType dtype, const Tensor& like) {
  std::array<int64_t, 16> few;
  std::vector<int64_t> many(shape.size() > few.size() ? shape.size() : 0);
  int64_t* strides = many.empty() ? few.data() : many.data();
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle out;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides, static_cast<int32_t>(dtype), device_type,
                                                  device_index, &out));
  return new_memory(Tensor(out));
}

Tensor new_tensor(std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& like) {
  return new_tensor(std::span<const int64_t>(shape.begin(), shape.size()), dtype, like);
}

Tensor new_like(const Tensor& x) {
  if (!x.is_contiguous()) return new_memory(torch::stable::empty_like(x));
  const auto sizes = x.sizes();
  return new_tensor(std::span<const int64_t>(sizes.data(), sizes.size()), x.scalar_type(), x);
}

ScalarType sum_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace fastscore
