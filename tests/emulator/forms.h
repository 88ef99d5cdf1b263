// Every form of an instruction that the emulator knows, by its full name: what is not in the table
// is an error.
#pragma once

#include <string>
#include <unordered_map>

#include "machine.h"
#include "ptx.h"

namespace emulator {

struct Form {
  Handler run = nullptr;
  // The operands, destinations first: 2, 4, 8 for a register of so many bytes, p for a predicate,
  // {44} for a pair in braces, | between the two of a shuffle, 0 for barrier 0, i for a number of
  // the instruction. Empty: not described so (memory, branches).
  std::string operands;
  Flow flow = Flow::kNext;
  Spread spread = Spread::kAll;
};

class Forms {
 public:
  static const Forms& all();
  Forms();
  const Form* find(const std::string& name) const;
  std::vector<std::string> names() const;
  bool has_opcode(const std::string& opcode) const;  // the name up to the first dot

  void add(const std::string& name, Form form);
  // An instruction that does f to each lane by itself, like [](s32 a, s32 b) { return a < b; }: the
  // operands follow from its types, bool being a predicate.
  template <class F>
  void add(const std::string& name, F f, Spread spread = Spread::kAll) {
    add_lanes(name, f, &F::operator(), spread);
  }

 private:
  template <class F, class D, class... S>
  void add_lanes(const std::string& name, F, D (F::*)(S...) const, Spread spread) {
    add(name, Form{&run_lanes<F, D, S...>, letter<D>() + "=" + (letter<S>() + ... + ""),
                   Flow::kNext, spread});
  }
  template <class T>
  static std::string letter() {
    return std::is_same_v<T, bool> ? "p" : std::to_string(sizeof(T));
  }
  template <class F, class D, class... S>
  static void run_lanes(Warp& warp, const Instruction& i, u32 mask) {
    run_lanes<F, D, S...>(warp, i, mask, std::index_sequence_for<S...>());
  }
  template <class F, class D, class... S, size_t... K>
  static void run_lanes(Warp& warp, const Instruction& i, u32 mask, std::index_sequence<K...>) {
    set_lanes<D>(
        warp.registers, i.out[0], mask,
        [... in = Source<S>(warp.registers, i.in[K])](int lane) { return F()(in[lane]...); });
  }

  std::unordered_map<std::string, Form> forms_;
  std::unordered_map<std::string, int> opcodes_;
};

// The families.
void add_integers(Forms& forms);
void add_floats(Forms& forms);
void add_comparisons(Forms& forms);
void add_conversions(Forms& forms);
void add_moves(Forms& forms);
void add_control(Forms& forms);

// Loads and stores are found by their parts: `ld`, the space (none: generic, which here is always
// global), `v2` or `v4`, the type, and the bytes of the registers. Null if there is no such form.
enum class Space : u8 { kGlobal, kShared, kParameter };
struct Element {
  int bytes;
  bool is_signed;
};
Handler load_handler(Space space, Element element, int register_bytes);
Handler store_handler(Space space, Element element, int register_bytes);

}  // namespace emulator
