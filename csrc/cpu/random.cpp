// CPU side of the family `random`.
#include "checks.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/noise.h"

namespace fastscore {
namespace {

void fill(const char* op, Distribution distribution, Tensor& out, const Tensor& key, int64_t stream,
          int64_t sample_offset, const std::optional<Tensor>& samples) {
  check_data(op, "out", out);
  check_key(op, key, out);
  check_stream(op, stream);
  check_writable(op, "out", out);
  check_numbers(op, sample_offset, samples, key, out);
  const Noise noise(op, key, static_cast<Stream>(stream), sample_offset, samples, batch_size(out),
                    sample_size(out));
  RandomArgs args;
  args.distribution = distribution;
  args.out = make_view(op, "out", out);
  noise.run(FASTSCORE_BEST(random_fill), args);
}

void random_normal_(Tensor out, const Tensor& key, int64_t stream, int64_t sample_offset,
                    std::optional<Tensor> samples) {
  fill("random_normal_", Distribution::kNormal, out, key, stream, sample_offset, samples);
}

void random_uniform_(Tensor out, const Tensor& key, int64_t stream, int64_t sample_offset,
                     std::optional<Tensor> samples) {
  fill("random_uniform_", Distribution::kUniform, out, key, stream, sample_offset, samples);
}

void random_rademacher_(Tensor out, const Tensor& key, int64_t stream, int64_t sample_offset,
                        std::optional<Tensor> samples) {
  fill("random_rademacher_", Distribution::kRademacher, out, key, stream, sample_offset, samples);
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("random_normal_", TORCH_BOX(&fastscore::random_normal_));
  m.impl("random_uniform_", TORCH_BOX(&fastscore::random_uniform_));
  m.impl("random_rademacher_", TORCH_BOX(&fastscore::random_rademacher_));
}
