// Tiles over threads. The split never changes a result: noise depends on the flat index alone, and
// sums are cut at tiles.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "kernels.h"

namespace fastscore {

constexpr int64_t kTileElements = 1024;
// A thread is worth waking for about 16 microseconds of work.
constexpr int64_t kTilesPerThread = 16;

// The tiles that elements [0, numel) with the first at flat index `origin` lie in.
inline TileRange tiles_of(int64_t origin, int64_t numel) {
  return {origin / kTileElements, (origin + numel + kTileElements - 1) / kTileElements};
}

// `passes`: how many times a tile's worth of work there is in a tile.
template <class Args>
void run_range(void (*kernel)(const Args&, TileRange), const Args& args, TileRange all,
               int64_t passes = 1) {
  if (all.begin == all.end) return;
  const int64_t grain = passes < kTilesPerThread ? kTilesPerThread / passes : 1;
  if (all.end - all.begin <= grain) {
    kernel(args, all);
    return;
  }
  torch::stable::parallel_for(all.begin, all.end, grain,
                              [&](int64_t begin, int64_t end) { kernel(args, {begin, end}); });
}

}  // namespace fastscore
