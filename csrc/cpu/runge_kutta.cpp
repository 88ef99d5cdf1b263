// CPU side of the family `runge_kutta`.
#include <cmath>
#include <vector>

#include "checks.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "runge_kutta_checks.h"

namespace fastscore {
namespace {

// Of rows that lie in memory one after the other.
SampleRows rows_of(const Tensor& dense) {
  const int64_t dim = dense.dim();
  return {dense.const_data_ptr<double>(), dim == 2 ? dense.size(0) : 1, dense.size(dim - 1)};
}

RungeKuttaArgs args_of(const char* op, const Tensor& x, const std::vector<Tensor>& slopes) {
  RungeKuttaArgs args;
  args.x = read_view(op, "x", x);
  args.slope_count = static_cast<int>(slopes.size());
  for (size_t j = 0; j < slopes.size(); ++j) {
    args.slopes[j] = read_view(op, "slopes", slopes[j]);
  }
  args.numel = x.numel();
  args.sample_size = sample_size(x);
  return args;
}

void stage(const char* op, const Tensor& out, const Tensor& x, const std::vector<Tensor>& slopes,
           const Tensor& coefficients) {
  if (x.numel() == 0) return;
  const Tensor dense = dense_rows(coefficients);
  RungeKuttaArgs args = args_of(op, x, slopes);
  args.out = make_view(op, "out", out);
  args.coefficients = rows_of(dense);
  run_range(FASTSCORE_BEST(rk_stage), args, tiles_of(0, args.numel));
}

Tensor rk_stage(const Tensor& x, const std::vector<Tensor>& slopes, const Tensor& coefficients) {
  check_combination("rk_stage", x, slopes, coefficients);
  Tensor out = new_like(x);
  stage("rk_stage", out, x, slopes, coefficients);
  return out;
}

void rk_stage_(Tensor out, const Tensor& x, const std::vector<Tensor>& slopes,
               const Tensor& coefficients) {
  const char* op = "rk_stage";  // the name its users know
  check_combination(op, x, slopes, coefficients);
  check_stage_out(op, out, x, slopes);
  stage(op, out, x, slopes, coefficients);
}

Tensor rk_error(const Tensor& x, const Tensor& fresh, const std::vector<Tensor>& slopes,
                const Tensor& coefficients, const Tensor& tolerances) {
  const char* op = "rk_error";
  check_error(op, x, fresh, slopes, coefficients, tolerances);
  const int64_t batch = batch_size(x);
  Tensor norms = new_tensor({batch}, ScalarType::Double, x);
  double* norm = norms.mutable_data_ptr<double>();
  RungeKuttaArgs args = args_of(op, x, slopes);
  if (args.numel == 0) {
    for (int64_t b = 0; b < batch; ++b) norm[b] = 0;
    return norms;
  }
  const Tensor dense = dense_rows(coefficients);
  const Tensor scales = dense_rows(tolerances);
  args.fresh = read_view(op, "new", fresh);
  args.coefficients = rows_of(dense);
  args.tolerances = rows_of(scales);
  // As the kernel counts its tiles.
  const int64_t pieces = (args.sample_size + kTileElements - 1) / kTileElements;
  const int64_t in_tile = pieces > 1 ? 1 : kTileElements / args.sample_size;
  std::vector<double> shares(pieces > 1 ? batch * pieces : 0);
  args.sums = pieces > 1 ? shares.data() : norm;
  run_range(FASTSCORE_BEST(rk_error), args, {0, (batch + in_tile - 1) / in_tile * pieces});
  for (int64_t b = 0; b < batch; ++b) {
    double sum = pieces > 1 ? 0 : norm[b];
    for (int64_t p = 0; pieces > 1 && p < pieces; ++p) sum += shares[b * pieces + p];
    norm[b] = std::sqrt(sum / static_cast<double>(args.sample_size));
  }
  return norms;
}

void rk_advance_(Tensor x, Tensor first, const Tensor& fresh, const Tensor& last,
                 const Tensor& accepted, std::optional<Tensor> out,
                 std::optional<Tensor> coefficients) {
  const char* op = "rk_advance_";
  check_advance(op, x, first, fresh, last, accepted, out, coefficients);
  if (x.numel() == 0) return;
  RungeKuttaArgs args = args_of(op, x, {});
  args.x = make_view(op, "x", x);
  args.first = make_view(op, "first", first);
  args.fresh = read_view(op, "new", fresh);
  args.last = read_view(op, "last", last);
  const Tensor flags = dense_rows(accepted);
  args.accepted = reinterpret_cast<const uint8_t*>(flags.const_data_ptr<bool>());
  std::optional<Tensor> dense;
  if (out) {
    dense = dense_rows(*coefficients);
    args.out = make_view(op, "out", *out);
    args.coefficients = rows_of(*dense);
  }
  run_range(FASTSCORE_BEST(rk_advance), args, tiles_of(0, args.numel));
}

}  // namespace
}  // namespace fastscore

STABLE_TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("rk_stage", TORCH_BOX(&fastscore::rk_stage));
  m.impl("rk_stage_", TORCH_BOX(&fastscore::rk_stage_));
  m.impl("rk_error", TORCH_BOX(&fastscore::rk_error));
  m.impl("rk_advance_", TORCH_BOX(&fastscore::rk_advance_));
}
