#include "shared.h"

namespace emulator {

SharedMemory::SharedMemory(u32 bytes, u32 cell)
    : data_(bytes), writes_(bytes / cell + 1), reads_(bytes / cell + 1), cell_(cell) {}

void SharedMemory::begin_block() { first_era_ = ++era_; }

// Two threads are in order if a barrier of the block, or of their warp, is between them.
bool SharedMemory::clashes(const Touch& touch, const Toucher& who) const {
  if (touch.era != era_ || touch.thread == who.thread) return false;
  return touch.warp != who.warp || touch.warp_barriers == who.warp_barriers;
}

const char* SharedMemory::touch(u64 address, u32 bytes, bool write, const Toucher& who) {
  const char* wrong = nullptr;
  for (std::size_t c = address / cell_; c < (address + bytes) / cell_; ++c) {
    Touch &last_write = writes_[c], &last_read = reads_[c];
    const bool unwritten = last_write.era < first_era_;
    if (clashes(last_write, who)) {
      wrong = write ? "race: write to shared memory that another thread has written"
                    : "race: read of shared memory that another thread has written";
    } else if (write && clashes(last_read, who)) {
      wrong = "race: write to shared memory that another thread has read";
    } else if (!write && unwritten) {
      wrong = "read of shared memory that nobody wrote";
    }
    if (write) {
      last_write = {era_, who.thread, who.warp, who.warp_barriers};
      continue;
    }
    // Of several readers, all those that a later write may clash with. Readers of the same warp
    // before its last barrier clash with other warps alone, as this one does.
    Touch now{era_, who.thread, who.warp, who.warp_barriers};
    if (last_read.era == era_) {
      if (last_read.warp != who.warp) {
        now.thread = now.warp = kSeveral;
      } else if (last_read.warp_barriers == who.warp_barriers && last_read.thread != who.thread) {
        now.thread = kSeveral;
      }
    }
    last_read = now;
  }
  return wrong;
}

}  // namespace emulator
