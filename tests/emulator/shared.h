// A block's shared memory: its bytes, and who touched them since the last barrier.
#pragma once

#include <cstddef>
#include <vector>

#include "lanes.h"

namespace emulator {

// Who touches shared memory, and when.
struct Toucher {
  u32 thread, warp;
  u32 warp_barriers;  // passed by the warp so far
};

class SharedMemory {
 public:
  // `cell`: bytes of the kernel's smallest access; all are aligned and take in whole cells.
  SharedMemory(u32 bytes, u32 cell);

  void begin_block();
  void pass_barrier() { ++era_; }
  // Null if all is well.
  const char* touch(u64 address, u32 bytes, bool write, const Toucher& who);
  bool contains(u64 address, u32 bytes) const {
    return address <= data_.size() && bytes <= data_.size() - address;
  }
  u8* at(u64 address) { return data_.data() + address; }
  std::size_t size() const { return data_.size(); }

 private:
  static constexpr u32 kSeveral = ~u32{0};
  struct Touch {
    u32 era = 0;  // barriers passed; 0: never
    u32 thread = 0, warp = 0, warp_barriers = 0;
  };
  bool clashes(const Touch& touch, const Toucher& who) const;

  std::vector<u8> data_;
  std::vector<Touch> writes_, reads_;
  u32 cell_;
  u32 era_ = 0;        // counts barriers, of all blocks so far
  u32 first_era_ = 1;  // of this block
};

}  // namespace emulator
