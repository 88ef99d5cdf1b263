// CUDA side of the family `random`.
#include "checks.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/sample_noise.cuh"
#include "cuda/tiles.cuh"

namespace fastscore::FASTSCORE_ISA {
namespace {

// Packs of a thread: much is done once for all of them.
template <class S>
constexpr int kFillPacks = sizeof(S) == 8 ? 2 : 4;

template <class Access, class Distribution, bool kEach>
__global__ void __launch_bounds__(kThreads)
    fill(const NoiseSource source, const __grid_constant__ Access out, const int64_t numel) {
  constexpr int V = Access::V;
  const NoiseKey key = noise_key(source);
  const Tile<Access> tile(source.origin, numel);
  tile.split([&](auto whole) {
#pragma unroll
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u, whole);
      if (kEach && range.empty()) continue;
      float z[V];
      draw<Distribution, kEach>(source, key, range, z);
      typename Access::Real values[V];
#pragma unroll
      for (int j = 0; j < V; ++j) values[j] = z[j];
      out.store(range, whole, values);
    }
  });
}

template <class Distribution, class Access>
void run(const Launcher& launch, const Noise& noise, const Access& out, int64_t numel) {
  const NoiseSource& source = noise.source;
  noise.split([&](auto each) {
    launch.blocks(tile_count<Access>(source.origin, numel), &fill<Access, Distribution, each()>,
                  source, out, numel);
  });
}

template <class S, class Distribution>
void run_as(const Launcher& launch, const Noise& noise, const View& out, int64_t numel) {
  constexpr int V = kPack<S>;
  if (packable(out, V) && noise.source.origin % V == 0) {
    run<Distribution>(launch, noise, packed<S, V, kFillPacks<S>>(out), numel);
  } else {
    run<Distribution>(launch, noise, Spread<Compute<S>>::of(out), numel);
  }
}

template <class Distribution>
void random(const char* op, const Tensor& out, const Tensor& key, int64_t stream,
            int64_t sample_offset, const std::optional<Tensor>& samples) {
  check_data(op, "out", out);
  check_key(op, key, out);
  check_stream(op, stream);
  check_writable(op, "out", out);
  check_numbers(op, sample_offset, samples, key, out);
  const int64_t numel = out.numel();
  if (numel == 0) return;
  const Launcher launch(out);
  const Noise noise(key, static_cast<Stream>(stream), sample_offset, samples, sample_size(out));
  const View view = make_view(op, "out", out);
  switch (view.dtype) {
    case DType::kFloat64:
      return run_as<double, Distribution>(launch, noise, view, numel);
    case DType::kBFloat16:
      return run_as<BFloat16, Distribution>(launch, noise, view, numel);
    case DType::kFloat16:
      return run_as<Float16, Distribution>(launch, noise, view, numel);
    default:
      return run_as<float, Distribution>(launch, noise, view, numel);
  }
}

void random_normal_(Tensor out, const Tensor& key, int64_t stream, int64_t sample_offset,
                    std::optional<Tensor> samples) {
  random<Normal>("random_normal_", out, key, stream, sample_offset, samples);
}

void random_uniform_(Tensor out, const Tensor& key, int64_t stream, int64_t sample_offset,
                     std::optional<Tensor> samples) {
  random<Uniform>("random_uniform_", out, key, stream, sample_offset, samples);
}

void random_rademacher_(Tensor out, const Tensor& key, int64_t stream, int64_t sample_offset,
                        std::optional<Tensor> samples) {
  random<Rademacher>("random_rademacher_", out, key, stream, sample_offset, samples);
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

FASTSCORE_CUDA_OPS(m) {
  using namespace fastscore::FASTSCORE_ISA;
  m.impl("random_normal_", TORCH_BOX(&random_normal_));
  m.impl("random_uniform_", TORCH_BOX(&random_uniform_));
  m.impl("random_rademacher_", TORCH_BOX(&random_rademacher_));
}
