// Stands in for libcudart: takes the kernels of the objects that nvcc made, and their launches.
// What is not here, a kernel's host code can't be linked with.
#include "runtime.h"

#include <string.h>

#include <exception>
#include <map>
#include <stdexcept>

namespace emulator::host {
namespace {

struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};

// Objects register their kernels before this file's own globals are made: hence functions.
std::map<const void*, Kernel*>& kernels() {  // by the address of the host's stub
  static std::map<const void*, Kernel*> all;
  return all;
}

std::vector<Configuration>& configurations() {
  static thread_local std::vector<Configuration> pushed;
  return pushed;
}

int last_error = kSuccess;

// ---- fat binaries: a header, then images, each with a header of its own ------------------------

constexpr uint32_t kFatBinary = 0xba55ed50u;
constexpr uint16_t kPtx = 1;

struct Wrapper {
  int32_t magic, version;
  const char* data;
  void* file;
};
struct FatHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};
struct ImageHeader {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
  uint32_t compressed_bytes;
};

std::string ptx_of(const Wrapper& wrapper) {
  FatHeader fat;
  memcpy(&fat, wrapper.data, sizeof fat);
  if (fat.magic != kFatBinary) throw std::runtime_error("not a fat binary");
  const char* at = wrapper.data + fat.header_bytes;
  const char* end = at + fat.bytes;
  while (at < end) {
    ImageHeader image;
    memcpy(&image, at, sizeof image);
    const char* text = at + image.header_bytes;
    if (image.kind == kPtx) {
      if (image.compressed_bytes != 0) {
        throw std::runtime_error("the PTX is compressed: nvcc needs --no-compress");
      }
      return std::string(text, strnlen(text, image.bytes));  // it is padded with zeros
    }
    at = text + image.bytes;
  }
  throw std::runtime_error("a fat binary without PTX: nvcc needs -gencode=...,code=compute_...");
}

// ---- launches ------------------------------------------------------------------------------

bool fits(const Dim3& grid, const Dim3& block, size_t shared) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool block_fits = threads >= 1 && threads <= 1024 && block.z <= 64 && shared <= 48 * 1024;
  const bool some = grid.x >= 1 && grid.y >= 1 && grid.z >= 1;
  return block_fits && some && grid.x <= 0x7fffffffu && grid.y <= 0xffff && grid.z <= 0xffff;
}

int launch_on(const void* stream, Kernel* kernel, Dim3 grid, Dim3 block, size_t shared,
              void** args) {
  if (kernel == nullptr) return fail_with(kInvalidHandle);
  if (!fits(grid, block, shared)) return fail_with(kInvalidConfiguration);
  if (device_of(stream) != devices().current) {
    report_fault("launch of " + name_of(kernel) + ": the stream is not one of the current device " +
                 std::to_string(devices().current));
    return fail_with(kInvalidHandle);
  }
  launches().push_back({kernel, grid, block, devices().current, stream});
  // An exception must not pass through the host code: it could be taken for an error of the op's.
  try {
    launch(kernel, grid, block, shared, args);
  } catch (const std::exception& error) {
    report_fault(error.what());
    return fail_with(kLaunchFailure);
  }
  return kSuccess;
}

Kernel* kernel_at(const void* host) {
  const auto found = kernels().find(host);
  return found == kernels().end() ? nullptr : found->second;
}

}  // namespace

std::vector<Launch>& launches() {
  static std::vector<Launch> all;
  return all;
}

int fail_with(int error) { return last_error = error; }

const char* words_of(int error) {
  switch (error) {
    case kInvalidValue:
      return "invalid argument";
    case kInvalidConfiguration:
      return "invalid configuration argument";
    case kInvalidDevice:
      return "invalid device ordinal";
    case kInvalidHandle:
      return "invalid resource handle";
    case kLaunchFailure:
      return "unspecified launch failure";
    default:
      return "an error that the emulator doesn't make";
  }
}

}  // namespace emulator::host

// ---- what the host code calls ------------------------------------------------------------------

using namespace emulator;
using namespace emulator::host;

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(load_module(ptx_of(*static_cast<const Wrapper*>(wrapper))));
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

// Constants that nvcc offers to the host; their values stand in the PTX.
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void** module, const char* host, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  Kernel* kernel = find_kernel(reinterpret_cast<Module*>(module), name);
  if (kernel == nullptr) throw std::runtime_error(std::string("no kernel in the PTX: ") + name);
  kernels()[host] = kernel;
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  configurations().push_back({grid, block, shared, stream});
  return 0;
}

int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
  const Configuration top = configurations().back();
  configurations().pop_back();
  *grid = top.grid, *block = top.block, *shared = top.shared, *stream = top.stream;
  return kSuccess;
}

// nvcc 13 launches by the kernel's handle, those before it by the host's stub.
int __cudaGetKernel(void** kernel, const void* host) {
  *kernel = kernel_at(host);
  return *kernel ? kSuccess : fail_with(kInvalidHandle);
}

int __cudaLaunchKernel(void* kernel, Dim3 grid, Dim3 block, void** args, size_t shared,
                       void* stream) {
  return launch_on(stream, static_cast<Kernel*>(kernel), grid, block, shared, args);
}

int cudaLaunchKernel(const void* host, Dim3 grid, Dim3 block, void** args, size_t shared,
                     void* stream) {
  return launch_on(stream, kernel_at(host), grid, block, shared, args);
}

int cudaGetLastError() {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  constexpr int kMultiprocessorCount = 16;
  if (device < 0 || device >= Devices::kCount) return fail_with(kInvalidDevice);
  if (attribute != kMultiprocessorCount) {
    report_fault("cudaDeviceGetAttribute: the emulator doesn't know attribute " +
                 std::to_string(attribute));
    return fail_with(kInvalidValue);
  }
  if (device != devices().device) {
    report_fault("cudaDeviceGetAttribute: of device " + std::to_string(device) +
                 ", but the tensors lie on " + std::to_string(devices().device));
  }
  *value = devices().multiprocessors;
  return kSuccess;
}

}  // extern "C"
