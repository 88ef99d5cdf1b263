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

// Which bits of a result nobody wrote, if some of the operands' bits nobody wrote.
enum class Spread : u8 {
  kAll,       // all, if there is any among the operands
  kBits,      // the same, in bitwise operations
  kAnd,       // those that no 0 of the other operand makes 0
  kLeft,      // shifted with the others
  kRight,     // likewise
  kChoice,    // those of the operand that is chosen
  kHalves,    // of two results, of each those of its half; of two operands, likewise
  kEachHalf,  // all of a half, if there is any in the operand that it is made from, first on top
  kNothing,   // none: all operands must have been written
};

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::kNext;
  Spread spread = Spread::kAll;
  bool unless = false;  // the guard is negated
  u8 outs = 0, ins = 0;
  u8 bytes = 0;          // of an element of a memory access, or of what is bitwise or in halves
  u8 count = 1;          // elements of a vector access
  u8 address_bytes = 0;  // width of an address' register, 0 for none
  u16 access = 0;        // the number of a global access in its kernel
  Slot guard = kNone;
  Slot out[4], in[5];
  u32 watch = 0;      // in Kernel::watches; 0: nothing to watch
  s32 target = -1;    // of a branch
  s64 immediate = 0;  // offset of an address, table of lop3
};

// An instruction that reads or writes registers that not every way to it has written, or what is
// made of them. Which of their bits nobody wrote is kept as the kernel runs, in shadows: 32 lanes
// of 8 bytes, a bit set for each bit without a value. kNone stands for what has surely been
// written.
struct Watch {
  struct Shadow {
    Slot slot = kNone;
    u64 bits = 0;  // that the register has
    std::string name;
  };
  Shadow guard, in[5], out[4];
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
  u32 watched_from = 0;           // behind here: the watches' shadows
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

struct RegisterInfo {
  std::string name;
  int width;         // bytes; 0: a predicate
  bool is_constant;  // or special: written before the kernel starts
  Slot slot = kNone;
};
// Gives each register a slot, those that are never needed at the same time the same one, and sets
// the watches.
void assign_slots(Kernel& kernel, std::vector<RegisterInfo>& registers);

}  // namespace emulator
