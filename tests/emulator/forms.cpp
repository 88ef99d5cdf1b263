#include "forms.h"

namespace emulator {

Forms::Forms() {
  add_integers(*this);
  add_floats(*this);
  add_comparisons(*this);
  add_conversions(*this);
  add_moves(*this);
  add_control(*this);
}

void Forms::add(const std::string& name, Form form) {
  forms_[name] = std::move(form);
  ++opcodes_[name.substr(0, name.find_first_of(". "))];
}

const Form* Forms::find(const std::string& name) const {
  const auto it = forms_.find(name);
  return it == forms_.end() ? nullptr : &it->second;
}

bool Forms::has_opcode(const std::string& opcode) const {
  return opcodes_.contains(opcode.substr(0, opcode.find('.')));
}

}  // namespace emulator
