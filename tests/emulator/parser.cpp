// The text of a kernel: its statements, one by one.
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "decoder.h"
#include "names.h"
#include "ptx.h"
#include "text.h"

namespace emulator {

namespace {

class Parser {
 public:
  explicit Parser(Kernel& kernel)
      : kernel_(kernel), names_(kernel), decoder_(kernel, names_), line_(kernel.first_line) {}

  void run() {
    for (const std::string_view parameter : split(kernel_.parameter_text, ',')) {
      names_.declare_parameter(parameter, kernel_.first_line);
    }
    while (skip_space()) {
      const char c = rest().front();
      if (c == '{') {
        names_.open_scope();
        ++at_;
        ++depth_;
      } else if (c == '}') {
        names_.close_scope(line_);
        ++at_;
        --depth_;
      } else if (!take_label()) {
        take_statement();
      }
    }
    if (depth_ != 0) fail(kernel_, line_, "a brace is missing");
    if (kernel_.code.empty()) fail(kernel_, line_, "no instructions");
    for (const auto& [index, label, line] : branches_) {
      const auto it = labels_.find(label);
      if (it == labels_.end()) fail(kernel_, line, "no label " + std::string(label));
      kernel_.code[index].target = it->second;
    }
    kernel_.reached.assign(kernel_.code.size(), 0);
    assign_slots(kernel_, names_.infos());
  }

 private:
  struct Branch {
    size_t index;
    std::string_view label;
    int line;
  };

  std::string_view rest() const { return kernel_.body.substr(at_); }

  // To the next statement; false at the end.
  bool skip_space() {
    const std::string_view body = kernel_.body;
    while (at_ < body.size()) {
      if (body.compare(at_, 2, "//") == 0) {
        at_ = std::min(body.find('\n', at_), body.size());
      } else if (is_space(body[at_])) {
        line_ += body[at_++] == '\n';
      } else {
        return true;
      }
    }
    return false;
  }

  bool take_label() {
    const std::string_view text = rest();
    const size_t end =
        text.find_first_not_of("$_%0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
    if (end == 0 || end == std::string_view::npos || text[end] != ':') return false;
    const std::string_view label = text.substr(0, end);
    if (!labels_.try_emplace(label, static_cast<s32>(kernel_.code.size())).second) {
      fail(kernel_, line_, "label " + std::string(label) + " is there twice");
    }
    at_ += end + 1;
    return true;
  }

  void take_statement() {
    const size_t end = rest().find(';');
    if (end == std::string_view::npos) fail(kernel_, line_, "a statement without an end");
    const std::string_view text = trim(rest().substr(0, end));
    if (text.find("//") != std::string_view::npos) fail(kernel_, line_, "a comment in a statement");
    if (text[0] == '.') {
      directive(text);
    } else {
      std::string_view label;
      Instruction i = decoder_.decode(text, line_, label);
      if (!label.empty()) branches_.push_back({kernel_.code.size(), label, line_});
      kernel_.code.push_back(i);
      kernel_.lines.push_back({line_, text});
    }
    line_ += static_cast<int>(std::count(text.begin(), text.end(), '\n'));
    at_ += end + 1;
  }

  void directive(std::string_view text) {
    std::string_view rest = text;
    const std::string_view word = take_word(rest);
    if (word == ".reg") {
      const std::string_view type = take_word(rest);
      for (const std::string_view name : split(rest, ',')) {
        names_.declare_register(type.substr(1), name, line_);
      }
    } else if (word == ".shared") {
      names_.declare_shared(text, line_);
    } else if (word != ".pragma") {
      fail(kernel_, line_, "directive " + std::string(text));
    }
  }

  Kernel& kernel_;
  Names names_;
  Decoder decoder_;
  size_t at_ = 0;
  int line_;
  int depth_ = 0;
  std::unordered_map<std::string_view, s32> labels_;
  std::vector<Branch> branches_;
};

}  // namespace

void parse(Kernel& kernel) { Parser(kernel).run(); }

}  // namespace emulator
