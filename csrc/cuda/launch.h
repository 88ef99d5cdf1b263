// What every CUDA op does around its kernels: the device, the stream, the grid, the check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "checks.h"
#include "registration.h"

namespace fastscore::FASTSCORE_ISA {

// Threads of a block, in every kernel.
constexpr int kThreads = 256;
// Kernels that loop over tiles start at most this many blocks on each multiprocessor: several waves
// of what it can hold, so that the last wave is short, yet few enough that the work that a thread
// does once (reading the key and the table) is spread over many tiles.
constexpr int64_t kBlocksPerMultiprocessor = 32;

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Makes the tensor's device the current one, and launches on PyTorch's current stream of it.
class Launcher {
 public:
  explicit Launcher(const Tensor& like)
      : device_(like.get_device_index()), guard_(like.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // One block for each of `blocks` pieces of work.
  template <class Kernel, class... Args>
  void blocks(int64_t blocks, Kernel* kernel, const Args&... args) const {
    if (blocks == 0) return;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_>>>(args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // A kernel whose blocks loop over `tiles` pieces of work.
  template <class Kernel, class... Args>
  void tiles(int64_t tiles, Kernel* kernel, const Args&... args) const {
    blocks(tiles_at_once(tiles), kernel, args...);
  }

  // How many blocks share out `tiles` pieces of work.
  int64_t tiles_at_once(int64_t tiles) const {
    return std::min(tiles, multiprocessors() * kBlocksPerMultiprocessor);
  }

 private:
  int64_t multiprocessors() const {
    int count = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_));
    return count;
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace fastscore::FASTSCORE_ISA
