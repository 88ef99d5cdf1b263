// From the words of an instruction to what the machine runs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "forms.h"
#include "names.h"

namespace emulator {

class Decoder {
 public:
  Decoder(Kernel& kernel, Names& names) : kernel_(kernel), names_(names) {}

  // An instruction with its guard, without the semicolon. `label`: where a branch goes.
  Instruction decode(std::string_view text, int line, std::string_view& label);

 private:
  void memory(Instruction& i, const std::vector<std::string_view>& parts,
              const std::vector<std::string_view>& operands);
  void address(Instruction& i, std::string_view text, Space space);
  void described(Instruction& i, const Form& form, std::vector<std::string_view> operands);
  const Form& form_of(const std::string& name, const std::vector<std::string_view>& operands);
  void add_out(Instruction& i, Slot slot);
  void add_in(Instruction& i, Slot slot);
  [[noreturn]] void fail(const std::string& what) const;

  Kernel& kernel_;
  Names& names_;
  std::string_view text_;
  int line_ = 0;
};

}  // namespace emulator
