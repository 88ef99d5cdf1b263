// Argument checks and conversions shared by the CPU and CUDA sides of every op. A failed check
// throws std::invalid_argument, which Python sees as ValueError, with the wording of
// fastscore/_checks.py: "<op>: <argument> must be <expected>, got <what came>".
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/streams.h"
#include "core/view.h"

namespace fastscore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::string describe(const Tensor& x);

template <class... Parts>
[[noreturn]] void fail(const char* op, const char* arg, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": " << arg << " must be ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

bool same_shape(const Tensor& a, const Tensor& b);

// float32, float64, bfloat16 or float16, with at least one dimension.
void check_data(const char* op, const char* arg, const Tensor& x);
void check_same_device(const char* op, const char* arg, const Tensor& x, const Tensor& like,
                       const char* like_name);
void check_same_shape(const char* op, const char* arg, const Tensor& x, const Tensor& like,
                      const char* like_name);
void check_same_dtype(const char* op, const char* arg, const Tensor& x, const Tensor& like,
                      const char* like_name);
// [seed, draw], or (batch, 2) for a key of each sample's own.
void check_key(const char* op, const Tensor& key, const Tensor& like, int64_t batch);
void check_key(const char* op, const Tensor& key, const Tensor& like);
void check_stream(const char* op, int64_t stream);
// How samples are numbered: from sample_offset on, at least 0 and no flat index beyond 63 bits; or
// by `samples`, (batch,); or by keys of their own. The values of `samples` are the devices'
// business.
void check_numbers(const char* op, int64_t sample_offset, const std::optional<Tensor>& samples,
                   const Tensor& key, const Tensor& like, int64_t batch, int64_t sample_size);
void check_numbers(const char* op, int64_t sample_offset, const std::optional<Tensor>& samples,
                   const Tensor& key, const Tensor& x);
// Whether x's dimensions from `first` on lie in memory without a hole, in some order of theirs:
// those of a channels_last tensor for example.
bool is_dense(const Tensor& x, int64_t first);
// Whether the dimensions of `like` lie in memory as x's last ones do.
bool same_strides(const Tensor& x, const Tensor& like);
// A tensor to write to: not an expanded one, whose elements share memory.
void check_writable(const char* op, const char* arg, const Tensor& x);
// Memory that is read while `out` is written: apart from it, or exactly the same.
void check_no_partial_overlap(const char* op, const char* arg, const Tensor& x, const Tensor& out,
                              const char* out_name);
void check_apart(const char* op, const char* arg, const Tensor& x, const Tensor& out,
                 const char* out_name);
// A contiguous float64 table of `columns` columns with at least one row.
void check_table(const char* op, const Tensor& table, int64_t columns, const Tensor& like,
                 int64_t most_dims = 2);
void check_labels(const char* op, const Tensor& labels, const Tensor& x);

int64_t batch_size(const Tensor& x);
int64_t sample_size(const Tensor& x);

// The view of a tensor, its dimensions merged as far as its strides allow.
View make_view(const char* op, const char* arg, const Tensor& x);

// The same of a tensor that is only read: memory lent until somebody writes to it stays lent. After
// the views of what is written, which may be the same tensor.
View read_view(const char* op, const char* arg, const Tensor& x);

// A new contiguous tensor.
Tensor new_tensor(std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& like);
Tensor new_tensor(std::span<const int64_t> shape, ScalarType dtype, const Tensor& like);
// A new tensor like x; its memory format is kept, as torch.empty_like does.
Tensor new_like(const Tensor& x);

// float64 stays float64; the rest are computed and summed in float32.
ScalarType sum_dtype(ScalarType dtype);

}  // namespace fastscore
