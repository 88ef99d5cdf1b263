// Branches, barriers, and shuffles between the threads of a warp. What branches and barriers do is
// the machine's business.
#include <cstring>

#include "forms.h"

namespace emulator {

namespace {

enum class Shuffle { kUp, kDown, kButterfly, kIndex };

// d|p, a, lane, clamp and segments, members: a of another lane; p: whether there is such a lane.
template <Shuffle kMode>
void shuffle(Warp& warp, const Instruction& i, u32 mask) {
  u32* to = warp.registers.lanes<u32>(i.out[0]);
  const u32 *by = warp.registers.lanes<u32>(i.in[1]), *limits = warp.registers.lanes<u32>(i.in[2]),
            *members = warp.registers.lanes<u32>(i.in[3]);
  u32 values[kLanes], valid = 0;
  std::memcpy(values, warp.registers.lanes<u32>(i.in[0]), sizeof values);
  each_lane(mask, [&](int lane) {
    const int b = by[lane] & 31, clamp = limits[lane] & 31, segment = limits[lane] >> 8 & 31;
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = 0;
    switch (kMode) {
      case Shuffle::kUp:
        from = lane - b;
        break;
      case Shuffle::kDown:
        from = lane + b;
        break;
      case Shuffle::kButterfly:
        from = lane ^ b;
        break;
      case Shuffle::kIndex:
        from = first | (b & ~segment);
    }
    const bool there = kMode == Shuffle::kUp ? from >= last : from <= last;
    if (!there) from = lane;
    if (!((mask & members[lane]) >> from & 1)) {
      fault(warp, i, lane,
            "shuffle from thread " + std::to_string(warp.thread(from)) + ", which takes no part");
    }
    to[lane] = values[from];
    valid |= u32{there} << lane;
  });
  if (i.outs > 1) warp.registers.set_predicate(i.out[1], mask, valid);
}

void nothing(Warp&, const Instruction&, u32) {}

}  // namespace

void add_control(Forms& forms) {
  forms.add("bra", Form{nothing, "", Flow::kBranch, Spread::kNothing});
  forms.add("bra.uni", Form{nothing, "", Flow::kBranch, Spread::kNothing});
  forms.add("ret", Form{nothing, "", Flow::kExit, Spread::kNothing});
  forms.add("exit", Form{nothing, "", Flow::kExit, Spread::kNothing});
  forms.add("bar.sync", Form{nothing, "=0", Flow::kBarrier, Spread::kNothing});
  forms.add("bar.red.or.pred", Form{nothing, "p=0p", Flow::kBarrierOr, Spread::kNothing});
  forms.add("bar.warp.sync", Form{nothing, "=4", Flow::kWarpBarrier, Spread::kNothing});
  forms.add("shfl.sync.up.b32",
            Form{shuffle<Shuffle::kUp>, "4|p=4444", Flow::kShuffle, Spread::kNothing});
  forms.add("shfl.sync.down.b32",
            Form{shuffle<Shuffle::kDown>, "4|p=4444", Flow::kShuffle, Spread::kNothing});
  forms.add("shfl.sync.bfly.b32",
            Form{shuffle<Shuffle::kButterfly>, "4|p=4444", Flow::kShuffle, Spread::kNothing});
  forms.add("shfl.sync.idx.b32",
            Form{shuffle<Shuffle::kIndex>, "4|p=4444", Flow::kShuffle, Spread::kNothing});
}

}  // namespace emulator
