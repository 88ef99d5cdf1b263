// root_of_radius over every argument that a normal can ask it for, against sqrt.rn.
#include <stdint.h>

#include "core/random.h"

namespace core = fastscore::FASTSCORE_ISA;

struct Found {
  unsigned long long checked, wrong;
  uint32_t first;  // the least argument that is wrong, as bits
};

__global__ void compare(uint32_t begin, uint32_t end, Found* found) {
  const uint32_t step = gridDim.x * blockDim.x;
  unsigned long long checked = 0, wrong = 0;
  uint32_t first = UINT32_MAX;
  for (uint64_t u = uint64_t{begin} + blockIdx.x * blockDim.x + threadIdx.x; u < end; u += step) {
    const float x = __uint_as_float(static_cast<uint32_t>(u));
    const float got = core::root_of_radius<float>(x), want = __fsqrt_rn(x);
    ++checked;
    if (__float_as_uint(got) != __float_as_uint(want)) {
      ++wrong;
      if (static_cast<uint32_t>(u) < first) first = static_cast<uint32_t>(u);
    }
  }
  atomicAdd(&found->checked, checked);
  atomicAdd(&found->wrong, wrong);
  atomicMin(&found->first, first);
}

// Of the floats with bits [begin, end): how many were compared, how many are wrong, and the first.
// Returns a CUDA error, 0 for none.
extern "C" int compare_roots(uint32_t begin, uint32_t end, unsigned long long* checked,
                             unsigned long long* wrong, uint32_t* first) {
  Found* found = nullptr;
  Found host = {0, 0, UINT32_MAX};
  cudaError_t error = cudaMalloc(&found, sizeof host);
  if (error == cudaSuccess) error = cudaMemcpy(found, &host, sizeof host, cudaMemcpyHostToDevice);
  if (error == cudaSuccess) {
    compare<<<1024, 256>>>(begin, end, found);
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) error = cudaMemcpy(&host, found, sizeof host, cudaMemcpyDeviceToHost);
  cudaFree(found);
  *checked = host.checked, *wrong = host.wrong, *first = host.first;
  return error;
}
