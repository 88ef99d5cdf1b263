#include "decoder.h"

#include <algorithm>

#include "text.h"

namespace emulator {

namespace {

bool in_braces(std::string_view s) { return !s.empty() && s.front() == '{' && s.back() == '}'; }

std::vector<std::string_view> members(std::string_view s) {
  return split(s.substr(1, s.size() - 2), ',');
}

}  // namespace

void Decoder::fail(const std::string& what) const {
  emulator::fail(kernel_, line_, what + " in `" + squeezed(text_) + "`");
}

void Decoder::add_out(Instruction& i, Slot slot) {
  if (i.outs == std::size(i.out)) fail("too many destinations");
  if (names_.infos()[slot].is_constant) fail("a destination that is no register");
  i.out[i.outs++] = slot;
}

void Decoder::add_in(Instruction& i, Slot slot) {
  if (i.ins == std::size(i.in)) fail("too many operands");
  i.in[i.ins++] = slot;
}

Instruction Decoder::decode(std::string_view text, int line, std::string_view& label) {
  text_ = text, line_ = line;
  Instruction i;
  std::string_view rest = text;
  if (rest[0] == '@') {
    std::string_view guard = take_word(rest).substr(1);
    i.unless = !guard.empty() && guard[0] == '!';
    if (i.unless) guard.remove_prefix(1);
    i.guard = names_.operand(guard, 0, line);
  }
  const std::string name(take_word(rest));
  const std::vector<std::string_view> operands = split(rest, ',');
  const std::vector<std::string_view> parts = split(name, '.');
  if (parts.empty()) fail("no instruction");
  if (parts[0] == "ld" || parts[0] == "st") {
    memory(i, parts, operands);
    return i;
  }
  const Form& form = form_of(name, operands);
  i.run = form.run, i.flow = form.flow, i.spread = form.spread;
  if (form.flow == Flow::kBranch) {
    if (operands.size() != 1) fail("a branch to one label");
    label = operands[0];
    return i;
  }
  if (form.flow == Flow::kBarrier || form.flow == Flow::kBarrierOr) kernel_.has_barrier = true;
  described(i, form, operands);
  return i;
}

const Form& Decoder::form_of(const std::string& name,
                             const std::vector<std::string_view>& operands) {
  std::string key = name;
  if (operands.size() == 2 && in_braces(operands[0])) key += " unpack";
  if (operands.size() == 2 && in_braces(operands[1])) key += " pack";
  const Form* form = Forms::all().find(key);
  if (form) return *form;
  if (Forms::all().has_opcode(name)) fail("unknown modifier or type of " + name);
  fail("unknown opcode " + name);
}

void Decoder::described(Instruction& i, const Form& form, std::vector<std::string_view> operands) {
  bool out = true, in_group = false;
  size_t next = 0;
  std::vector<std::string_view> group;
  size_t member = 0;
  for (size_t at = 0; at < form.operands.size(); ++at) {
    const char c = form.operands[at];
    if (c == '=') {
      out = false;
      continue;
    }
    if (c == '}') {
      if (member != group.size()) fail("too many operands in braces");
      in_group = false;
      continue;
    }
    if (!in_group && next == operands.size()) fail("an operand is missing");
    if (c == '{') {
      if (!in_braces(operands[next])) fail("operands in braces are missing");
      group = members(operands[next++]);
      member = 0, in_group = true;
      continue;
    }
    if (in_group && member == group.size()) fail("an operand in braces is missing");
    std::string_view operand = in_group ? group[member++] : operands[next++];
    if (c == '0' || c == 'i') {
      i.immediate = names_.integer(operand, line_);
      if (c == '0' && i.immediate != 0) fail("a barrier other than 0");
      if (i.immediate < 0 || i.immediate > 0xff) fail("a table of more than 8 bits");
      continue;
    }
    if (at + 1 < form.operands.size() && form.operands[at + 1] == '|') {
      // The second half may be left out: d|p or d.
      const size_t bar = operand.find('|');
      add_out(i, names_.operand(trim(operand.substr(0, bar)), c - '0', line_));
      at += 2;
      if (bar != std::string_view::npos) {
        add_out(i, names_.operand(trim(operand.substr(bar + 1)), 0, line_));
      }
      continue;
    }
    const Slot slot = names_.operand(operand, c == 'p' ? 0 : c - '0', line_);
    out ? add_out(i, slot) : add_in(i, slot);
  }
  if (next != operands.size()) fail("too many operands");
  if (i.spread == Spread::kNothing) return;
  i.bytes = static_cast<u8>(names_.width(i.outs == 2 ? i.in[0] : i.out[0]));
}

// ---- loads and stores --------------------------------------------------------------------------

void Decoder::memory(Instruction& i, const std::vector<std::string_view>& parts,
                     const std::vector<std::string_view>& operands) {
  const bool load = parts[0] == "ld";
  size_t at = 1;
  const auto take = [&](std::string_view word) {
    const bool found = at < parts.size() && parts[at] == word;
    at += found;
    return found;
  };
  Space space = Space::kGlobal;
  if (!take("global")) {
    if (take("shared"))
      space = Space::kShared;
    else if (take("param"))
      space = Space::kParameter;
  }
  if (take("v2"))
    i.count = 2;
  else if (take("v4"))
    i.count = 4;
  if (at + 1 != parts.size()) fail("unknown modifier or type");
  const std::string_view type = parts[at];
  const bool byte = type == "b8" || type == "u8" || type == "s8";
  const int bytes = byte ? 1 : width_of(type);
  if (bytes <= 0 || type == "f16" || type == "bf16" || bytes * i.count > 16) {
    fail("unknown modifier or type");
  }
  if (operands.size() != 2) fail("two operands are due");
  address(i, operands[load ? 1 : 0], space);
  const std::string_view values = operands[load ? 0 : 1];
  if (in_braces(values) != (i.count > 1)) fail("a vector's operands");
  const auto each = in_braces(values) ? members(values) : std::vector<std::string_view>{values};
  if (each.size() != i.count) fail("a vector's operands");
  int width = 0;
  for (const std::string_view value : each) {
    const bool literal = !load && (value[0] == '-' || (value[0] >= '0' && value[0] <= '9'));
    const Slot slot = literal ? names_.operand(value, std::max(bytes, 2), line_)
                              : names_.register_of(value, line_);
    const int here = names_.width(slot);
    if (here < bytes || (width && here != width)) fail("registers of another size");
    width = here;
    load ? add_out(i, slot) : add_in(i, slot);
  }
  i.bytes = static_cast<u8>(bytes), i.spread = Spread::kNothing;
  const Element element{bytes, type[0] == 's'};
  i.run = load ? load_handler(space, element, width) : store_handler(space, element, width);
  if (!i.run) fail("unknown modifier or type");
  if (space == Space::kShared) {
    kernel_.shared_cell = std::min(kernel_.shared_cell, static_cast<u32>(bytes * i.count));
  }
  if (space == Space::kGlobal) i.access = static_cast<u16>(kernel_.accesses++);
  if (kernel_.accesses > 0xffff) fail("too many accesses of global memory");
}

// [register+offset] or [variable+offset]; the register is operand 0.
void Decoder::address(Instruction& i, std::string_view text, Space space) {
  if (text.size() < 3 || text.front() != '[' || text.back() != ']') fail("no address");
  std::string_view base = trim(text.substr(1, text.size() - 2));
  const size_t plus = base.find('+');
  if (plus != std::string_view::npos) {
    i.immediate = names_.integer(base.substr(plus + 1), line_);
    base = trim(base.substr(0, plus));
  }
  const u32* variable = space == Space::kParameter ? names_.parameter(base)
                        : space == Space::kShared  ? names_.shared(base)
                                                   : nullptr;
  if (variable) {
    i.immediate += *variable;
    return;
  }
  const Slot slot = names_.register_of(base, line_);
  i.address_bytes = static_cast<u8>(names_.width(slot));
  const bool good = i.address_bytes == 8 || (i.address_bytes == 4 && space == Space::kShared);
  if (!good) fail("an address of " + std::to_string(i.address_bytes) + " bytes");
  add_in(i, slot);
}

}  // namespace emulator
