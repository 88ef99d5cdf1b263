// A kernel, from its text to what the machine runs.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "emulator.h"
#include "lanes.h"

namespace emulator {

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, u32 mask);

// What the machine does with an instruction besides calling its handler.
enum class Flow : u8 { kNext, kBranch, kExit, kBarrier, kBarrierOr, kWarpBarrier, kShuffle };

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::kNext;
  bool unless = false;  // the guard is negated
  u8 outs = 0, ins = 0;
  u8 count = 1;          // elements of a vector access
  u8 address_bytes = 0;  // width of an address' register, 0 for none
  u16 access = 0;        // the number of a global access in its kernel
  Slot guard = kNone;
  Slot out[4], in[5];
  u32 watch = 0;      // in Kernel::watches; 0: nothing to watch
  s32 target = -1;    // of a branch
  s64 immediate = 0;  // offset of an address, table of lop3
};

// Registers that not every way to a read has written: whether a lane has is recorded as the kernel
// runs.
struct Watch {
  struct Register {
    Slot written;  // a predicate: the lanes that wrote
    std::string name;
    bool is_guard = false;
  };
  std::vector<Register> reads, writes;
};

struct SourceLine {
  int number;
  std::string_view text;  // part of the module's
};

struct Parameter {
  std::string_view name;
  u32 offset, bytes;
};

// What is the same for every warp: constants, and the registers that say who a thread is.
struct Constant {
  Slot slot;
  int width;  // bytes; 0: a predicate
  u64 value;
};
enum class Special : u8 { kTid, kCtaid, kNtid, kNctaid, kLaneid };
struct SpecialRegister {
  Special what;
  Slot slot;
};

struct Kernel {
  std::string name, readable_name;
  std::string_view parameter_text, body;  // parts of the module's text
  int first_line = 0;                     // of the body
  u32 most_threads = 0;                   // 0: no limit of its own
  bool parsed = false;
  uint64_t launches = 0;

  std::vector<Parameter> parameters;
  u32 parameter_bytes = 0, shared_bytes = 0;
  u32 shared_cell = 16;  // bytes of the smallest access to shared memory
  bool has_barrier = false;
  u32 accesses = 0;  // instructions that touch global memory

  std::vector<Instruction> code;
  std::vector<SourceLine> lines;  // of each instruction
  std::vector<u8> reached;        // of each instruction
  std::vector<Watch> watches;     // the first is empty
  u32 register_bytes = 0;         // of a warp
  u32 watched_from = 0;           // behind here: what the watches record
  std::vector<Constant> constants;
  std::vector<SpecialRegister> specials;
};

struct Module {
  std::string text;
  std::vector<std::unique_ptr<Kernel>> kernels;
};
const std::vector<std::unique_ptr<Module>>& modules();

[[noreturn]] void fail(const Kernel& kernel, int line, const std::string& what);

// From text to code; throws what is not understood.
void parse(Kernel& kernel);
// Gives each register a slot, those that are never needed at the same time the same one, and sets
// the watches.
struct RegisterInfo {
  std::string name;
  int width;         // bytes; 0: a predicate
  bool is_constant;  // or special: written before the kernel starts
  Slot slot = kNone;
};
void assign_slots(Kernel& kernel, std::vector<RegisterInfo>& registers);

}  // namespace emulator
