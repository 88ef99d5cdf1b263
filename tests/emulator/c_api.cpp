// The emulator for Python, by ctypes.
#include <exception>
#include <string>

#include "emulator.h"

using namespace emulator;

namespace {

// Texts live until the next call that returns one.
const char* kept(std::string text) {
  static std::string last;
  last = std::move(text);
  return last.c_str();
}

std::string& last_error() {
  static std::string error;
  return error;
}

// 0, or 1 and a message in emulator_error.
template <class F>
int guarded(F&& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return 1;
  }
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API const char* emulator_error() { return last_error().c_str(); }

// ---- settings, counts, faults ------------------------------------------------------------------

// 0, or 1 if there is no such setting.
API int emulator_set(const char* name, int64_t value) {
  const std::string n = name;
  Settings& s = settings();
  if (n == "check_memory")
    s.check_memory = value != 0;
  else if (n == "check_races")
    s.check_races = value != 0;
  else if (n == "order")
    s.order = static_cast<Order>(value);
  else if (n == "seed")
    s.seed = static_cast<uint64_t>(value);
  else if (n == "rsqrt")
    s.rsqrt = static_cast<int>(value);
  else if (n == "reciprocal")
    s.reciprocal = static_cast<int>(value);
  else
    return 1;
  return 0;
}

// -1 if nothing of that name is counted.
API double emulator_count(const char* name) {
  const std::string n = name;
  if (n == "launches") return static_cast<double>(counts().launches);
  if (n == "warp_instructions") return static_cast<double>(counts().warp_instructions);
  if (n == "thread_instructions") return static_cast<double>(counts().thread_instructions);
  if (n == "seconds") return counts().seconds;
  return -1;
}

API const char* emulator_take_faults(int64_t most) {
  return kept(take_faults(static_cast<size_t>(most)));
}
API int emulator_any_fault() { return any_fault() ? 1 : 0; }

// A line for each kernel, "launches TAB name", and below it one for each instruction, "TAB PTX line
// TAB 1 if reached TAB text".
API const char* emulator_coverage() {
  std::string all;
  for (const Coverage& kernel : coverage()) {
    all += std::to_string(kernel.launches) + "\t" + kernel.kernel + "\n";
    for (const Line& line : kernel.lines) {
      all += '\t';
      all += std::to_string(line.number);
      all += line.reached ? "\t1\t" : "\t0\t";
      all += line.text;
      all += '\n';
    }
  }
  return kept(std::move(all));
}

// ---- kernels -----------------------------------------------------------------------------------

API int emulator_load(const char* text, Module** module) {
  return guarded([&] { *module = load_module(text); });
}
API Kernel* emulator_kernel(Module* module, const char* name) { return find_kernel(module, name); }
// The names of a module's kernels, one a line.
API const char* emulator_kernels(Module* module) {
  std::string names;
  for (const Kernel* kernel : kernels_of(module)) names += name_of(kernel) + "\n";
  return kept(std::move(names));
}
// Those of all instructions, likewise.
API const char* emulator_instructions() {
  std::string names;
  for (const std::string& name : known_instructions()) names += name + "\n";
  return kept(std::move(names));
}
API int emulator_prepare(Kernel* kernel) {
  return guarded([&] { prepare(kernel); });
}
API int emulator_launch(Kernel* kernel, const unsigned* grid, const unsigned* block,
                        size_t shared_bytes, void** args) {
  return guarded([&] {
    launch(kernel, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, args);
  });
}

// ---- memory ------------------------------------------------------------------------------------

API void emulator_allow(const void* data, int64_t element_size, int dims, const int64_t* sizes,
                        const int64_t* strides, int access) {
  allow(data, element_size, dims, sizes, strides, static_cast<uint8_t>(access));
}
API void emulator_mark_unwritten(const void* data, size_t bytes) { mark_unwritten(data, bytes); }
API void emulator_forget_memory() { forget_memory(); }
