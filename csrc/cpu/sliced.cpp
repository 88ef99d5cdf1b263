// CPU side of the family `sliced`.
#include <vector>

#include "checks.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/noise.h"
#include "cpu/rows.h"
#include "sliced_checks.h"

namespace fastscore {
namespace {

// Everything about v.
SlicedArgs projection_args(int64_t distribution, int64_t projections, int64_t batch,
                           int64_t sample_size) {
  SlicedArgs args;
  args.distribution = static_cast<Projection>(distribution);
  args.projections = projections;
  args.numel = batch * sample_size;
  args.sample_size = sample_size;
  args.batch = batch;
  return args;
}

// |g|^2 of each projection and sample, which the sphere's v needs before its first element.
std::vector<double> square_norms(SlicedArgs args, const Noise& noise) {
  if (args.distribution != Projection::kSphere) return {};
  RowSums sums(noise, args.batch, args.sample_size, args.projections);
  args.sums = sums.slots();
  noise.run(FASTSCORE_BEST(sliced_norms), args, args.projections);
  sums.finish();
  return sums.take();
}

void project_(Tensor out, const Tensor& key, int64_t distribution, int64_t sample_offset,
              std::optional<Tensor> samples) {
  const char* op = "projections";  // the name its users know
  check_projections(op, out, key, distribution, sample_offset, samples);
  const int64_t batch = out.size(1), size = projection_sample_size(out);
  SlicedArgs args = projection_args(distribution, out.size(0), batch, size);
  const Noise noise(op, key, Stream::kProjection, sample_offset, samples, batch, size);
  const std::vector<double> norms = square_norms(args, noise);
  args.square_norm = norms.data();
  args.out = make_view(op, "out", out);
  noise.run(FASTSCORE_BEST(project), args, args.projections);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_terms(const Tensor& score, const Tensor& jvp,
                                                        const Tensor& key, int64_t distribution,
                                                        int64_t sample_offset,
                                                        std::optional<Tensor> samples) {
  const char* op = "sliced_terms";
  check_sliced_terms(op, score, jvp, key, distribution, sample_offset, samples);
  const int64_t projections = jvp.size(0), batch = batch_size(score);
  const int64_t size = sample_size(score);
  SlicedArgs args = projection_args(distribution, projections, batch, size);
  const Noise noise(op, key, Stream::kProjection, sample_offset, samples, batch, size);
  const std::vector<double> norms = square_norms(args, noise);
  args.square_norm = norms.data();
  args.score = make_view(op, "score", score);
  args.jvp = make_view(op, "jvp", jvp);
  RowSums sums(noise, batch, size, 2 * projections + 1);
  args.sums = sums.slots();
  noise.run(FASTSCORE_BEST(sliced_terms), args, projections);
  sums.finish();

  const ScalarType dtype = sum_dtype(score.scalar_type());
  Tensor vjv = new_tensor({projections, batch}, dtype, score);
  Tensor vs = new_tensor({projections, batch}, dtype, score);
  Tensor half_vs2 = new_tensor({projections, batch}, dtype, score);
  Tensor half_s2 = new_tensor({batch}, dtype, score);
  const double* first = sums.done();
  const double* second = first + projections * batch;
  const double* third = second + projections * batch;
  write_doubles(vjv, [&](int64_t i) { return first[i]; });
  write_doubles(vs, [&](int64_t i) { return second[i]; });
  write_doubles(half_vs2, [&](int64_t i) { return 0.5 * second[i] * second[i]; });
  write_doubles(half_s2, [&](int64_t b) { return 0.5 * third[b]; });
  return {vjv, vs, half_vs2, half_s2};
}

std::tuple<Tensor, Tensor> sliced_terms_backward(const Tensor& grad_vjv,
                                                 std::optional<Tensor> grad_vs,
                                                 std::optional<Tensor> grad_half_s2,
                                                 const Tensor& score, const Tensor& key,
                                                 int64_t distribution, int64_t sample_offset,
                                                 std::optional<Tensor> samples) {
  const char* op = "sliced_terms_backward";
  check_sliced_backward(op, grad_vjv, grad_vs, grad_half_s2, score, key, distribution,
                        sample_offset, samples);
  const int64_t projections = grad_vjv.size(0), batch = batch_size(score);
  const int64_t size = sample_size(score);
  SlicedArgs args = projection_args(distribution, projections, batch, size);
  const Noise noise(op, key, Stream::kProjection, sample_offset, samples, batch, size);
  const std::vector<double> norms = square_norms(args, noise);
  const std::vector<double> vjv = read_doubles(op, "grad_vjv", grad_vjv);
  std::vector<double> vs, s2;
  if (grad_vs) vs = read_doubles(op, "grad_vs", *grad_vs);
  if (grad_half_s2) s2 = read_doubles(op, "grad_half_s2", *grad_half_s2);
  args.square_norm = norms.data();
  args.grad_vjv = vjv.data();
  args.grad_vs = grad_vs ? vs.data() : nullptr;
  args.grad_s2 = grad_half_s2 ? s2.data() : nullptr;
  Tensor grad_score = new_like(score);
  Tensor grad_jvp = new_stacked(projections, score);
  args.score = make_view(op, "score", score);
  args.grad_score = make_view(op, "grad_score", grad_score);
  args.grad_jvp = make_view(op, "grad_jvp", grad_jvp);
  noise.run(FASTSCORE_BEST(sliced_terms_backward), args, projections);
  return {grad_score, grad_jvp};
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("project_", TORCH_BOX(&fastscore::project_));
  m.impl("sliced_terms", TORCH_BOX(&fastscore::sliced_terms));
  m.impl("sliced_terms_backward", TORCH_BOX(&fastscore::sliced_terms_backward));
}
