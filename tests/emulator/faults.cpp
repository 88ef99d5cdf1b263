#include "faults.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "machine.h"
#include "text.h"

namespace emulator {

namespace {

constexpr size_t kMostTexts = 256;

struct Faults {
  std::vector<std::string> texts;
  size_t count = 0;
};
Faults& faults() {
  static Faults faults;
  return faults;
}

}  // namespace

bool count_fault() { return ++faults().count <= kMostTexts; }
void tell_fault(std::string text) { faults().texts.push_back(std::move(text)); }

void report_fault(const std::string& text) {
  if (count_fault()) tell_fault(text);
}

bool any_fault() { return faults().count != 0; }

std::string take_faults(size_t most) {
  Faults taken = std::exchange(faults(), Faults());
  std::string text;
  const size_t told = std::min(most, taken.texts.size());
  for (size_t n = 0; n < told; ++n) text += taken.texts[n] + "\n";
  if (told < taken.count) {
    text += (told ? "and " : "") + std::to_string(taken.count - told) + (told ? " more" : "") +
            " faults\n";
  }
  return text;
}

static std::string place(const Warp& warp, const Instruction& i, int lane, std::string_view what) {
  const Kernel& kernel = warp.launch->kernel;
  const SourceLine& line = kernel.lines[static_cast<size_t>(&i - kernel.code.data())];
  return std::string(what) + ": " + kernel.readable_name + ", PTX line " +
         std::to_string(line.number) + " `" + squeezed(line.text) + "`, block " +
         std::to_string(warp.launch->block) + ", thread " + std::to_string(warp.thread(lane));
}

void fault(const Warp& warp, const Instruction& i, int lane, std::string_view what) {
  if (count_fault()) tell_fault(place(warp, i, lane, what));
}

void fault_at(const Warp& warp, const Instruction& i, int lane, std::string_view what, u64 address,
              std::string_view about) {
  if (!count_fault()) return;
  char hex[32];
  std::snprintf(hex, sizeof hex, ", address 0x%zx", size_t{address});
  std::string text = place(warp, i, lane, what) + hex;
  if (!about.empty()) text += " (" + std::string(about) + ")";
  tell_fault(std::move(text));
}

Settings& settings() {
  static Settings settings;
  return settings;
}

Counts& counts() {
  static Counts counts;
  return counts;
}

}  // namespace emulator
