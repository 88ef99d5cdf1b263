// Denoising score matching (Vincent 2011; Song and Ermon 2019), for one element:
//   perturbation  x~ = a x + sigma z
//   residual      r  = p out + q z,   loss_b = w/2 sum r^2,   d loss_b / d out = w p r
// or, of what needs the perturbed data too, r = p out + q z + h x~.
#pragma once

#include "scalar.h"

namespace fastscore::FASTSCORE_ISA {

// One row of the perturbation table: what a label stands for.
template <class T>
struct PerturbRow {
  T a, sigma;
};

// Columns of the loss table, whose last one is h.
template <bool kNoisy>
constexpr int kResidualColumns = kNoisy ? 4 : 3;

// One row of the loss table; h is 0 where the table has none.
template <class T>
struct ResidualRow {
  T p, q, w, h;
};

template <class T>
FASTSCORE_FN T perturbed(const PerturbRow<T>& row, T x, T z) {
  return fma(row.sigma, z, row.a * x);
}

template <class T>
FASTSCORE_FN T residual(const ResidualRow<T>& row, T out, T z) {
  return fma(row.q, z, row.p * out);
}
// The same bytes with out and x~ changed about, for the two gradients often cancel.
template <class T>
FASTSCORE_FN T residual(const ResidualRow<T>& row, T out, T noisy, T z) {
  return fma(row.q, z, row.p * out + row.h * noisy);
}

}  // namespace fastscore::FASTSCORE_ISA
