// What the stand-ins for CUDA's and PyTorch's functions share with one another and with Python.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "emulator.h"

namespace emulator::host {

// CUDA's numbers for what a call came to.
enum Error : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kInvalidDevice = 101,
  kInvalidHandle = 400,
  kLaunchFailure = 719,
};
const char* words_of(int error);

// The emulated devices. Every tensor of an op lies on `device`; the others are there so that what
// asks about the wrong one shows.
struct Devices {
  static constexpr int kCount = 4;
  int device = 0;
  int current = 0;  // which a guard has made the current one
  int multiprocessors = 132;
  void* streams[kCount];  // PyTorch's current stream of each device
  Devices();
};
Devices& devices();

// A stream is a number that tells its device: enough to see which one a launch went to.
void* stream_of(int device, unsigned number);
int device_of(const void* stream);  // -1: no stream that was ever handed out

// Launches since the last `begin`.
struct Launch {
  const Kernel* kernel;
  Dim3 grid, block;
  int device;
  const void* stream;
};
std::vector<Launch>& launches();

// Before each op: forgets memory, launches and errors that nobody asked for. The memory at
// `writable` is what the op's schema says it changes; of all else but new tensors it only reads.
void begin(const void* const* writable, int count);
bool may_write(const void* data);
void own(const void* data);  // a new tensor of the op's own

// The error that the next cudaGetLastError tells; the same, for a return statement.
int fail_with(int error);

}  // namespace emulator::host
