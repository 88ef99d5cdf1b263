// What the emulator offers to the runtime that stands in for CUDA's.
#pragma once

#include <stdint.h>

#include <cstddef>
#include <string>
#include <vector>

namespace emulator {

// ---- settings and counts -----------------------------------------------------------------------

enum class Order { kForwards, kBackwards, kShuffled };  // of blocks, and of the warps of a block

struct Settings {
  bool check_memory = true;  // bounds and permissions of global accesses, and all that follows
  bool check_races = true;   // between the threads of one launch, in global memory
  Order order = Order::kForwards;
  uint64_t seed = 1;  // of the shuffled order and of hashed roundings
  // By how many units in the last place the approximate instructions are off; kHashed: by up to
  // what their documentation allows, from a hash of the argument.
  static constexpr int kHashed = 100;
  int rsqrt = 0, reciprocal = 0;
};
Settings& settings();

struct Counts {
  uint64_t launches = 0, warp_instructions = 0, thread_instructions = 0;
  double seconds = 0;
};
Counts& counts();

// ---- faults --------------------------------------------------------------------------------

// What went wrong since the last call, one line each: what, kernel, PTX line and its text, block,
// thread, address. The first `most` in full, then their number.
std::string take_faults(size_t most = 8);
bool any_fault();
void report_fault(const std::string& text);

// ---- kernels -------------------------------------------------------------------------------

struct Module;  // the text of a PTX file; a kernel is parsed when it is first launched
struct Kernel;
Module* load_module(std::string text);                         // throws std::runtime_error
Kernel* find_kernel(Module* module, const std::string& name);  // null if there is none
const std::string& name_of(const Kernel* kernel);
std::vector<Kernel*> kernels_of(Module* module);
// Parses a kernel now, which its first launch does otherwise; throws what is not understood.
void prepare(Kernel* kernel);
// All instructions that are known by their full name; loads and stores are known by their parts.
std::vector<std::string> known_instructions();
struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
// Runs all blocks. Faults are reported, not thrown; PTX that is not understood throws
// std::runtime_error, which names kernel, line and instruction. Launches of more than one
// dimension and dynamic shared memory throw as well.
void launch(Kernel* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void** args);

// Per kernel: its name, how often it was launched, and for each instruction its PTX line and
// whether any thread reached it. Kernels never launched have no lines.
struct Line {
  int number;
  bool reached;
  std::string text;
};
struct Coverage {
  std::string kernel;
  uint64_t launches;
  std::vector<Line> lines;
};
std::vector<Coverage> coverage();  // of all kernels of all modules

// ---- global memory -------------------------------------------------------------------------

enum Access : uint8_t { kRead = 1, kWrite = 2 };

// The elements of a strided tensor, which kernels may read, or write, or both, from now on, besides
// what has been allowed before.
void allow(const void* data, int64_t element_size, int dims, const int64_t* sizes,
           const int64_t* strides, uint8_t access);
// Marks memory as never written by anybody, a new tensor's: kernels may not read it before they
// have written it.
void mark_unwritten(const void* data, size_t bytes);
// Forgets all that is allowed and all marks: between ops.
void forget_memory();

}  // namespace emulator
