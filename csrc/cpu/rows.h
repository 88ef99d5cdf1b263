// Sums over samples: the shares that the kernels file (isa/rows.h), added up in order.
#pragma once

#include <utility>
#include <vector>

#include "checks.h"
#include "cpu/noise.h"

namespace fastscore {

class RowSums {
 public:
  // `columns` sums over each of `rows` samples of `size` elements that have this noise.
  RowSums(const Noise& noise, int64_t rows, int64_t size, int64_t columns = 1)
      : noise_(noise), size_(size), rows_(rows), columns_(columns), done_(rows * columns, 0.0) {
    head_.resize(noise.slots() * columns);
    tail_.resize(noise.slots() * columns);
  }

  double* done() { return done_.data(); }
  double* head() { return head_.data(); }
  double* tail() { return tail_.data(); }
  std::vector<double> take() { return std::move(done_); }
  SumSlots slots() { return {done(), head(), tail(), rows_, noise_.slots()}; }

  // Adds up the samples that lie in more than one tile: those that a tile's end cuts.
  void finish() {
    for (const Noise::Run& run : noise_.runs()) {
      if (!run.args.each) finish(run);
    }
  }

 private:
  void finish(const Noise::Run& run) {
    const int64_t origin = run.args.origin, slot_zero = run.args.slot_zero;
    for (int64_t tile = run.tiles.begin; tile + 1 < run.tiles.end;) {
      const int64_t end = (tile + 1) * kTileElements - origin;
      const int64_t row = end / size_;
      if (end % size_ == 0) {
        ++tile;
        continue;
      }
      const int64_t last = (origin + (row + 1) * size_ - 1) / kTileElements;
      for (int64_t column = 0; column < columns_; ++column) {
        const int64_t first_slot = column * noise_.slots() - slot_zero;
        double sum = tail_[first_slot + tile];
        for (int64_t later = tile + 1; later <= last; ++later) sum += head_[first_slot + later];
        done_[column * rows_ + row] = sum;
      }
      tile = last;
    }
  }

  const Noise& noise_;
  int64_t size_, rows_, columns_;
  std::vector<double> done_, head_, tail_;
};

template <class T, class Value>
void write_values(T* out, int64_t n, const Value& value) {
  constexpr int64_t kPerThread = 8192;
  const auto write = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = static_cast<T>(value(i));
  };
  if (n <= kPerThread) {
    write(0, n);
  } else {
    torch::stable::parallel_for(0, n, kPerThread, write);
  }
}

// Writes value(i) to a contiguous float32 or float64 vector.
template <class Value>
void write_doubles(Tensor& out, const Value& value) {
  if (out.scalar_type() == ScalarType::Double) {
    write_values(out.mutable_data_ptr<double>(), out.numel(), value);
  } else {
    write_values(out.mutable_data_ptr<float>(), out.numel(), value);
  }
}

template <class S>
std::vector<double> read_strided(const Tensor& x) {
  std::vector<double> values(x.numel());
  const S* data = x.const_data_ptr<S>();
  const int64_t columns = x.size(x.dim() - 1), stride = x.stride(x.dim() - 1);
  const int64_t rows = x.dim() == 2 ? x.size(0) : 1, row_stride = x.dim() == 2 ? x.stride(0) : 0;
  for (int64_t row = 0; row < rows; ++row) {
    const S* from = data + row * row_stride;
    write_values(values.data() + row * columns, columns,
                 [&](int64_t column) { return from[column * stride]; });
  }
  return values;
}

// The values of a float32 or float64 vector or matrix of any strides, row by row.
inline std::vector<double> read_doubles(const char* op, const char* arg, const Tensor& x) {
  if (x.scalar_type() == ScalarType::Double) return read_strided<double>(x);
  if (x.scalar_type() == ScalarType::Float) return read_strided<float>(x);
  fail(op, arg, "float32 or float64, got ", describe(x));
}

}  // namespace fastscore
