#include "cpu/noise.h"

#include <limits>

namespace fastscore {

Noise::Noise(const char* op, const Tensor& key, Stream stream, int64_t sample_offset,
             const std::optional<Tensor>& samples, int64_t batch, int64_t size)
    : batch_(batch), size_(size), numel_(batch * size) {
  const bool keyed = key.dim() == 2;
  if (samples) {
    samples_ = torch::stable::contiguous(*samples);
    numbers_ = samples_->const_data_ptr<int64_t>();
    check_values(op);
  }
  if (numel_ == 0) return;
  if (keyed) keys_ = torch::stable::contiguous(key);
  const int64_t* words = (keyed ? *keys_ : key).const_data_ptr<int64_t>();
  NoiseArgs common;
  common.seed = words[0];
  common.draw = words[1];
  common.stream = stream;
  if (keyed || samples) {
    common.sample_size = size;
    common.numbers = numbers_;
    common.keys = keyed ? words : nullptr;
    number(common);
  } else {
    only_ = run_of(common, 0, batch, sample_offset * size);
  }
}

Noise::Run Noise::run_of(NoiseArgs args, int64_t first, int64_t last, int64_t flat) {
  const int64_t begin = first * size_, end = last * size_;
  const TileRange tiles = tiles_of(flat, end - begin);
  args.origin = flat - begin;
  args.begin = begin;
  args.end = end;
  args.slot_zero = tiles.begin - slots_;
  slots_ += tiles.end - tiles.begin;
  return {args, tiles};
}

void Noise::number(NoiseArgs common) {
  const auto run_end = [&](int64_t sample) {
    int64_t last = sample + 1;
    while (numbers_ && last < batch_ && numbers_[last] == numbers_[last - 1] + 1) ++last;
    return last;
  };
  const auto next_run = [&](int64_t first, int64_t last) {
    NoiseArgs args = common;
    args.numbers = args.keys = nullptr;
    if (common.keys) {
      args.seed = common.keys[2 * first];
      args.draw = common.keys[2 * first + 1];
    }
    return run_of(args, first, last, numbers_ ? numbers_[first] * size_ : 0);
  };
  const int64_t first_end = run_end(0);
  if (first_end == batch_) {  // What follows each other, or a single sample, is the usual case.
    only_ = next_run(0, batch_);
  } else if (size_ <= kLongestShort) {
    common.each = true;
    common.origin = common.begin = common.slot_zero = 0;
    common.end = numel_;
    const int64_t in_tile = kTileElements / size_;
    slots_ = (batch_ + in_tile - 1) / in_tile;
    only_ = {common, {0, slots_}};
  } else {
    for (int64_t first = 0, last = first_end; first < batch_; first = last) {
      last = run_end(first);
      runs_.push_back(next_run(first, last));
    }
  }
}

// Numbers from 0 on, of which no flat index goes beyond 63 bits.
void Noise::check_values(const char* op) const {
  constexpr int64_t kRoom = int64_t{1} << 20;
  const int64_t most =
      (std::numeric_limits<int64_t>::max() - kRoom) / std::max<int64_t>(size_, 1) - 1;
  // A bit that only numbers out of range set: a loop without a way out goes a vector at a time.
  uint64_t signs = 0;
  for (int64_t i = 0; i < batch_; ++i) {
    const uint64_t number = static_cast<uint64_t>(numbers_[i]);
    signs |= number | (static_cast<uint64_t>(most) - number);
  }
  if (!(signs >> 63)) return;
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
