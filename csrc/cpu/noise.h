// Where the noise of a tensor in host memory comes from, and the kernels run with it.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fastscore {

// The noise of a batch. Samples that follow each other in the flat index are one piece of work, as
// all of a batch usually are. Others are runs of such pieces; where they are short, a tile is made
// of samples that each draw on their own.
class Noise {
 public:
  // Samples in a row, elements in a row: what one call of a kernel takes.
  struct Run {
    NoiseArgs args;
    TileRange tiles;
  };

  Noise(const char* op, const Tensor& key, Stream stream, int64_t sample_offset,
        const std::optional<Tensor>& samples, int64_t batch, int64_t size);

  // One run, or several; the tiles of a run have the slots behind those of the run before.
  std::span<const Run> runs() const {
    return runs_.empty() ? std::span<const Run>(&only_, slots_ > 0) : std::span<const Run>(runs_);
  }
  int64_t slots() const { return slots_; }

  // `passes`: how many times a tile's worth of work there is in a tile.
  template <class Args>
  void run(void (*kernel)(const Args&, TileRange), Args& args, int64_t passes = 1) const {
    if (slots_ == 0) return;
    if (runs_.empty()) {
      args.noise = only_.args;
      run_range(kernel, args, only_.tiles, passes);
      return;
    }
    const auto work = [&](int64_t slot, int64_t end) {
      Args own = args;
      const auto begins_later = [](int64_t s, const Run& run) { return s < slot_of(run); };
      auto run = std::upper_bound(runs_.begin(), runs_.end(), slot, begins_later) - 1;
      for (; slot < end; ++run) {
        own.noise = run->args;
        const int64_t first = slot + run->args.slot_zero;
        const int64_t last = std::min(end + run->args.slot_zero, run->tiles.end);
        kernel(own, {first, last});
        slot += last - first;
      }
    };
    // A call of a kernel costs about as much as kCall elements.
    constexpr int64_t kCall = 128;
    const int64_t each = passes * (kCall + std::min(numel_ / slots_, kTileElements));
    const int64_t grain = std::max<int64_t>(kTilesPerThread * kTileElements / each, 1);
    if (slots_ <= grain) {
      work(0, slots_);
    } else {
      torch::stable::parallel_for(0, slots_, grain, work);
    }
  }

 private:
  static int64_t slot_of(const Run& run) { return run.tiles.begin - run.args.slot_zero; }

  // Samples [first, last) of the batch, the first of which has flat index `flat`.
  Run run_of(NoiseArgs args, int64_t first, int64_t last, int64_t flat);
  // Those of samples by `numbers` or keys: one to a tile, or runs.
  void number(NoiseArgs common);
  void check_values(const char* op) const;

  std::optional<Tensor> keys_, samples_;  // where they are not as they were given
  const int64_t* numbers_ = nullptr;
  int64_t batch_, size_, numel_, slots_ = 0;
  Run only_;  // where there is no other
  std::vector<Run> runs_;
};

}  // namespace fastscore
