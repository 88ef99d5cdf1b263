#include "names.h"

#include <algorithm>
#include <charconv>

#include "text.h"

namespace emulator {

namespace {

constexpr std::pair<std::string_view, Special> kSpecials[] = {
    {"%tid.x", Special::kTid},       {"%ctaid.x", Special::kCtaid}, {"%ntid.x", Special::kNtid},
    {"%nctaid.x", Special::kNctaid}, {"%laneid", Special::kLaneid},
};

bool is_literal(std::string_view s) {
  if (!s.empty() && s[0] == '-') s.remove_prefix(1);
  return !s.empty() && s[0] >= '0' && s[0] <= '9';
}

// Digits of a base, the whole text.
bool digits(std::string_view s, int base, u64& value) {
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value, base);
  return error == std::errc() && end == s.data() + s.size();
}

u32 round_up(u32 n, u32 to) { return (n + to - 1) / to * to; }

}  // namespace

int width_of(std::string_view type) {
  if (type == "pred") return 0;
  for (std::string_view four : {"f16x2", "bf16x2"}) {
    if (type == four) return 4;
  }
  for (std::string_view two : {"b16", "u16", "s16", "f16", "bf16"}) {
    if (type == two) return 2;
  }
  for (std::string_view four : {"b32", "u32", "s32", "f32"}) {
    if (type == four) return 4;
  }
  for (std::string_view eight : {"b64", "u64", "s64", "f64"}) {
    if (type == eight) return 8;
  }
  return -1;
}

void Names::close_scope(int line) {
  if (scopes_.size() == 1) fail(kernel_, line, "a brace too many");
  scopes_.pop_back();
}

Slot Names::add(std::string_view name, int width, bool is_constant) {
  infos_.push_back({std::string(name), width, is_constant});
  return static_cast<Slot>(infos_.size() - 1);
}

void Names::declare_register(std::string_view type, std::string_view name, int line) {
  const int width = width_of(type);
  if (width < 0) fail(kernel_, line, "registers of type " + std::string(type));
  Scope& scope = scopes_.back();
  const size_t angle = name.find('<');
  if (angle == std::string_view::npos) {
    scope.registers[name] = add(name, width, false);
    return;
  }
  u64 count = 0;
  if (name.back() != '>' || !digits(name.substr(angle + 1, name.size() - angle - 2), 10, count)) {
    fail(kernel_, line, "registers " + std::string(name));
  }
  scope.ranges.push_back({name.substr(0, angle), static_cast<unsigned>(count), width});
}

void Names::declare_parameter(std::string_view text, int line) {
  // .param .align 8 .b8 name[64], or .param .u64 .ptr .global .align 1 name
  u32 alignment = 1, element = 0, count = 1;
  bool pointer = false;
  std::string_view rest = text;
  if (take_word(rest) != ".param") fail(kernel_, line, "parameter " + std::string(text));
  while (!rest.empty()) {
    std::string_view word = take_word(rest);
    if (word == ".align") {
      const u32 n = static_cast<u32>(integer(take_word(rest), line));
      if (!pointer) alignment = n;  // behind .ptr: of what it points to
    } else if (word == ".ptr") {
      pointer = true;
    } else if (word == ".b8" || word == ".u8" || word == ".s8") {
      element = 1;
    } else if (word[0] == '.') {
      const int width = width_of(word.substr(1));
      if (width > 0) {
        element = static_cast<u32>(width);
      } else if (!pointer ||
                 (word != ".global" && word != ".shared" && word != ".const" && word != ".local")) {
        fail(kernel_, line, "parameter " + std::string(text));
      }
    } else if (rest.empty() && element) {
      const size_t bracket = word.find('[');
      if (bracket != std::string_view::npos) {
        count =
            static_cast<u32>(integer(word.substr(bracket + 1, word.size() - bracket - 2), line));
        word = word.substr(0, bracket);
      }
      const u32 offset = round_up(kernel_.parameter_bytes, std::max(alignment, element));
      kernel_.parameters.push_back({word, offset, element * count});
      kernel_.parameter_bytes = offset + element * count;
      parameters_[word] = offset;
      return;
    } else {
      break;
    }
  }
  fail(kernel_, line, "parameter " + std::string(text));
}

void Names::declare_shared(std::string_view text, int line) {  // .shared .align 8 .b8 name[80]
  u32 alignment = 1;
  int element = 0;
  std::string_view rest = text;
  take_word(rest);
  while (!rest.empty()) {
    const std::string_view word = take_word(rest);
    const size_t bracket = word.find('[');
    if (word == ".align") {
      alignment = static_cast<u32>(integer(take_word(rest), line));
    } else if (word == ".b8" || word == ".u8" || word == ".s8") {
      element = 1;
    } else if (word[0] == '.') {
      element = width_of(word.substr(1));
    } else if (rest.empty() && element > 0) {
      u32 count = 1;
      if (bracket != std::string_view::npos) {
        count =
            static_cast<u32>(integer(word.substr(bracket + 1, word.size() - bracket - 2), line));
      }
      const u32 width = static_cast<u32>(element);
      const u32 offset = round_up(kernel_.shared_bytes, std::max(alignment, width));
      kernel_.shared_bytes = offset + count * width;
      shared_[word.substr(0, bracket)] = offset;
      return;
    } else {
      break;
    }
  }
  fail(kernel_, line, "shared variable " + std::string(text));
}

const u32* Names::parameter(std::string_view name) const {
  const auto it = parameters_.find(name);
  return it == parameters_.end() ? nullptr : &it->second;
}

const u32* Names::shared(std::string_view name) const {
  const auto it = shared_.find(name);
  return it == shared_.end() ? nullptr : &it->second;
}

Slot Names::constant(int width, u64 value) {
  const auto [it, is_new] = constants_.try_emplace({width, value}, 0);
  if (is_new) {
    it->second = add("constant", width, true);
    kernel_.constants.push_back({it->second, width, value});
  }
  return it->second;
}

const Slot* Names::special(std::string_view name) {
  const auto known = specials_.find(name);
  if (known != specials_.end()) return &known->second;
  for (const auto& [text, what] : kSpecials) {
    if (text != name) continue;
    const Slot slot = add(name, 4, true);
    kernel_.specials.push_back({what, slot});
    return &(specials_[text] = slot);
  }
  return nullptr;
}

const Slot* Names::find(std::string_view name) {
  const size_t last = name.find_last_not_of("0123456789");
  const std::string_view prefix = name.substr(0, last + 1), tail = name.substr(last + 1);
  u64 number = 0;
  const bool numbered = digits(tail, 10, number) && (tail == "0" || tail[0] != '0');
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    const auto it = scope->registers.find(name);
    if (it != scope->registers.end()) return &it->second;
    if (!numbered) continue;
    for (const Range& range : scope->ranges) {
      if (range.prefix == prefix && number < range.count) {
        return &(scope->registers[name] = add(name, range.width, false));
      }
    }
  }
  return special(name);
}

Slot Names::register_of(std::string_view name, int line) {
  const Slot* slot = find(name);
  if (!slot) fail(kernel_, line, "unknown register or symbol " + std::string(name));
  return *slot;
}

s64 Names::integer(std::string_view text, int line) const {
  std::string_view s = trim(text);
  const bool minus = !s.empty() && s[0] == '-';
  if (minus) s = trim(s.substr(1));
  if (!s.empty() && s.back() == 'U') s.remove_suffix(1);
  const bool hexadecimal = s.size() > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
  u64 value = 0;
  // A number that begins with 0 would be octal: none is met, so none is understood.
  const bool good = hexadecimal ? digits(s.substr(2), 16, value)
                                : (s == "0" || (!s.empty() && s[0] != '0')) && digits(s, 10, value);
  if (!good) fail(kernel_, line, "number " + std::string(text));
  return static_cast<s64>(minus ? -value : value);
}

u64 Names::literal(std::string_view s, int width, int line) const {
  const bool real = s.size() > 2 && s[0] == '0' && std::string_view("fFdD").find(s[1]) != s.npos;
  if (real) {
    const int bytes = s[1] == 'f' || s[1] == 'F' ? 4 : 8;
    u64 value = 0;
    if (bytes != width || s.size() != 2 + 2u * bytes || !digits(s.substr(2), 16, value)) {
      fail(kernel_, line, "number " + std::string(s) + " of " + std::to_string(width) + " bytes");
    }
    return value;
  }
  const s64 value = integer(s, line);
  if (width == 0) {
    if (value != 0 && value != 1 && value != -1) fail(kernel_, line, "predicate " + std::string(s));
    return value != 0;
  }
  if (width == 8) return static_cast<u64>(value);
  const s64 limit = s64{1} << (8 * width);
  if (value >= limit || value < -limit / 2) {
    fail(kernel_, line, "number " + std::string(s) + " of " + std::to_string(width) + " bytes");
  }
  return static_cast<u64>(value) & static_cast<u64>(limit - 1);
}

Slot Names::operand(std::string_view text, int width, int line) {
  if (text.empty()) fail(kernel_, line, "an operand is missing");
  if (is_literal(text)) return constant(width, literal(text, width, line));
  for (const u32* offset : {parameter(text), shared(text)}) {
    if (!offset) continue;
    if (width < 4) fail(kernel_, line, "address of " + std::string(text));
    return constant(width, *offset);
  }
  const Slot slot = register_of(text, line);
  if (infos_[slot].width != width) {
    fail(kernel_, line,
         "operand " + std::string(text) + " has " + std::to_string(infos_[slot].width) +
             " bytes, not " + std::to_string(width));
  }
  return slot;
}

}  // namespace emulator
