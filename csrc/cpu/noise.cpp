#include "cpu/noise.h"

#include <limits>

namespace fastscore {

Noise::Noise(const char* op, const Tensor& key, Stream stream, int64_t sample_offset,
             const std::optional<Tensor>& samples, int64_t batch, int64_t size)
    : key_(key), batch_(batch), size_(size), numel_(batch * size) {
  if (samples) {
    samples_ = torch::stable::contiguous(*samples);
    numbers_ = samples_->const_data_ptr<int64_t>();
    check_values(op);
  }
  if (numel_ == 0) return;
  NoiseArgs common = {};
  common.stream = stream;
  common.sample_size = size;
  if (key.dim() == 2) {
    key_ = torch::stable::contiguous(key);
    common.keys = key_.const_data_ptr<int64_t>();
  }
  const int64_t* words = key_.const_data_ptr<int64_t>();
  common.seed = words[0];
  common.draw = words[1];
  if (!numbers_ && !common.keys) {
    add_run(common, 0, batch, sample_offset * size);
    return;
  }
  common.numbers = numbers_;
  if (size > kLongestShort) {
    number_runs(common);
    return;
  }
  common.each = true;
  common.end = numel_;
  const int64_t in_tile = kTileElements / size;
  slots_ = (batch + in_tile - 1) / in_tile;
  runs_.push_back({common, {0, slots_}});
}

void Noise::add_run(NoiseArgs args, int64_t first, int64_t last, int64_t flat) {
  const int64_t begin = first * size_, end = last * size_;
  const TileRange tiles = tiles_of(flat, end - begin);
  args.origin = flat - begin;
  args.begin = begin;
  args.end = end;
  args.slot_zero = tiles.begin - slots_;
  slots_ += tiles.end - tiles.begin;
  runs_.push_back({args, tiles});
}

void Noise::number_runs(const NoiseArgs& common) {
  for (int64_t first = 0, last; first < batch_; first = last) {
    last = first + 1;
    NoiseArgs args = common;
    if (common.keys) {
      args.seed = common.keys[2 * first];
      args.draw = common.keys[2 * first + 1];
      add_run(args, first, last, 0);
      continue;
    }
    while (last < batch_ && numbers_[last] == numbers_[last - 1] + 1) ++last;
    add_run(args, first, last, numbers_[first] * size_);
  }
}

// Numbers from 0 on, of which no flat index goes beyond 63 bits.
void Noise::check_values(const char* op) const {
  constexpr int64_t kRoom = int64_t{1} << 20;
  const int64_t most =
      (std::numeric_limits<int64_t>::max() - kRoom) / std::max<int64_t>(size_, 1) - 1;
  for (int64_t i = 0; i < batch_; ++i) {
    if (numbers_[i] < 0) {
      fail(op, "samples", "at least 0, got ", numbers_[i], " for sample ", i);
    }
    if (numbers_[i] > most) {
      fail(op, "samples", "such that every flat index fits 63 bits, got ", numbers_[i],
           " for sample ", i, " of ", size_, " elements");
    }
  }
}

}  // namespace fastscore
