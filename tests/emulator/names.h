// The names of a kernel: registers, constants, parameters, shared variables.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ptx.h"

namespace emulator {

// Bytes of a type's values, `b32` or `f16x2`; 0 for predicates, -1 if there is no such type here.
int width_of(std::string_view type);

class Names {
 public:
  explicit Names(Kernel& kernel) : kernel_(kernel) { scopes_.emplace_back(); }

  void open_scope() { scopes_.emplace_back(); }
  void close_scope(int line);

  void declare_register(std::string_view type, std::string_view name, int line);  // or name<count>
  void declare_parameter(std::string_view text, int line);
  void declare_shared(std::string_view text, int line);

  // The number of an operand: a register, or a constant of so many bytes.
  Slot operand(std::string_view text, int width, int line);
  // A register alone, of any width.
  Slot register_of(std::string_view name, int line);
  int width(Slot number) const { return infos_[number].width; }
  // Where a parameter or a shared variable begins; null if it is none.
  const u32* parameter(std::string_view name) const;
  const u32* shared(std::string_view name) const;
  s64 integer(std::string_view text, int line) const;

  std::vector<RegisterInfo>& infos() { return infos_; }

 private:
  struct Range {
    std::string_view prefix;
    unsigned count;
    int width;
  };
  struct Scope {
    std::unordered_map<std::string_view, Slot> registers;
    std::vector<Range> ranges;
  };
  Slot add(std::string_view name, int width, bool is_constant);
  Slot constant(int width, u64 value);
  const Slot* find(std::string_view name);
  const Slot* special(std::string_view name);
  u64 literal(std::string_view text, int width, int line) const;

  Kernel& kernel_;
  std::vector<Scope> scopes_;
  std::vector<RegisterInfo> infos_;
  std::map<std::pair<int, u64>, Slot> constants_;
  std::unordered_map<std::string_view, Slot> specials_;
  std::unordered_map<std::string_view, u32> parameters_, shared_;
};

}  // namespace emulator
