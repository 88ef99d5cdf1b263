// Where registers are in a warp's memory.
#include <algorithm>
#include <map>
#include <queue>

#include "flow.h"
#include "ptx.h"

namespace emulator {

namespace {

// From the first to the last instruction at which a register's value matters.
struct Interval {
  s32 first = INT32_MAX, last = -1;
  void take_in(s32 at) { first = std::min(first, at), last = std::max(last, at); }
};

u32 bytes_of(int width) { return width == 0 ? sizeof(u32) : static_cast<u32>(width * kLanes); }

class Assignment {
 public:
  Assignment(Kernel& kernel, std::vector<RegisterInfo>& registers)
      : kernel_(kernel), registers_(registers), blocks_(basic_blocks(kernel, registers.size())) {}

  void run() {
    place_constants();
    place_registers();
    top_ = (top_ + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
    kernel_.watched_from = top_;
    find_watches(kernel_, registers_, blocks_, [this] { return allocate(sizeof(u64)); });
    kernel_.register_bytes = top_;
    use_places();
  }

 private:
  Slot allocate(int width) {
    // A predicate is one word; the lanes of the others are aligned for vector code.
    const u32 alignment = width == 0 ? sizeof(u32) : kSlotAlignment;
    const Slot slot = (top_ + alignment - 1) / alignment * alignment;
    top_ = slot + bytes_of(width);
    return slot;
  }

  void place_constants() {
    for (RegisterInfo& r : registers_) {
      if (r.is_constant) r.slot = allocate(r.width);
    }
    for (Constant& c : kernel_.constants) c.slot = registers_[c.slot].slot;
    for (SpecialRegister& s : kernel_.specials) s.slot = registers_[s.slot].slot;
  }

  // Those that are never needed at the same time share a slot, so that a warp's registers stay in
  // the cache. What one instruction reads and writes never does: handlers may write a destination
  // before they have read all sources.
  void place_registers() {
    std::vector<Interval> intervals(registers_.size());
    find_needed(kernel_, blocks_, registers_.size());
    for (const BasicBlock& block : blocks_) {
      block.needed_before.each([&](Slot r) { intervals[r].take_in(block.begin); });
      block.needed_behind.each([&](Slot r) { intervals[r].take_in(block.end - 1); });
      for (s32 at = block.begin; at < block.end; ++at) {
        const Instruction& i = kernel_.code[static_cast<size_t>(at)];
        each_read(i, [&](Slot r) { intervals[r].take_in(at); });
        each_write(i, [&](Slot r) { intervals[r].take_in(at); });
      }
    }
    std::vector<Slot> order;
    for (Slot r = 0; r < registers_.size(); ++r) {
      if (!registers_[r].is_constant && intervals[r].last >= 0) order.push_back(r);
    }
    std::sort(order.begin(), order.end(), [&](Slot a, Slot b) {
      return std::pair(intervals[a].first, a) < std::pair(intervals[b].first, b);
    });
    // For each width, the slots in use: until when, and where.
    using InUse = std::pair<s32, Slot>;
    std::map<int, std::priority_queue<InUse, std::vector<InUse>, std::greater<>>> in_use;
    for (Slot r : order) {
      RegisterInfo& info = registers_[r];
      auto& slots = in_use[info.width];
      if (!slots.empty() && slots.top().first < intervals[r].first) {
        info.slot = slots.top().second;
        slots.pop();
      } else {
        info.slot = allocate(info.width);
      }
      slots.emplace(intervals[r].last, info.slot);
    }
  }

  // The instructions' registers by place instead of number.
  void use_places() {
    for (Instruction& i : kernel_.code) {
      if (i.guard != kNone) i.guard = registers_[i.guard].slot;
      for (int n = 0; n < i.ins; ++n) i.in[n] = registers_[i.in[n]].slot;
      for (int n = 0; n < i.outs; ++n) i.out[n] = registers_[i.out[n]].slot;
    }
  }

  Kernel& kernel_;
  std::vector<RegisterInfo>& registers_;
  std::vector<BasicBlock> blocks_;
  u32 top_ = 0;
};

}  // namespace

void assign_slots(Kernel& kernel, std::vector<RegisterInfo>& registers) {
  Assignment(kernel, registers).run();
}

}  // namespace emulator
