// How the residual's kernels reach an output, alone or with the perturbed data x~ beside it.
#pragma once

#include <optional>
#include <type_traits>

#include "core/dsm.h"
#include "cuda/access.cuh"

namespace fastscore::FASTSCORE_ISA {

// An element of an output, with that of x~ beside it.
template <class T>
struct Both {
  T output, noisy;
};

template <class T>
__device__ __forceinline__ T residual(const ResidualRow<T>& row, const Both<T>& x, T z) {
  return residual(row, x.output, x.noisy, z);
}

// What of an element is written: all of it, or the output of a pair.
template <class T>
__device__ __forceinline__ T& own(T& x) {
  return x;
}
template <class T>
__device__ __forceinline__ T& own(Both<T>& x) {
  return x.output;
}
template <class Out, class Value, int V>
__device__ __forceinline__ void store_own(const Out& out, const Range& range, bool whole,
                                          const Value (&x)[V]) {
  if constexpr (std::is_same_v<Value, typename Out::Real>) {
    out.store(range, whole, x);
  } else {
    typename Out::Real outputs[V];
#pragma unroll
    for (int j = 0; j < V; ++j) outputs[j] = x[j].output;
    out.store(range, whole, outputs);
  }
}

// How an output is reached together with x~: as one tensor whose elements are pairs.
template <class Output, class Noisy>
struct Beside {
  static constexpr int V = Output::V, kAtOnce = Output::kAtOnce;
  static constexpr bool kMovesWhole = Output::kMovesWhole;
  using Real = typename Output::Real;
  struct Raw {
    typename Output::Raw output;
    typename Noisy::Raw noisy;
  };

  Output output;
  Noisy noisy;

  __device__ __forceinline__ Raw load(const Range& r, bool whole) const {
    return {output.load(r, whole), noisy.load(r, whole)};
  }
  __device__ __forceinline__ static void unpack(const Raw& raw, Both<Real> (&x)[V]) {
    Real out[V], noisy[V];
    Output::unpack(raw.output, out);
    Noisy::unpack(raw.noisy, noisy);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = {out[j], noisy[j]};
  }
};

// What a kernel reads by In: an output alone, or an output and x~.
template <class In>
struct Reads {
  using Value = typename In::Real;
  using Output = In;
  static constexpr bool kNoisy = false;
};
template <class Out, class Noisy>
struct Reads<Beside<Out, Noisy>> {
  using Value = Both<typename Out::Real>;
  using Output = Out;
  static constexpr bool kNoisy = true;
};

// ---- choosing how ----------------------------------------------------------------------------

struct ResidualViews {
  View output;
  std::optional<View> noisy, grad_output;
};

// Calls run(from, to): how what a residual is made from is reached, and its gradient, whose place
// is null where it has no view. The output is stored as S; fits(V) says whether packs of V are cut
// where the noise is. kSpread is the V of a lone output that can't be moved in packs.
template <class S, int kSpread, class Fits, class Run>
void with_inputs(const ResidualViews& v, const Fits& fits, const Run& run) {
  using T = Compute<S>;
  const auto whole = [&](int packs) {
    return fits(packs) && packable(v.output, packs) && (!v.noisy || packable(*v.noisy, packs)) &&
           (!v.grad_output || packable(*v.grad_output, packs));
  };
  View to = v.grad_output.value_or(v.output);
  if (!v.grad_output) to.data = nullptr;
  if (!v.noisy) {
    if (whole(kPack<S>)) return run(packed<S>(v.output), packed<S>(to));
    using Any = Spread<T, kSpread>;
    return run(Any::of(v.output), Any::of(to));
  }
  constexpr int V = kPack<T>;  // of the wider one
  if (!whole(V)) {
    using Any = Spread<T, V>;
    return run(Beside<Any, Any>{Any::of(v.output), Any::of(*v.noisy)}, Any::of(to));
  }
  const auto beside = [&](auto stored) {
    using N = decltype(stored);
    using Pair = Beside<Packed<S, V>, Packed<N, V>>;
    run(Pair{packed<S, V>(v.output), packed<N, V>(*v.noisy)}, packed<S, V>(to));
  };
  if constexpr (sizeof(S) == 2) {
    if (v.noisy->dtype == DType::kFloat32) return beside(float());
  }
  beside(S());
}

}  // namespace fastscore::FASTSCORE_ISA
