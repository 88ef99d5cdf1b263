// Integers: arithmetic, which wraps around, and bits.
#include <type_traits>

#include "forms.h"

namespace emulator {

namespace {

// Without the undefined overflow of signed numbers, and of 16 bits that become int.
template <class T>
using Wide = std::conditional_t<sizeof(T) == 8, u64, u32>;
template <class T>
using Product = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;

template <class T>
T negated(T a) {
  return static_cast<T>(Wide<T>{0} - static_cast<Wide<T>>(a));
}
template <class T>
T product(T a, T b) {
  return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b));
}
template <class T>
T sum(T a, T b) {
  return static_cast<T>(static_cast<Wide<T>>(a) + static_cast<Wide<T>>(b));
}
template <class T>
T high_product(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    return static_cast<T>((static_cast<Product<T>>(a) * b) >> 64);
  } else {
    using Whole = std::conditional_t<std::is_signed_v<T>, s64, u64>;
    return static_cast<T>((static_cast<Whole>(a) * b) >> (8 * sizeof(T)));
  }
}

// Division by zero gives what the manual leaves open: all bits, and the dividend as a remainder.
template <class T>
T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return negated(a);
  return static_cast<T>(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}

template <class T>
void add_arithmetic(Forms& forms, const std::string& type) {
  forms.add("add." + type, [](T a, T b) { return sum(a, b); });
  forms.add("sub." + type, [](T a, T b) { return sum(a, negated(b)); });
  forms.add("mul.lo." + type, [](T a, T b) { return product(a, b); });
  forms.add("mul.hi." + type, [](T a, T b) { return high_product(a, b); });
  forms.add("mad.lo." + type, [](T a, T b, T c) { return sum(product(a, b), c); });
  forms.add("div." + type, [](T a, T b) { return quotient(a, b); });
  forms.add("rem." + type, [](T a, T b) { return remainder(a, b); });
  forms.add(
      "shr." + type,
      [](T a, u32 b) {
        constexpr u32 bits = 8 * sizeof(T);
        const T all = static_cast<T>(a < 0 ? -1 : 0);
        return b < bits ? static_cast<T>(a >> (b & (bits - 1))) : all;
      },
      std::is_unsigned_v<T> ? Spread::kRight : Spread::kAll);
}

// Not for 16 bits, of which gcc 12 cannot make vector code here.
template <class T>
void add_extremes(Forms& forms, const std::string& type) {
  forms.add("min." + type, [](T a, T b) { return a < b ? a : b; });
  forms.add("max." + type, [](T a, T b) { return a > b ? a : b; });
}

template <class T>
void add_signed(Forms& forms, const std::string& type) {
  forms.add("neg." + type, [](T a) { return negated(a); });
  forms.add("abs." + type, [](T a) { return a < 0 ? negated(a) : a; });
}

template <class T, class D>
void add_wide(Forms& forms, const std::string& type) {
  forms.add("mul.wide." + type,
            [](T a, T b) { return static_cast<D>(static_cast<D>(a) * static_cast<D>(b)); });
}

template <class T>
void add_bits(Forms& forms, const std::string& type) {
  forms.add("and." + type, [](T a, T b) { return static_cast<T>(a & b); }, Spread::kAnd);
  forms.add("or." + type, [](T a, T b) { return static_cast<T>(a | b); }, Spread::kBits);
  forms.add("xor." + type, [](T a, T b) { return static_cast<T>(a ^ b); }, Spread::kBits);
  forms.add("not." + type, [](T a) { return static_cast<T>(~a); }, Spread::kBits);
  forms.add(
      "shl." + type,
      [](T a, u32 b) {
        constexpr u32 bits = 8 * sizeof(T);
        return b < bits ? static_cast<T>(static_cast<Wide<T>>(a) << (b & (bits - 1))) : T{0};
      },
      Spread::kLeft);
  forms.add(
      "shr." + type,
      [](T a, u32 b) {
        constexpr u32 bits = 8 * sizeof(T);
        return b < bits ? static_cast<T>(a >> (b & (bits - 1))) : T{0};
      },
      Spread::kRight);
}

// Any function of three bits: `immediate` is its table.
void lop3(Warp& warp, const Instruction& i, u32 mask) {
  const Source<u32> a(warp.registers, i.in[0]), b(warp.registers, i.in[1]),
      c(warp.registers, i.in[2]);
  if (i.immediate == 0x96) {
    return set_lanes<u32>(warp.registers, i.out[0], mask,
                          [=](int l) { return a[l] ^ b[l] ^ c[l]; });
  }
  u32 entries[8];  // all bits of those that are set
  for (int n = 0; n < 8; ++n) entries[n] = (i.immediate >> n & 1) ? kAll : 0;
  const auto choose = [](u32 by, u32 one, u32 zero) { return (by & one) | (~by & zero); };
  set_lanes<u32>(warp.registers, i.out[0], mask, [&](int l) {
    u32 by_c[4];
    for (int n = 0; n < 4; ++n) by_c[n] = choose(c[l], entries[2 * n + 1], entries[2 * n]);
    return choose(a[l], choose(b[l], by_c[3], by_c[2]), choose(b[l], by_c[1], by_c[0]));
  });
}

}  // namespace

void add_integers(Forms& forms) {
  add_arithmetic<s16>(forms, "s16");
  add_arithmetic<u16>(forms, "u16");
  add_arithmetic<s32>(forms, "s32");
  add_arithmetic<u32>(forms, "u32");
  add_arithmetic<s64>(forms, "s64");
  add_arithmetic<u64>(forms, "u64");
  add_extremes<s32>(forms, "s32");
  add_extremes<u32>(forms, "u32");
  add_extremes<s64>(forms, "s64");
  add_extremes<u64>(forms, "u64");
  add_signed<s16>(forms, "s16");
  add_signed<s32>(forms, "s32");
  add_signed<s64>(forms, "s64");
  add_wide<s16, s32>(forms, "s16");
  add_wide<u16, u32>(forms, "u16");
  add_wide<s32, s64>(forms, "s32");
  add_wide<u32, u64>(forms, "u32");
  add_bits<u16>(forms, "b16");
  add_bits<u32>(forms, "b32");
  add_bits<u64>(forms, "b64");
  forms.add("lop3.b32", Form{lop3, "4=444i"});
}

}  // namespace emulator
