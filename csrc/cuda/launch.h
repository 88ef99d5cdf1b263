// What every CUDA op does around its kernels: the device, the stream, the grid, the check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "checks.h"
#include "registration.h"

namespace fastscore::FASTSCORE_ISA {

// Threads of a block, unless a kernel says otherwise.
constexpr int kThreads = 256;

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
  template <int kBlockThreads = kThreads, class Kernel, class... Args>
  void blocks(int64_t blocks, Kernel* kernel, const Args&... args) const {
    if (blocks == 0) return;
    kernel<<<static_cast<unsigned>(blocks), kBlockThreads, 0, stream_>>>(args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // How many blocks a kernel gets whose blocks most often have nothing to do: several waves of what
  // the device can hold, so that the last is short.
  int64_t few_blocks() const { return 32 * multiprocessors(); }

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
