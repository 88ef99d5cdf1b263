// What Python asks of the stand-ins, by ctypes; c_api.cpp has what it asks of the emulator.
#include <cxxabi.h>
#include <stdlib.h>

#include <memory>
#include <sstream>

#include "runtime.h"

using namespace emulator;
using namespace emulator::host;

#define API extern "C" __attribute__((visibility("default")))

namespace {

// Texts live until the next call that returns one.
const char* kept(std::string text) {
  static std::string last;
  last = std::move(text);
  return last.c_str();
}

}  // namespace

API void emulated_begin(const void* const* writable, int count) { begin(writable, count); }

// 0, or 1 if there is no such setting.
API int emulated_set(const char* name, int64_t value) {
  const std::string n = name;
  const int number = static_cast<int>(value);
  if (n == "multiprocessors") {
    devices().multiprocessors = number;
  } else if (n == "device") {
    devices().device = number;
  } else if (n == "stream") {  // of every device
    for (int d = 0; d < Devices::kCount; ++d) devices().streams[d] = stream_of(d, number);
  } else {
    return 1;
  }
  return 0;
}

// A line for each launch of the last op: grid, block, device, the number of its stream, kernel.
API const char* emulated_launches() {
  std::ostringstream out;
  for (const Launch& l : launches()) {
    for (const Dim3& size : {l.grid, l.block}) {
      out << size.x << '\t' << size.y << '\t' << size.z << '\t';
    }
    const auto number =
        reinterpret_cast<uintptr_t>(l.stream) - reinterpret_cast<uintptr_t>(stream_of(l.device, 0));
    out << l.device << '\t' << number << '\t' << name_of(l.kernel) << '\n';
  }
  return kept(out.str());
}

// A kernel's name as it stands in the source.
API const char* emulated_readable(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), &free);
  return kept(status == 0 ? name.get() : mangled);
}
