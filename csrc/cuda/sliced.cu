// CUDA side of the family `sliced`.
#include "core/sliced.h"
#include "cuda/access.cuh"
#include "cuda/launch.h"
#include "cuda/rows.cuh"
#include "cuda/sample_noise.cuh"
#include "cuda/tiles.cuh"
#include "sliced_checks.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// ---- projection vectors ----------------------------------------------------------------------

// The projections v_m of all samples. Tensors of shape (projections, batch, ...) hold them one
// after the other, `numel` elements each.
struct Projections {
  NoiseSource noise;
  Projection distribution;
  DType dtype;  // of the data: v consists of such numbers
  int64_t count, batch, numel;
  Divider sample_size;
  const float* radii;  // sphere: what g is multiplied by, count x batch

  // What a sample draws projection m with.
  __device__ __forceinline__ OwnNoise own(int64_t sample, int64_t m) const {
    const OwnNoise own = noise.of(sample);
    return {projection_key(own.key, count, m), own.origin};
  }

  // The sphere's, for one sample.
  __device__ __forceinline__ float radius(int64_t m, int64_t sample) const {
    return distribution == Projection::kSphere ? radii[m * batch + sample] : 1.0f;
  }

  // v of the elements of a pack; kEach: samples draw on their own.
  template <bool kEach, int V>
  __device__ __forceinline__ void draw(int64_t m, const Range& range, float (&v)[V]) const {
    if constexpr (kEach) {
      const auto own_of = [&](int64_t sample) { return own(sample, m); };
      if (distribution == Projection::kRademacher) {
        draw_each<Rademacher>(sample_size, own_of, range, v);
      } else {
        draw_each<Normal>(sample_size, own_of, range, v);
      }
    } else {
      draw_unscaled(projection_key(noise_key(noise), count, m), noise.origin + range.i, v);
    }
    if (distribution == Projection::kSphere) {
      for_each_sample<V>(
          sample_size, range, [&](int64_t sample) { return radius(m, sample); },
          [&](int j, float r) { v[j] *= r; });
    }
    round(v);
  }

  // The same where all are of one sample, whose radius is known.
  template <int V>
  __device__ __forceinline__ void draw(const OwnNoise& own, float radius, int64_t i,
                                       float (&v)[V]) const {
    draw_unscaled(own.key, own.origin + i, v);
    if (distribution == Projection::kSphere) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] *= radius;
    }
    round(v);
  }

  // The range of the same elements in projection m.
  __device__ __forceinline__ Range at(int64_t m, const Range& range) const {
    return {m * numel + range.i, range.low, range.high};
  }

 private:
  template <int V>
  __device__ __forceinline__ void draw_unscaled(const NoiseKey& key, int64_t flat,
                                                float (&v)[V]) const {
    if (distribution == Projection::kRademacher) {
      signs(key, flat, v);
    } else {
      normals(key, flat, v);
    }
  }

  template <int V>
  __device__ __forceinline__ void round(float (&v)[V]) const {
    if (dtype == DType::kBFloat16) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = to_compute(__float2bfloat16_rn(v[j]));
    } else if (dtype == DType::kFloat16) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = to_compute(__float2half_rn(v[j]));
    }
  }
};

// Each projection's and sample's radius, from |g|^2: in double, so that another order of the sum
// gives the same float but for a very rare row.
struct SphereRadius {
  using Real = double;
  static constexpr int V = kNormalsPerBlock, kAtOnce = 1, kSums = 1;
  struct Inputs {};
  using Row = OwnNoise;

  Projections projections;
  float* radii;

  __host__ __device__ __forceinline__ int64_t jobs() const { return projections.count; }
  __device__ __forceinline__ int64_t origin(int64_t sample) const {
    return projections.noise.origin_of(sample);
  }
  __device__ __forceinline__ Row row(int64_t sample, int64_t m) const {
    return projections.own(sample, m);
  }
  __device__ __forceinline__ Inputs load(int64_t, const Range&, bool) const { return {}; }

  __device__ __forceinline__ void add(const Row& own, int64_t, const Inputs&, const Range& range,
                                      bool whole, double (&sums)[1]) const {
    float g[V];
    normals(own.key, own.origin + range.i, g);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const double value = g[j];
      if (whole || (j >= range.low && j < range.high)) sums[0] = fma(value, value, sums[0]);
    }
  }

  __device__ __forceinline__ void finish(int64_t sample, int64_t m, const double (&sums)[1]) const {
    radii[m * projections.batch + sample] = sphere_radius(projections.sample_size.divisor, sums[0]);
  }
};

// What a projection op has in hand: the vectors, and the memory of their radii.
struct ProjectionSetup {
  Noise noise;
  Projections projections;
  std::optional<Tensor> radii;
};

ProjectionSetup set_up(const Launcher& launch, const Tensor& key, int64_t distribution, DType dtype,
                       int64_t count, int64_t batch, int64_t sample_size, int64_t sample_offset,
                       const std::optional<Tensor>& samples, const Tensor& like) {
  const Noise noise(key, Stream::kProjection, sample_offset, samples, sample_size);
  ProjectionSetup setup = {noise,
                           {noise.source, static_cast<Projection>(distribution), dtype, count,
                            batch, batch * sample_size, Divider::by(sample_size), nullptr},
                           std::nullopt};
  if (setup.projections.distribution == Projection::kSphere) {
    setup.radii = new_tensor({count, batch}, ScalarType::Float, like);
    float* radii = setup.radii->mutable_data_ptr<float>();
    sum_rows(launch, SphereRadius{setup.projections, radii}, {batch, sample_size, 1}, like);
    setup.projections.radii = radii;
  }
  return setup;
}

// Whether packs of v elements can be moved whole in every projection of a stacked tensor.
bool stack_packable(const View& stack, int64_t count, int64_t numel, int v) {
  return packable(stack, v) && (count == 1 || numel % v == 0);
}

// Packs of a thread of the elementwise kernels: much is done once for all of them.
template <class S>
constexpr int kSlicedPacks = sizeof(S) == 8 ? 2 : 4;

// ---- project_ --------------------------------------------------------------------------------

template <class Access, bool kEach>
__global__ void __launch_bounds__(kThreads, 2)
    project(const __grid_constant__ Projections p, const __grid_constant__ Access out) {
  constexpr int V = Access::V;
  const Tile<Access> tile(p.noise.origin, p.numel);
  tile.split([&](auto whole) {
#pragma unroll 1
    for (int64_t m = 0; m < p.count; ++m) {
#pragma unroll
      for (int u = 0; u < Access::kAtOnce; ++u) {
        const Range range = tile.range(u, whole);
        if (range.empty()) continue;
        float v[V];
        p.draw<kEach>(m, range, v);
        typename Access::Real values[V];
#pragma unroll
        for (int j = 0; j < V; ++j) values[j] = v[j];
        out.store(p.at(m, range), whole, values);
      }
    }
  });
}

template <class S>
void project_as(const Launcher& launch, const ProjectionSetup& setup, const View& out) {
  constexpr int V = kPack<S>;
  const Projections& p = setup.projections;
  const auto run = [&](const auto& access) {
    using Access = std::decay_t<decltype(access)>;
    setup.noise.split([&](auto each) {
      launch.blocks(tile_count<Access>(p.noise.origin, p.numel), &project<Access, each()>, p,
                    access);
    });
  };
  if (p.noise.origin % V == 0 && stack_packable(out, p.count, p.numel, V)) {
    run(packed<S, V, kSlicedPacks<S>>(out));
  } else {
    run(Spread<Compute<S>>::of(out));
  }
}

// ---- sliced_terms ----------------------------------------------------------------------------

template <class Access>
struct SlicedSums {
  using Real = typename Access::Real;
  static constexpr int V = Access::V, kAtOnce = kRowPacks<Access>, kSums = 3;  // v'Jv, v's, |s|^2
  struct Inputs {
    typename Access::Raw score, jvp;
  };
  struct Row {
    OwnNoise noise;
    float radius;
  };

  Projections projections;
  Access score, jvp;
  Real *vjv, *vs, *half_vs2, *half_s2;

  __host__ __device__ __forceinline__ int64_t jobs() const { return projections.count; }
  __device__ __forceinline__ int64_t origin(int64_t sample) const {
    return projections.noise.origin_of(sample);
  }
  __device__ __forceinline__ Row row(int64_t sample, int64_t m) const {
    return {projections.own(sample, m), projections.radius(m, sample)};
  }
  // For all projections but the first, the score is still in a cache.
  __device__ __forceinline__ Inputs load(int64_t m, const Range& range, bool whole) const {
    return {score.load(range, whole), jvp.load(projections.at(m, range), whole)};
  }

  __device__ __forceinline__ void add(const Row& row, int64_t m, const Inputs& inputs,
                                      const Range& range, bool whole, Real (&sums)[3]) const {
    Real s[V], j[V];
    float v[V];
    Access::unpack(inputs.score, s);
    Access::unpack(inputs.jvp, j);
    projections.draw(row.noise, row.radius, range.i, v);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      // Another sample's v, scaled by this one's radius, may be infinite in float16: no sum may
      // meet it, not even times 0.
      if (!whole && (k < range.low || k >= range.high)) continue;
      sums[0] = fma(static_cast<Real>(v[k]), j[k], sums[0]);
      sums[1] = fma(static_cast<Real>(v[k]), s[k], sums[1]);
    }
    if (m != 0) return;
#pragma unroll
    for (int k = 0; k < V; ++k) sums[2] = fma(s[k], s[k], sums[2]);  // 0 where there is none
  }

  __device__ __forceinline__ void finish(int64_t sample, int64_t m, const double (&sums)[3]) const {
    const int64_t at = m * projections.batch + sample;
    vjv[at] = static_cast<Real>(sums[0]);
    vs[at] = static_cast<Real>(sums[1]);
    half_vs2[at] = static_cast<Real>(0.5 * sums[1] * sums[1]);
    if (m == 0) half_s2[sample] = static_cast<Real>(0.5 * sums[2]);
  }
};

struct TermTensors {
  Tensor vjv, vs, half_vs2, half_s2;
};

template <class S>
void terms_as(const Launcher& launch, const Projections& p, const View& score, const View& jvp,
              TermTensors& out) {
  using T = Compute<S>;
  constexpr int V = kPack<S>;
  const auto run = [&](const auto& s, const auto& j) {
    using Access = std::decay_t<decltype(s)>;
    const SlicedSums<Access> op = {p,
                                   s,
                                   j,
                                   out.vjv.mutable_data_ptr<T>(),
                                   out.vs.mutable_data_ptr<T>(),
                                   out.half_vs2.mutable_data_ptr<T>(),
                                   out.half_s2.mutable_data_ptr<T>()};
    const int64_t size = p.batch > 0 ? p.numel / p.batch : 0;
    sum_rows(launch, op, {p.batch, size, 1}, out.vjv);
  };
  if (rows_packable(p.noise, V) && packable(score, V) && stack_packable(jvp, p.count, p.numel, V)) {
    run(packed<S>(score), packed<S>(jvp));
  } else {
    using Any = Spread<T, V>;
    run(Any::of(score), Any::of(jvp));
  }
}

// ---- sliced_terms_backward -------------------------------------------------------------------

// An upstream gradient of each sample, or of each projection and sample; or none, which reads as 0.
template <class T>
struct Upstream {
  const T* data;
  int64_t projection_stride, sample_stride;

  __device__ __forceinline__ T at(int64_t m, int64_t sample) const {
    return data ? data[m * projection_stride + sample * sample_stride] : T(0);
  }

  static Upstream of(const std::optional<Tensor>& grad) {
    if (!grad) return {nullptr, 0, 0};
    const int64_t last = grad->dim() - 1;
    return {grad->const_data_ptr<T>(), last > 0 ? grad->stride(0) : 0, grad->stride(last)};
  }
};

template <class T>
struct TermGrads {
  Upstream<T> vjv, vs, half_s2;
};

template <class Access>
struct BackwardTensors {
  Access score, grad_score, grad_jvp;
};

// One pack; `sum` is g_3 s, and becomes the score's gradient.
template <bool kEach, class Access, class T = typename Access::Real>
__device__ __forceinline__ void backward_pack(const Projections& p, const TermGrads<T>& grads,
                                              const BackwardTensors<Access>& t, const Range& range,
                                              bool whole, T (&sum)[Access::V]) {
  constexpr int V = Access::V;
  struct Row {
    T of_jvp, of_score;
  };
  const bool has_vs = grads.vs.data != nullptr;  // adding 0 v would lose signs of zeros
#pragma unroll 1
  for (int64_t m = 0; m < p.count; ++m) {
    float v[V];
    T jvp[V];
    p.draw<kEach>(m, range, v);
    for_each_sample<V>(
        p.sample_size, range,
        [&](int64_t sample) { return Row{grads.vjv.at(m, sample), grads.vs.at(m, sample)}; },
        [&](int j, const Row& row) {
          const T weight = v[j];
          jvp[j] = row.of_jvp * weight;
          if (has_vs) sum[j] = fma(row.of_score, weight, sum[j]);
        });
    t.grad_jvp.store(p.at(m, range), whole, jvp);
  }
  t.grad_score.store(range, whole, sum);
}

template <class Access, bool kEach>
__global__ void __launch_bounds__(kThreads, 2)
    terms_backward(const __grid_constant__ Projections p,
                   const __grid_constant__ TermGrads<typename Access::Real> grads,
                   const __grid_constant__ BackwardTensors<Access> t) {
  using T = typename Access::Real;
  constexpr int V = Access::V;
  const bool has_score = grads.half_s2.data != nullptr;
  const Tile<Access> tile(p.noise.origin, p.numel);
  tile.split([&](auto whole) {
    typename Access::Raw raw[Access::kAtOnce] = {};
    if (has_score) tile.load(t.score, whole, raw);
#pragma unroll
    for (int u = 0; u < Access::kAtOnce; ++u) {
      const Range range = tile.range(u, whole);
      if (range.empty()) continue;
      T sum[V];
      Access::unpack(raw[u], sum);
      if (has_score) {
        for_each_sample<V>(
            p.sample_size, range, [&](int64_t sample) { return grads.half_s2.at(0, sample); },
            [&](int j, T g) { sum[j] = g * sum[j]; });
      }
      backward_pack<kEach>(p, grads, t, range, whole, sum);
    }
  });
}

template <class S>
void backward_as(const Launcher& launch, const ProjectionSetup& setup, const View& score,
                 const Tensor& grad_vjv, const std::optional<Tensor>& grad_vs,
                 const std::optional<Tensor>& grad_half_s2, const View& grad_score,
                 const View& grad_jvp) {
  using T = Compute<S>;
  constexpr int V = kPack<S>;
  const Projections& p = setup.projections;
  const TermGrads<T> grads = {Upstream<T>::of(grad_vjv), Upstream<T>::of(grad_vs),
                              Upstream<T>::of(grad_half_s2)};
  const auto run = [&](const auto& s, const auto& gs, const auto& gj) {
    using Access = std::decay_t<decltype(s)>;
    setup.noise.split([&](auto each) {
      launch.blocks(tile_count<Access>(p.noise.origin, p.numel), &terms_backward<Access, each()>, p,
                    grads, BackwardTensors<Access>{s, gs, gj});
    });
  };
  if (p.noise.origin % V == 0 && packable(score, V) && packable(grad_score, V) &&
      stack_packable(grad_jvp, p.count, p.numel, V)) {
    const auto access = [](const View& view) { return packed<S, V, kSlicedPacks<S>>(view); };
    run(access(score), access(grad_score), access(grad_jvp));
  } else {
    using Any = Spread<T>;
    run(Any::of(score), Any::of(grad_score), Any::of(grad_jvp));
  }
}

// ---- ops -------------------------------------------------------------------------------------

void project_(Tensor out, const Tensor& key, int64_t distribution, int64_t sample_offset,
              std::optional<Tensor> samples) {
  const char* op = "projections";  // the name its users know
  check_projections(op, out, key, distribution, sample_offset, samples);
  if (out.numel() == 0) return;
  const Launcher launch(out);
  const View view = make_view(op, "out", out);
  const ProjectionSetup setup =
      set_up(launch, key, distribution, view.dtype, out.size(0), out.size(1),
             projection_sample_size(out), sample_offset, samples, out);
  with_storage(view.dtype, [&](auto type) { project_as<decltype(type)>(launch, setup, view); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_terms(const Tensor& score, const Tensor& jvp,
                                                        const Tensor& key, int64_t distribution,
                                                        int64_t sample_offset,
                                                        std::optional<Tensor> samples) {
  const char* op = "sliced_terms";
  check_sliced_terms(op, score, jvp, key, distribution, sample_offset, samples);
  const Launcher launch(score);
  const View s = make_view(op, "score", score), j = make_view(op, "jvp", jvp);
  const int64_t count = jvp.size(0), batch = batch_size(score);
  const ScalarType dtype = sum_dtype(score.scalar_type());
  TermTensors out = {new_tensor({count, batch}, dtype, score),
                     new_tensor({count, batch}, dtype, score),
                     new_tensor({count, batch}, dtype, score), new_tensor({batch}, dtype, score)};
  const ProjectionSetup setup = set_up(launch, key, distribution, s.dtype, count, batch,
                                       sample_size(score), sample_offset, samples, score);
  with_storage(s.dtype,
               [&](auto type) { terms_as<decltype(type)>(launch, setup.projections, s, j, out); });
  return {out.vjv, out.vs, out.half_vs2, out.half_s2};
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
  const Launcher launch(score);
  const int64_t count = grad_vjv.size(0);
  Tensor grad_score = new_like(score);
  Tensor grad_jvp = new_stacked(count, score);
  if (score.numel() == 0) return {grad_score, grad_jvp};
  const View s = make_view(op, "score", score);
  const ProjectionSetup setup = set_up(launch, key, distribution, s.dtype, count, batch_size(score),
                                       sample_size(score), sample_offset, samples, score);
  with_storage(s.dtype, [&](auto type) {
    backward_as<decltype(type)>(launch, setup, s, grad_vjv, grad_vs, grad_half_s2,
                                make_view(op, "grad_score", grad_score),
                                make_view(op, "grad_jvp", grad_jvp));
  });
  return {grad_score, grad_jvp};
}

}  // namespace
}  // namespace fastscore::FASTSCORE_ISA

FASTSCORE_CUDA_OPS(m) {
  using namespace fastscore::FASTSCORE_ISA;
  m.impl("project_", TORCH_BOX(&project_));
  m.impl("sliced_terms", TORCH_BOX(&sliced_terms));
  m.impl("sliced_terms_backward", TORCH_BOX(&sliced_terms_backward));
}
