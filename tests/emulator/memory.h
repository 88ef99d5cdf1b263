// Global memory: which bytes kernels may touch, and who touched them in this launch.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "lanes.h"

namespace emulator {

// One access of a warp, of `bytes` bytes at an aligned address in each lane of `mask`.
struct WarpAccess {
  const u64* addresses;
  u32 mask;
  u32 bytes;
  bool write;
  u64 first_thread;  // of the warp's lanes, among all threads of the launch
};

// What is wrong with an access, if anything.
struct Verdict {
  u32 blocked = 0;  // lanes whose bytes must not be touched
  u32 faulty = 0;   // lanes with a message
  const char* what[kLanes];

  void add(int lane, const char* message, bool block) {
    faulty |= u32{1} << lane;
    if (block) blocked |= u32{1} << lane;
    what[lane] = message;
  }
};

// Zeros that cost nothing before they are touched.
class Stamps {
 public:
  explicit operator bool() const { return data_ != nullptr; }
  void allocate(size_t count);
  u64& operator[](size_t i) { return data_.get()[i]; }
  u64* at(size_t i) { return data_.get() + i; }

 private:
  struct Free {
    void operator()(u64* data) const;
  };
  std::unique_ptr<u64, Free> data_;
};

// Neighbouring bytes of one or more tensors that overlap.
//
// Who wrote and read is kept for each cell of 1, 2, 4, 8 or 16 bytes: those of the smallest access
// so far, so that every access takes in whole cells, as accesses are aligned.
struct Region {
  uintptr_t low = 0, high = 0;
  u8 everywhere = 0;      // what is allowed with every byte, when `bytes` is empty
  std::vector<u8> bytes;  // what is allowed with each byte, for tensors with gaps
  u8 anywhere = 0;        // what is allowed with some byte
  bool fresh = false;     // parts of it nobody had written at first
  int shift = 4;          // log2 of a cell's bytes
  Stamps writes, reads;   // of each cell: launch and thread

  size_t cell(uintptr_t address) const { return (address >> shift) - (low >> shift); }
  size_t cells() const { return cell(high - 1) + 1; }
  bool contains(uintptr_t from, uintptr_t to) const { return from >= low && to <= high; }
  u8 allowed(uintptr_t address) const { return bytes.empty() ? everywhere : bytes[address - low]; }
  void allow(uintptr_t from, uintptr_t to, u8 access);
  void refine(int to_shift);  // smaller cells
};

class GlobalMemory {
 public:
  void allow(uintptr_t data, s64 element_size, int dims, const s64* sizes, const s64* strides,
             u8 access);
  void mark_unwritten(uintptr_t low, uintptr_t high);
  void forget();

  void begin_launch();
  // `region`: the one that this instruction touched last, or null.
  Verdict check(const WarpAccess& access, Region*& region);
  // Where an address is, in words.
  std::string describe(uintptr_t address) const;

 private:
  Region* find(uintptr_t address);
  Region* region_over(uintptr_t low, uintptr_t high);
  bool is_marked(uintptr_t low, uintptr_t high) const;
  void track(Region& region, const WarpAccess& access, int lane, Verdict& verdict);
  bool track_run(Region& region, const WarpAccess& access);

  std::map<uintptr_t, Region> regions_;       // by their low end; they do not overlap
  std::map<uintptr_t, uintptr_t> unwritten_;  // low and high ends, likewise
  u64 launch_ = 0;
};
GlobalMemory& global_memory();

}  // namespace emulator
