// The emulated devices and their streams, and what the op that is running may write.
#include <algorithm>

#include "runtime.h"

namespace emulator::host {
namespace {

// Addresses that nothing lies at. CUDA's default stream is null, which an op must not use:
// PyTorch's current stream is another one whenever a user has chosen one.
constexpr uintptr_t kStreams = 0x5EA0000000;
constexpr uintptr_t kEachDevice = 1 << 16;

std::vector<const void*>& writable() {
  static std::vector<const void*> places;
  return places;
}

}  // namespace

Devices::Devices() {
  for (int d = 0; d < kCount; ++d) streams[d] = stream_of(d, 0);
}

Devices& devices() {
  static Devices all;
  return all;
}

void* stream_of(int device, unsigned number) {
  return reinterpret_cast<void*>(kStreams + device * kEachDevice + number % kEachDevice);
}

int device_of(const void* stream) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(stream) - kStreams;
  return offset < Devices::kCount * kEachDevice ? static_cast<int>(offset / kEachDevice) : -1;
}

void begin(const void* const* places, int count) {
  forget_memory();
  launches().clear();
  fail_with(kSuccess);
  // Another device than the tensors': an op that makes no guard launches on the wrong one.
  devices().current = (devices().device + 1) % Devices::kCount;
  writable().assign(places, places + count);
}

void own(const void* data) { writable().push_back(data); }

bool may_write(const void* data) {
  return std::find(writable().begin(), writable().end(), data) != writable().end();
}

}  // namespace emulator::host
