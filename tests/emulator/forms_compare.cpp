// Comparisons, and what is done with predicates.
#include "forms.h"

namespace emulator {

namespace {

template <class T>
void add_equality(Forms& forms, const std::string& type) {
  forms.add("setp.eq." + type, [](T a, T b) { return a == b; });
  forms.add("setp.ne." + type, [](T a, T b) -> bool { return a != b; });
}

template <class T>
void add_order(Forms& forms, const std::string& type) {
  forms.add("setp.lt." + type, [](T a, T b) { return a < b; });
  forms.add("setp.le." + type, [](T a, T b) { return a <= b; });
  forms.add("setp.gt." + type, [](T a, T b) { return a > b; });
  forms.add("setp.ge." + type, [](T a, T b) { return a >= b; });
}

// False with a NaN; with a u behind, true.
template <class T>
void add_float(Forms& forms, const std::string& type) {
  add_order<T>(forms, type);
  forms.add("setp.eq." + type, [](T a, T b) { return a == b; });
  forms.add("setp.ne." + type, [](T a, T b) -> bool { return (a < b) | (a > b); });
  forms.add("setp.equ." + type, [](T a, T b) -> bool { return !((a < b) | (a > b)); });
  forms.add("setp.neu." + type, [](T a, T b) { return a != b; });
  forms.add("setp.ltu." + type, [](T a, T b) { return !(a >= b); });
  forms.add("setp.leu." + type, [](T a, T b) { return !(a > b); });
  forms.add("setp.gtu." + type, [](T a, T b) { return !(a <= b); });
  forms.add("setp.geu." + type, [](T a, T b) { return !(a < b); });
  forms.add("setp.num." + type, [](T a, T b) -> bool { return (a == a) & (b == b); });
  forms.add("setp.nan." + type, [](T a, T b) -> bool { return (a != a) | (b != b); });
}

template <class T>
void add_integer(Forms& forms, const std::string& type) {
  add_equality<T>(forms, type);
  add_order<T>(forms, type);
}

template <class T>
void add_choice(Forms& forms, std::initializer_list<const char*> types) {
  for (const char* type : types) {
    forms.add(
        std::string("selp.") + type, [](T a, T b, bool p) { return p ? a : b; }, Spread::kChoice);
  }
}

// A predicate is a word, a bit for each lane.
template <class F>
void combine(Warp& warp, const Instruction& i, u32 mask) {
  const auto predicate = [&](int n) { return warp.registers.predicate(i.in[n]); };
  u32 result;
  if constexpr (std::is_invocable_v<F, u32, u32>) {
    result = F()(predicate(0), predicate(1));
  } else {
    result = F()(predicate(0));
  }
  warp.registers.set_predicate(i.out[0], mask, result);
}
template <class F>
void add_predicates(Forms& forms, const char* name, const char* operands, F) {
  forms.add(name, Form{combine<F>, operands, Flow::kNext, Spread::kBits});
}

}  // namespace

void add_comparisons(Forms& forms) {
  add_integer<s16>(forms, "s16");
  add_integer<u16>(forms, "u16");
  add_integer<s32>(forms, "s32");
  add_integer<u32>(forms, "u32");
  add_integer<s64>(forms, "s64");
  add_integer<u64>(forms, "u64");
  add_equality<u16>(forms, "b16");
  add_equality<u32>(forms, "b32");
  add_equality<u64>(forms, "b64");
  add_float<float>(forms, "f32");
  add_float<double>(forms, "f64");
  add_choice<u16>(forms, {"b16", "u16", "s16"});
  add_choice<u32>(forms, {"b32", "u32", "s32", "f32"});
  add_choice<u64>(forms, {"b64", "u64", "s64", "f64"});
  add_predicates(forms, "and.pred", "p=pp", [](u32 a, u32 b) { return a & b; });
  add_predicates(forms, "or.pred", "p=pp", [](u32 a, u32 b) { return a | b; });
  add_predicates(forms, "xor.pred", "p=pp", [](u32 a, u32 b) { return a ^ b; });
  add_predicates(forms, "not.pred", "p=p", [](u32 a) { return ~a; });
  add_predicates(forms, "mov.pred", "p=p", [](u32 a) { return a; });
}

}  // namespace emulator
