// What runs a kernel: blocks one after the other, in each block its warps, in each warp the threads
// that are furthest behind.
#pragma once

#include <string_view>
#include <vector>

#include "memory.h"
#include "ptx.h"
#include "shared.h"

namespace emulator {

// A launch of a kernel, and the block of it that is running.
struct Launch {
  const Kernel& kernel;
  u32 blocks, threads;  // threads of a block
  u8* reached;          // for each instruction, whether any thread got there
  std::vector<u8> parameters;
  std::vector<Region*> regions;  // for each global access of the code: the region it touched last
  SharedMemory shared;
  u32 block = 0;
};

// Threads of a warp at the same place.
struct Group {
  s32 at;  // index of the instruction
  u32 mask;
};

struct Warp {
  Launch* launch = nullptr;
  Registers registers;
  u32 index = 0;     // in the block
  u32 alive = 0;     // threads that have not returned
  u32 barriers = 0;  // warp barriers passed by all its threads
  Group now{0, 0};
  std::vector<Group> elsewhere;
  bool any = false;  // what bar.red collects
  u64 warp_instructions = 0, thread_instructions = 0;

  u32 thread(int lane) const { return index * kLanes + static_cast<u32>(lane); }
};

// Reports what is wrong with a lane of a warp at an instruction.
void fault(const Warp& warp, const Instruction& i, int lane, std::string_view what);
void fault_at(const Warp& warp, const Instruction& i, int lane, std::string_view what, u64 address,
              std::string_view about = "");

// Before a watched instruction runs: which bits of its results nobody wrote. Reports where such a
// bit decides what happens: in a guard, an address, what is stored or handed to another thread.
// `here` are the threads that read the guard, `mask` those that it lets through.
void watch(const Warp& warp, const Instruction& i, u32 here, u32 mask);

// Runs a warp until it waits at a barrier of the block, or has ended.
void run_warp(Warp& warp);

}  // namespace emulator
