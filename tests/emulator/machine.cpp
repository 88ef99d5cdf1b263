#include "machine.h"

#include <algorithm>

namespace emulator {

namespace {

// More than any kernel needs in one block: a loop that does not end.
constexpr u64 kMostInstructions = 200'000'000;

// The threads of a warp that are not together: those behind run first, so that they catch up where
// their ways meet again.
class Elsewhere {
 public:
  explicit Elsewhere(std::vector<Group>& groups) : groups_(groups) { find_lowest(); }

  s32 lowest() const { return lowest_; }
  void add(Group group) {
    for (Group& other : groups_) {
      if (other.at == group.at) {
        other.mask |= group.mask;
        return;
      }
    }
    groups_.push_back(group);
    lowest_ = std::min(lowest_, group.at);
  }
  Group take_lowest() {
    const auto it = std::find_if(groups_.begin(), groups_.end(),
                                 [this](const Group& g) { return g.at == lowest_; });
    const Group group = *it;
    groups_.erase(it);
    find_lowest();
    return group;
  }
  bool empty() const { return groups_.empty(); }

 private:
  void find_lowest() {
    lowest_ = INT32_MAX;
    for (const Group& group : groups_) lowest_ = std::min(lowest_, group.at);
  }

  std::vector<Group>& groups_;
  s32 lowest_;
};

// Of a shuffle or a warp barrier: all threads that it names must be here.
void check_members(const Warp& warp, const Instruction& i, u32 mask, const u32* members) {
  // Most often all name all that are here.
  u32 unlike = 0;
  each_lane(mask, [&](int lane) { unlike |= members[lane] ^ mask; });
  if (unlike == 0) return;
  u32 absent = 0;
  each_lane(mask, [&](int lane) {
    const u32 named = members[lane];
    if (!(named >> lane & 1)) fault(warp, i, lane, "a mask of threads without this one");
    absent |= named & ~mask;
    // Those that it names must name the same ones.
    each_lane(named & mask, [&](int other) {
      if (members[other] != named) fault(warp, i, lane, "a mask of threads unlike theirs");
    });
  });
  const int first = std::countr_zero(mask);
  if (absent & warp.alive) {
    fault(warp, i, first, "threads that it waits for are elsewhere: divergent code");
  }
  if (absent & ~warp.alive) fault(warp, i, first, "it waits for threads that have ended");
}

// Whether each thread of a warp barrier waits for all the others.
bool is_whole(const Warp& warp, u32 mask, const u32* members) {
  bool whole = mask == warp.alive;
  each_lane(mask, [&](int lane) { whole &= (members[lane] & mask) == mask; });
  return whole;
}

}  // namespace

void run_warp(Warp& warp) {
  const Kernel& kernel = warp.launch->kernel;
  const Instruction* code = kernel.code.data();
  u8* reached = warp.launch->reached;
  const s32 size = static_cast<s32>(kernel.code.size());
  Elsewhere elsewhere(warp.elsewhere);
  u64 executed = 0, lanes = 0;
  for (;;) {
    Group& now = warp.now;
    if (now.mask == 0) {
      if (elsewhere.empty()) break;
      now = elsewhere.take_lowest();
    }
    if (now.at >= elsewhere.lowest()) {  // together with those there, or after them
      const Group next = elsewhere.take_lowest();
      if (next.at == now.at) {
        now.mask |= next.mask;
      } else {
        elsewhere.add(now);
        now = next;
      }
      continue;
    }
    if (now.at >= size) {
      fault(warp, code[size - 1], std::countr_zero(now.mask), "no return at the kernel's end");
      warp.alive &= ~now.mask;
      now.mask = 0;
      continue;
    }
    const Instruction& i = code[now.at];
    reached[now.at] = 1;
    if (++executed > kMostInstructions) {
      fault(warp, i, std::countr_zero(now.mask), "no end in sight");
      warp.alive = now.mask = 0;
      warp.elsewhere.clear();
      break;
    }
    u32 mask = now.mask;
    if (i.guard != kNone) {
      const u32 guard = warp.registers.predicate(i.guard);
      mask &= i.unless ? ~guard : guard;
    }
    if (i.watch) watch(warp, i, now.mask, mask);
    lanes += static_cast<u64>(std::popcount(mask));
    switch (i.flow) {
      case Flow::kNext:
        if (mask) i.run(warp, i, mask);
        ++now.at;
        break;
      case Flow::kShuffle:
        if (mask) {
          check_members(warp, i, mask, warp.registers.lanes<u32>(i.in[3]));
          i.run(warp, i, mask);
        }
        ++now.at;
        break;
      case Flow::kWarpBarrier:
        if (mask) {
          const u32* members = warp.registers.lanes<u32>(i.in[0]);
          check_members(warp, i, mask, members);
          // A barrier of some of the warp orders nothing here: all that could be a race is told.
          if (is_whole(warp, mask, members)) ++warp.barriers;
        }
        ++now.at;
        break;
      case Flow::kBranch:
        if (mask == now.mask) {
          now.at = i.target;
        } else if (mask == 0) {
          ++now.at;
        } else {
          elsewhere.add({i.target, mask});
          now = {now.at + 1, now.mask & ~mask};
        }
        break;
      case Flow::kExit:
        warp.alive &= ~mask;
        now.mask &= ~mask;
        ++now.at;
        break;
      case Flow::kBarrier:
      case Flow::kBarrierOr:
        if (mask != warp.alive) {
          fault(warp, i, std::countr_zero(now.mask), "barrier of the block in divergent code");
        }
        if (i.flow == Flow::kBarrierOr) {
          warp.any = (warp.registers.predicate(i.in[0]) & mask) != 0;
        }
        warp.warp_instructions += executed, warp.thread_instructions += lanes;
        return;  // still at the barrier
    }
  }
  warp.warp_instructions += executed, warp.thread_instructions += lanes;
}

}  // namespace emulator
