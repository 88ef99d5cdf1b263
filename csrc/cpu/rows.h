// Sums over samples: the shares that the kernels file (isa/rows.h), added up in order.
#pragma once

#include <vector>

#include "checks.h"
#include "cpu/parallel.h"

namespace fastscore {

class RowSums {
 public:
  // `rows` samples of `size` elements each, the first element at flat index `origin`.
  RowSums(int64_t origin, int64_t numel, int64_t rows, int64_t size)
      : origin_(origin), size_(size), done_(rows, 0.0) {
    const TileRange tiles = tiles_of(origin, numel);
    first_tile_ = tiles.begin;
    const int64_t count = tiles.end - tiles.begin;
    head_.resize(count);
    tail_.resize(count);
  }

  double* done() { return done_.data(); }
  double* head() { return head_.data(); }
  double* tail() { return tail_.data(); }

  // Adds up the samples that lie in more than one tile.
  void finish() {
    if (size_ == 0) return;
    for (size_t row = 0; row < done_.size(); ++row) {
      const int64_t begin = origin_ + static_cast<int64_t>(row) * size_;
      const int64_t first = begin / kTileElements - first_tile_;
      const int64_t last = (begin + size_ - 1) / kTileElements - first_tile_;
      if (first == last) continue;
      double sum = tail_[first];
      for (int64_t tile = first + 1; tile <= last; ++tile) sum += head_[tile];
      done_[row] = sum;
    }
  }

 private:
  int64_t origin_, size_, first_tile_;
  std::vector<double> done_, head_, tail_;
};

// Writes value(i) to a contiguous float32 or float64 vector.
template <class Value>
void write_doubles(Tensor& out, const Value& value) {
  const int64_t n = out.numel();
  if (out.scalar_type() == ScalarType::Double) {
    double* data = out.mutable_data_ptr<double>();
    for (int64_t i = 0; i < n; ++i) data[i] = value(i);
  } else {
    float* data = out.mutable_data_ptr<float>();
    for (int64_t i = 0; i < n; ++i) data[i] = static_cast<float>(value(i));
  }
}

// The values of a float32 or float64 vector of any stride.
inline std::vector<double> read_doubles(const char* op, const char* arg, const Tensor& x) {
  std::vector<double> values(x.numel());
  const int64_t stride = x.stride(0);
  for (size_t i = 0; i < values.size(); ++i) {
    if (x.scalar_type() == ScalarType::Double) {
      values[i] = x.const_data_ptr<double>()[i * stride];
    } else if (x.scalar_type() == ScalarType::Float) {
      values[i] = x.const_data_ptr<float>()[i * stride];
    } else {
      fail(op, arg, "float32 or float64, got ", describe(x));
    }
  }
  return values;
}

}  // namespace fastscore
