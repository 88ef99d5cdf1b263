#include "forms.h"

#include <algorithm>

namespace emulator {

const Forms& Forms::all() {
  static const Forms forms;
  return forms;
}

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

std::vector<std::string> Forms::names() const {
  std::vector<std::string> names;
  for (const auto& [name, form] : forms_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

bool Forms::has_opcode(const std::string& opcode) const {
  return opcodes_.contains(opcode.substr(0, opcode.find('.')));
}

std::vector<std::string> known_instructions() { return Forms::all().names(); }

}  // namespace emulator
