// Copies, and registers taken apart and put together.
#include "forms.h"

namespace emulator {

namespace {

template <class T>
void add_copies(Forms& forms, std::initializer_list<const char*> names) {
  for (const char* name : names) forms.add(name, [](T a) { return a; }, Spread::kBits);
}

template <class Whole, class Half>
void unpack(Warp& warp, const Instruction& i, u32 mask) {
  const Source<Whole> whole(warp.registers, i.in[0]);
  set_lanes<Half>(warp.registers, i.out[0], mask,
                  [=](int l) { return static_cast<Half>(whole[l]); });
  set_lanes<Half>(warp.registers, i.out[1], mask,
                  [=](int l) { return static_cast<Half>(whole[l] >> (8 * sizeof(Half))); });
}

template <class Whole, class Half>
Whole pair(Half low, Half high) {
  return static_cast<Whole>(Whole{low} | Whole{high} << (8 * sizeof(Half)));
}

}  // namespace

void add_moves(Forms& forms) {
  add_copies<u16>(forms, {"mov.b16", "mov.u16", "mov.s16"});
  add_copies<u32>(forms, {"mov.b32", "mov.u32", "mov.s32", "mov.f32"});
  add_copies<u64>(forms, {"mov.b64", "mov.u64", "mov.s64", "mov.f64"});
  // Generic addresses are those of global memory: nothing else is addressed so here.
  add_copies<u64>(forms, {"cvta.global.u64", "cvta.to.global.u64"});
  forms.add("mov.b32 unpack", Form{unpack<u32, u16>, "{22}=4", Flow::kNext, Spread::kHalves});
  forms.add("mov.b64 unpack", Form{unpack<u64, u32>, "{44}=8", Flow::kNext, Spread::kHalves});
  forms.add("mov.b32 pack", [](u16 low, u16 high) { return pair<u32>(low, high); });
  forms.add("mov.b64 pack", [](u32 low, u32 high) { return pair<u64>(low, high); });
  for (const auto& [name, operands] :
       {std::pair("mov.b32 pack", "4={22}"), {"mov.b64 pack", "8={44}"}}) {
    forms.add(name, Form{forms.find(name)->run, operands, Flow::kNext, Spread::kHalves});
  }
}

}  // namespace emulator
