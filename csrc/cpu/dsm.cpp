// CPU side of the family `dsm`.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/noise.h"
#include "cpu/rows.h"
#include "dsm_checks.h"

namespace fastscore {
namespace {

void check_label_values(const char* op, const Tensor& labels, int64_t levels) {
  const int64_t *values = labels.const_data_ptr<int64_t>(), n = labels.numel();
  // A bit that only numbers out of range set, so that the loop has no way out and goes a vector at
  // a time.
  const uint64_t last = static_cast<uint64_t>(levels) - 1;
  uint64_t signs = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t label = static_cast<uint64_t>(values[i]);
    signs |= label | (last - label);
  }
  const bool inside = !(signs >> 63);
  for (int64_t i = 0; !inside && i < n; ++i) {
    if (values[i] < 0 || values[i] >= levels) {
      fail(op, "labels", "in [0, ", levels, "), got ", values[i], " for sample ", i);
    }
  }
}

Tensor draw_labels(const char* op, const Tensor& x, const Tensor& key, int64_t levels,
                   int64_t sample_offset, const std::optional<Tensor>& samples) {
  Tensor labels = new_tensor({batch_size(x)}, ScalarType::Long, x);
  LabelArgs args;
  args.levels = levels;
  args.labels = labels.mutable_data_ptr<int64_t>();
  const Noise noise(op, key, Stream::kLabel, sample_offset, samples, batch_size(x), 1);
  noise.run(FASTSCORE_BEST(draw_labels), args);
  return labels;
}

Noise perturbation_noise(const char* op, const Tensor& x, const Tensor& key, int64_t sample_offset,
                         const std::optional<Tensor>& samples) {
  return Noise(op, key, Stream::kPerturb, sample_offset, samples, batch_size(x), sample_size(x));
}

std::tuple<Tensor, Tensor> perturb(const Tensor& x, const Tensor& table, const Tensor& key,
                                   std::optional<Tensor> given, int64_t sample_offset,
                                   std::optional<Tensor> samples) {
  const char* op = "perturb";
  check_perturb(op, x, table, key, given, sample_offset, samples);
  if (given) check_label_values(op, *given, table.size(0));
  Tensor labels = given ? torch::stable::clone(*given)
                        : draw_labels(op, x, key, table.size(0), sample_offset, samples);
  const Noise noise = perturbation_noise(op, x, key, sample_offset, samples);
  Tensor out = new_like(x);
  PerturbArgs args;
  args.out = make_view(op, "out", out);
  args.x = make_view(op, "x", x);
  args.table = table.const_data_ptr<double>();
  args.labels = labels.const_data_ptr<int64_t>();
  args.sample_size = sample_size(x);
  noise.run(FASTSCORE_BEST(perturb), args);
  return {out, labels};
}

ResidualArgs residual_args(const char* op, const Tensor& output, const Tensor& table,
                           const Tensor& labels, const Tensor& key, int64_t sample_offset,
                           const std::optional<Tensor>& samples,
                           const std::optional<Tensor>& noisy) {
  check_residual(op, output, table, labels, key, sample_offset, samples, noisy);
  check_label_values(op, labels, table.size(0));
  ResidualArgs args;
  args.output = make_view(op, "output", output);
  if (noisy) args.noisy = make_view(op, "noisy", *noisy);
  args.table = table.const_data_ptr<double>();
  args.labels = labels.const_data_ptr<int64_t>();
  args.sample_size = sample_size(output);
  return args;
}

// Runs the forward kernel and adds up each sample's sum.
Tensor residual_loss(ResidualArgs& args, const Noise& noise, const Tensor& output) {
  RowSums sums(noise, batch_size(output), args.sample_size);
  args.loss = sums.done();
  args.head = sums.head();
  args.tail = sums.tail();
  noise.run(FASTSCORE_BEST(dsm_residual), args);
  sums.finish();
  Tensor loss = new_tensor({batch_size(output)}, sum_dtype(output.scalar_type()), output);
  // A constant, for there may be a sample to every two elements.
  const auto weigh = [&](auto columns) {
    const double* weights = args.table + 2;
    write_doubles(
        loss, [&](int64_t b) { return 0.5 * weights[columns * args.labels[b]] * sums.done()[b]; });
  };
  if (args.noisy.data) {
    weigh(std::integral_constant<int64_t, 4>());
  } else {
    weigh(std::integral_constant<int64_t, 3>());
  }
  return loss;
}

Tensor dsm_residual(const Tensor& output, const Tensor& table, const Tensor& labels,
                    const Tensor& key, int64_t sample_offset, std::optional<Tensor> samples,
                    std::optional<Tensor> noisy) {
  const char* op = "dsm_residual";
  ResidualArgs args = residual_args(op, output, table, labels, key, sample_offset, samples, noisy);
  const Noise noise = perturbation_noise(op, output, key, sample_offset, samples);
  return residual_loss(args, noise, output);
}

std::tuple<Tensor, Tensor> dsm_residual_with_grad(const Tensor& output, const Tensor& table,
                                                  const Tensor& labels, const Tensor& key,
                                                  int64_t sample_offset, double expected,
                                                  std::optional<Tensor> samples,
                                                  std::optional<Tensor> noisy) {
  const char* op = "dsm_residual_with_grad";
  ResidualArgs args = residual_args(op, output, table, labels, key, sample_offset, samples, noisy);
  Tensor grad_output = new_like(output);
  args.expected = expected;
  args.grad_output = make_view(op, "grad_output", grad_output);
  const Noise noise = perturbation_noise(op, output, key, sample_offset, samples);
  Tensor loss = residual_loss(args, noise, output);
  return {loss, grad_output};
}

void write_residual_grad(const char* op, ResidualArgs& args, const Noise& noise,
                         const std::vector<double>& grad, Tensor& grad_output) {
  args.grad = grad.data();
  args.grad_output = make_view(op, "grad_output", grad_output);
  noise.run(FASTSCORE_BEST(dsm_residual_backward), args);
}

Tensor dsm_residual_backward(const Tensor& grad, const Tensor& output, const Tensor& table,
                             const Tensor& labels, const Tensor& key, int64_t sample_offset,
                             std::optional<Tensor> samples, std::optional<Tensor> noisy) {
  const char* op = "dsm_residual_backward";
  ResidualArgs args = residual_args(op, output, table, labels, key, sample_offset, samples, noisy);
  check_residual_grad(op, grad, output);
  Tensor grad_output = new_like(output);
  const Noise noise = perturbation_noise(op, output, key, sample_offset, samples);
  write_residual_grad(op, args, noise, read_doubles(op, "grad", grad), grad_output);
  return grad_output;
}

void dsm_residual_regrad_(Tensor grad_output, const Tensor& grad, double expected,
                          const Tensor& output, const Tensor& table, const Tensor& labels,
                          const Tensor& key, int64_t sample_offset, std::optional<Tensor> samples,
                          std::optional<Tensor> noisy) {
  const char* op = "dsm_residual_regrad_";
  ResidualArgs args = residual_args(op, output, table, labels, key, sample_offset, samples, noisy);
  check_residual_grad(op, grad, output);
  check_residual_regrad(op, grad_output, output);
  const std::vector<double> upstream = read_doubles(op, "grad", grad);
  const bool is_double = output.scalar_type() == ScalarType::Double;
  const double made_for = is_double ? expected : static_cast<float>(expected);
  const auto as_expected = [&](double g) { return g == made_for; };
  if (!std::all_of(upstream.begin(), upstream.end(), as_expected)) {
    const Noise noise = perturbation_noise(op, output, key, sample_offset, samples);
    write_residual_grad(op, args, noise, upstream, grad_output);
  }
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("perturb", TORCH_BOX(&fastscore::perturb));
  m.impl("dsm_residual", TORCH_BOX(&fastscore::dsm_residual));
  m.impl("dsm_residual_backward", TORCH_BOX(&fastscore::dsm_residual_backward));
  m.impl("dsm_residual_with_grad", TORCH_BOX(&fastscore::dsm_residual_with_grad));
  m.impl("dsm_residual_regrad_", TORCH_BOX(&fastscore::dsm_residual_regrad_));
}
