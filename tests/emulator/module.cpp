// A PTX file: where its kernels are, and what of them has run.
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "ptx.h"
#include "text.h"

namespace emulator {

namespace {

std::vector<std::unique_ptr<Module>>& all_modules() {
  static std::vector<std::unique_ptr<Module>> modules;
  return modules;
}

std::string demangled(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string readable = text ? text : name;
  std::free(text);
  return readable;
}

size_t find_or_fail(std::string_view text, std::string_view what, size_t from) {
  const size_t at = text.find(what, from);
  if (at == std::string_view::npos) {
    throw std::runtime_error("PTX: an entry without " + std::string(what));
  }
  return at;
}

size_t end_of_body(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t at = open; at < text.size(); ++at) {
    if (text.compare(at, 2, "//") == 0) at = std::min(text.find('\n', at), text.size() - 1);
    if (text[at] == '{') ++depth;
    if (text[at] == '}' && --depth == 0) return at;
  }
  throw std::runtime_error("PTX: a kernel without an end");
}

// What is between a kernel's parameters and its body: how many threads it is for.
u32 most_threads(std::string_view directives, const std::string& name) {
  u32 most = 0;
  while (!trim(directives).empty()) {
    const std::string_view word = take_word(directives);
    if (word == ".maxntid" || word == ".reqntid") {
      most = static_cast<u32>(std::atoi(std::string(directives).c_str()));
    } else if (word[0] == '.' && word != ".minnctapersm" && word != ".maxnreg" &&
               word != ".noreturn") {
      throw std::runtime_error("PTX of " + name + ": directive " + std::string(word));
    }
  }
  return most;
}

}  // namespace

Module* load_module(std::string text) {
  auto module = std::make_unique<Module>();
  module->text = std::move(text);
  const std::string_view all = module->text;
  size_t counted = 0;
  int line = 1;
  for (size_t at = 0; (at = all.find(".entry", at)) != std::string_view::npos;) {
    const size_t begin = all.find_first_not_of(" \t\n", at + 6);
    const size_t brace = find_or_fail(all, "{", begin), end = end_of_body(all, brace);
    const std::string_view head = all.substr(begin, brace - begin);
    auto kernel = std::make_unique<Kernel>();
    kernel->name = trim(head.substr(0, head.find_first_of(" \t\n(")));
    kernel->readable_name = demangled(kernel->name);
    const size_t open = head.find('('), close = head.find(')');
    size_t behind = kernel->name.size();
    if (open != std::string_view::npos) {
      if (close == std::string_view::npos) find_or_fail(head, ")", open);
      kernel->parameter_text = head.substr(open + 1, close - open - 1);
      behind = close + 1;
    }
    kernel->most_threads = most_threads(head.substr(behind), kernel->name);
    kernel->body = all.substr(brace + 1, end - brace - 1);
    line += static_cast<int>(std::count(all.begin() + static_cast<s64>(counted),
                                        all.begin() + static_cast<s64>(brace), '\n'));
    counted = brace;
    kernel->first_line = line;
    module->kernels.push_back(std::move(kernel));
    at = end;
  }
  all_modules().push_back(std::move(module));
  return all_modules().back().get();
}

const std::vector<std::unique_ptr<Module>>& modules() { return all_modules(); }

Kernel* find_kernel(Module* module, const std::string& name) {
  for (const auto& kernel : module->kernels) {
    if (kernel->name == name) return kernel.get();
  }
  return nullptr;
}

const std::string& name_of(const Kernel* kernel) { return kernel->name; }

std::vector<Kernel*> kernels_of(Module* module) {
  std::vector<Kernel*> kernels;
  for (const auto& kernel : module->kernels) kernels.push_back(kernel.get());
  return kernels;
}

std::vector<Coverage> coverage() {
  std::vector<Coverage> all;
  for (const auto& module : modules()) {
    for (const auto& kernel : module->kernels) {
      Coverage of{kernel->name, kernel->launches, {}};
      for (size_t n = 0; kernel->launches && n < kernel->code.size(); ++n) {
        const SourceLine& line = kernel->lines[n];
        of.lines.push_back({line.number, kernel->reached[n] != 0, squeezed(line.text)});
      }
      all.push_back(std::move(of));
    }
  }
  return all;
}

void prepare(Kernel* kernel) {
  if (kernel->parsed) return;
  Kernel parsed = *kernel;  // what cannot be parsed stays as it was
  parse(parsed);
  parsed.parsed = true;
  *kernel = std::move(parsed);
}

void fail(const Kernel& kernel, int line, const std::string& what) {
  throw std::runtime_error("PTX of " + kernel.readable_name + ", line " + std::to_string(line) +
                           ": " + what);
}

}  // namespace emulator
