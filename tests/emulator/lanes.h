// Numbers, the lanes of a warp, and the handlers of instructions that work on each lane by itself.
#pragma once

#include <stdint.h>

#include <bit>
#include <type_traits>
#include <utility>

namespace emulator {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

constexpr int kLanes = 32;
constexpr u32 kAll = ~u32{0};

// Calls f with the number of each lane of a mask.
template <class F>
inline void each_lane(u32 mask, F&& f) {
  for (; mask; mask &= mask - 1) f(std::countr_zero(mask));
}

// Where a register is: 32 lanes of 2, 4 or 8 bytes, or a predicate: one word, a bit for each lane.
// While a kernel is parsed: the register's number; afterwards: its place in a warp's registers.
using Slot = u32;
constexpr Slot kNone = ~Slot{0};
constexpr int kSlotAlignment = 64;

class Registers {
 public:
  explicit Registers(u8* base = nullptr) : base_(base) {}

  template <class T>
  T* lanes(Slot slot) const {
    return static_cast<T*>(__builtin_assume_aligned(base_ + slot, kSlotAlignment));
  }
  u32& predicate(Slot slot) const { return *reinterpret_cast<u32*>(base_ + slot); }
  void set_predicate(Slot slot, u32 mask, u32 value) const {
    u32& bits = predicate(slot);
    bits = (bits & ~mask) | (value & mask);
  }

 private:
  u8* base_;
};

// One source operand, lane by lane.
template <class T>
struct Source {
  const T* lanes;
  Source(const Registers& registers, Slot slot) : lanes(registers.lanes<T>(slot)) {}
  T operator[](int lane) const { return lanes[lane]; }
};
template <>
struct Source<bool> {
  u32 bits;
  Source(const Registers& registers, Slot slot) : bits(registers.predicate(slot)) {}
  bool operator[](int lane) const { return bits >> lane & 1; }
};

// Sets the lanes of `mask` to f(lane). f may be called for every lane, and must be fit for any
// garbage there; so the loop becomes vector code.
template <class D, class F>
inline void set_lanes(const Registers& registers, Slot slot, u32 mask, F&& f) {
  if constexpr (std::is_same_v<D, bool>) {
    u32 bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<u32>(f(lane)) << lane;
    registers.set_predicate(slot, mask, bits);
  } else {
    D* to = registers.lanes<D>(slot);
    if (mask == kAll) {
      // A destination is a source itself, or shares no memory with it.
#pragma GCC ivdep
      for (int lane = 0; lane < kLanes; ++lane) to[lane] = f(lane);
    } else {
      D results[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) results[lane] = f(lane);
#pragma GCC ivdep
      for (int lane = 0; lane < kLanes; ++lane) {
        to[lane] = (mask >> lane & 1) ? results[lane] : to[lane];
      }
    }
  }
}

}  // namespace emulator
