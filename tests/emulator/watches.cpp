// Registers that are read though not every way there has written them. That is no fault by itself:
// nvcc leaves out what no result hangs on, like the second half of a pair of which only the first
// is stored. So what has no value is followed until it decides something.
#include <map>

#include "flow.h"
#include "machine.h"

namespace emulator {

// ---- which instructions ------------------------------------------------------------------------

static u64 bits_of(int width) {  // of a register; one of a predicate
  if (width == 8) return ~u64{0};
  return width == 0 ? 1 : (u64{1} << (8 * width)) - 1;
}

static RegisterSet unsure_registers(const Kernel& kernel,
                                    const std::vector<RegisterInfo>& registers,
                                    std::vector<BasicBlock>& blocks) {
  RegisterSet constants(registers.size()), unsure(registers.size());
  for (Slot r = 0; r < registers.size(); ++r) {
    if (registers[r].is_constant) constants.add(r);
  }
  find_written(kernel, blocks, constants, registers.size());
  for (const BasicBlock& block : blocks) {
    RegisterSet written = block.written_before;
    for (s32 at = block.begin; at < block.end; ++at) {
      const Instruction& i = kernel.code[static_cast<size_t>(at)];
      each_read(i, [&](Slot r) {
        if (!written.has(r)) unsure.add(r);
      });
      if (i.guard == kNone) each_write(i, [&](Slot r) { written.add(r); });
    }
  }
  return unsure;
}

void find_watches(Kernel& kernel, const std::vector<RegisterInfo>& registers,
                  std::vector<BasicBlock>& blocks, const std::function<Slot()>& new_shadow) {
  RegisterSet unsure = unsure_registers(kernel, registers, blocks);
  for (bool changed = true; changed;) {  // and what is made of them
    changed = false;
    for (const Instruction& i : kernel.code) {
      bool any = false;
      for (int n = 0; n < i.ins; ++n) any |= unsure.has(i.in[n]);
      if (!any || i.spread == Spread::kNothing) continue;
      each_write(i, [&](Slot r) {
        changed |= !unsure.has(r);
        unsure.add(r);
      });
    }
  }
  std::map<Slot, Slot> shadows;
  unsure.each([&](Slot r) { shadows[r] = new_shadow(); });
  kernel.watches.emplace_back();
  for (Instruction& i : kernel.code) {
    Watch watch;
    bool any = false;
    const auto shadow_of = [&](Slot r) {
      if (!unsure.has(r)) return Watch::Shadow();
      any = true;
      return Watch::Shadow{shadows[r], bits_of(registers[r].width), registers[r].name};
    };
    if (i.guard != kNone) watch.guard = shadow_of(i.guard);
    for (int n = 0; n < i.ins; ++n) watch.in[n] = shadow_of(i.in[n]);
    for (int n = 0; n < i.outs; ++n) watch.out[n] = shadow_of(i.out[n]);
    if (!any) continue;
    i.watch = static_cast<u32>(kernel.watches.size());
    kernel.watches.push_back(std::move(watch));
  }
}

// ---- as the kernel runs ------------------------------------------------------------------------

namespace {

constexpr u64 kAllBits = ~u64{0};
constexpr u64 kHalfOf[] = {0, 0, 0, 0, 0xffff, 0, 0, 0, 0xffffffff};  // by the bytes of the whole

class Watcher {
 public:
  Watcher(const Warp& warp, const Instruction& i)
      : warp_(warp), i_(i), watch_(warp.launch->kernel.watches[i.watch]) {}

  void run(u32 here, u32 mask) {
    // Most often all has been written.
    u64 any = any_bits(watch_.guard, here);
    for (int n = 0; n < i_.ins; ++n) any |= any_bits(watch_.in[n], mask);
    if (!any) {
      for (int n = 0; n < i_.outs; ++n) {
        const Slot slot = watch_.out[n].slot;
        if (slot != kNone) set_lanes<u64>(warp_.registers, slot, mask, [](int) { return 0; });
      }
      return;
    }
    each_lane(here, [&](int lane) {
      if (bits(watch_.guard, lane)) tell(lane, "guard", watch_.guard.name);
    });
    each_lane(mask, [&](int lane) {
      if (i_.spread == Spread::kNothing) {
        for (int n = 0; n < i_.ins; ++n) {
          if (in(n, lane) & matters(n)) tell(lane, "operand", watch_.in[n].name);
        }
      }
      u64 results[4];
      for (int n = 0; n < i_.outs; ++n) results[n] = result(n, lane);
      for (int n = 0; n < i_.outs; ++n) {
        const Slot slot = watch_.out[n].slot;
        if (slot != kNone) warp_.registers.lanes<u64>(slot)[lane] = results[n];
      }
    });
  }

 private:
  u64 bits(const Watch::Shadow& shadow, int lane) const {
    if (shadow.slot == kNone) return 0;
    return warp_.registers.lanes<u64>(shadow.slot)[lane] & shadow.bits;
  }
  u64 any_bits(const Watch::Shadow& shadow, u32 mask) const {
    if (shadow.slot == kNone) return 0;
    const u64* lanes = warp_.registers.lanes<u64>(shadow.slot);
    u64 any = 0;
    for (int l = 0; l < kLanes; ++l) any |= (mask >> l & 1) ? lanes[l] : 0;
    return any & shadow.bits;
  }
  u64 in(int n, int lane) const { return bits(watch_.in[n], lane); }
  static u64 all_if(u64 any) { return any ? kAllBits : 0; }

  void tell(int lane, const char* what, const std::string& name) const {
    fault(warp_, i_, lane, std::string(what) + " " + name + " hangs on what nobody wrote");
  }

  // The bits of an operand that reach memory or another thread.
  u64 matters(int n) const {
    const bool is_value = i_.bytes && n >= (i_.address_bytes ? 1 : 0);
    return is_value && i_.bytes < 8 ? (u64{1} << (8 * i_.bytes)) - 1 : kAllBits;
  }

  u64 value(int n, int lane) const {
    switch (i_.bytes) {
      case 2:
        return warp_.registers.lanes<u16>(i_.in[n])[lane];
      case 4:
        return warp_.registers.lanes<u32>(i_.in[n])[lane];
      default:
        return warp_.registers.lanes<u64>(i_.in[n])[lane];
    }
  }

  u64 result(int n, int lane) const {
    const u64 a = in(0, lane), b = in(1, lane);
    const u64 half = kHalfOf[i_.bytes];
    const int half_bits = 4 * i_.bytes;
    switch (i_.spread) {
      case Spread::kAll:
        break;
      case Spread::kBits:
        return a | b;
      case Spread::kAnd:
        return (a | b) & (a | value(0, lane)) & (b | value(1, lane));
      case Spread::kLeft:
      case Spread::kRight: {
        const u32 by = warp_.registers.lanes<u32>(i_.in[1])[lane];
        if (b || by >= 8u * i_.bytes) return all_if(b);
        return i_.spread == Spread::kLeft ? a << by : a >> by;
      }
      case Spread::kChoice: {
        const bool first = warp_.registers.predicate(i_.in[2]) >> lane & 1;
        return in(2, lane) ? kAllBits : first ? a : b;
      }
      case Spread::kHalves:
        if (i_.outs == 2) return (n == 0 ? a : a >> half_bits) & half;
        return (a & half) | (b & half) << half_bits;
      case Spread::kEachHalf:
        return (all_if(b) & half) | (all_if(a) & half) << half_bits;
      case Spread::kNothing:
        return 0;
    }
    return all_if(a | b | in(2, lane) | in(3, lane) | in(4, lane));
  }

  const Warp& warp_;
  const Instruction& i_;
  const Watch& watch_;
};

}  // namespace

void watch(const Warp& warp, const Instruction& i, u32 here, u32 mask) {
  Watcher(warp, i).run(here, mask);
}

}  // namespace emulator
