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

template <class Args>
void run_tiles(void (*kernel)(const Args&, TileRange), const Args& args) {
  if (args.numel == 0) return;
  const TileRange all = tiles_of(args.noise.origin, args.numel);
  if (all.end - all.begin <= kTilesPerThread) {
    kernel(args, all);
    return;
  }
  torch::stable::parallel_for(all.begin, all.end, kTilesPerThread,
                              [&](int64_t begin, int64_t end) { kernel(args, {begin, end}); });
}

}  // namespace fastscore
