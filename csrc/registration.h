// Where ops are registered. In the build that the tests emulate a GPU with (FASTSCORE_EMULATED),
// the CUDA ops form a library of their own and take tensors of the CPU.
#pragma once

#include <torch/csrc/stable/library.h>

#if defined(FASTSCORE_EMULATED)
#define FASTSCORE_SCHEMAS(m) STABLE_TORCH_LIBRARY(fastscore_emulated, m)
#define FASTSCORE_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(fastscore_emulated, CPU, m)
#else
#define FASTSCORE_SCHEMAS(m) STABLE_TORCH_LIBRARY(fastscore, m)
#define FASTSCORE_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(fastscore, CUDA, m)
#endif
