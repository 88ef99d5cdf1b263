// What Python asks of the emulator, by ctypes. Texts are valid until the next call for one.
#include <cxxabi.h>
#include <stdlib.h>

#include <memory>
#include <sstream>

#include "runtime.h"

using namespace emulator;
using namespace emulator::host;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const char* keep(std::string text) {
  static std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

std::string readable(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), &free);
  return status == 0 ? name.get() : mangled;
}

void write(std::ostream& out, const Dim3& size) {
  out << size.x << '\t' << size.y << '\t' << size.z << '\t';
}

}  // namespace

EXPORT void emulated_begin(const void* const* writable, int count) { begin(writable, count); }

EXPORT const char* emulated_faults() { return keep(take_faults()); }

// 0: there is no such setting.
EXPORT int emulated_set(const char* setting, int64_t value) {
  const std::string name = setting;
  const int number = static_cast<int>(value);
  Settings& s = settings();
  if (name == "check_memory") {
    s.check_memory = value != 0;
  } else if (name == "check_races") {
    s.check_races = value != 0;
  } else if (name == "order") {
    s.order = static_cast<Order>(number);
  } else if (name == "seed") {
    s.seed = static_cast<uint64_t>(value);
  } else if (name == "rsqrt") {
    s.rsqrt = number;
  } else if (name == "reciprocal") {
    s.reciprocal = number;
  } else if (name == "multiprocessors") {
    devices().multiprocessors = number;
  } else if (name == "device") {
    devices().device = number;
  } else if (name == "stream") {  // of every device, the number of its current one
    for (int d = 0; d < Devices::kCount; ++d) devices().streams[d] = stream_of(d, number);
  } else {
    return 0;
  }
  return 1;
}

// "launches warp_instructions thread_instructions seconds"
EXPORT const char* emulated_counts() {
  const Counts& c = counts();
  std::ostringstream out;
  out << c.launches << ' ' << c.warp_instructions << ' ' << c.thread_instructions << ' '
      << c.seconds;
  return keep(out.str());
}

// A line for each launch of the last op: grid, block, device, the number of its stream, kernel.
EXPORT const char* emulated_launches() {
  std::ostringstream out;
  for (const Launch& l : launches()) {
    write(out, l.grid);
    write(out, l.block);
    const auto number =
        reinterpret_cast<uintptr_t>(l.stream) - reinterpret_cast<uintptr_t>(stream_of(l.device, 0));
    out << l.device << '\t' << number << '\t' << readable(name_of(l.kernel)) << '\n';
  }
  return keep(out.str());
}

// For each kernel a line "= launches mangled-name readable-name", then its lines: "+ number text"
// reached, "- number text" not.
EXPORT const char* emulated_coverage() {
  std::ostringstream out;
  for (const Coverage& kernel : coverage()) {
    out << "=\t" << kernel.launches << '\t' << kernel.kernel << '\t' << readable(kernel.kernel)
        << '\n';
    for (const Line& line : kernel.lines) {
      out << (line.reached ? "+\t" : "-\t") << line.number << '\t' << line.text << '\n';
    }
  }
  return keep(out.str());
}
