// Sums over samples ("rows"), in a fixed order that depends on the flat indices alone: the same
// bytes for any split of the batch, and for the packed and the spread way of reaching elements.
//
// A row is shared out, in packs, over the lanes of part of a warp when it is short and over blocks
// when it is long: a segment to each block, and where there are several segments a second kernel
// adds them up. Lanes sum a few packs in the compute type, each by itself first; their sums are
// added in double.
//
// The summand is an Op with
// - Real, V, kAtOnce, kSums: compute type, elements of a pack, packs in flight, sums of a row;
// - jobs(): how many sets of sums a row has (projections);
// - origin(sample): the flat index of element i of the row, less i: where packs are cut;
// - Row row(sample, job): what all elements of a row share;
// - Inputs load(job, range, whole): the elements of a pack, as they lie in memory;
// - add(row, job, inputs, range, whole, sums): adds a pack's terms;
// - finish(sample, job, sums): writes the result.
#pragma once

#include <cub/block/block_reduce.cuh>
#include <cub/warp/warp_reduce.cuh>

#include "cuda/access.cuh"
#include "cuda/launch.h"

namespace fastscore::FASTSCORE_ISA {

struct RowShape {
  int64_t rows, size;
  uint32_t segments;  // of a long row
};

// The threads that share a segment, and the packs that each has of it.
constexpr int kRowThreads = 128, kPacksPerThread = 8;
template <int V>
constexpr int64_t kSegmentElements = int64_t{kRowThreads} * V * kPacksPerThread;

// Blocks that a multiprocessor is to hold at least, and packs that a thread has in flight where
// packs move whole.
template <class Op>
constexpr int row_blocks() {
  if constexpr (requires { Op::kBlocks; }) return Op::kBlocks;  // It knows better.
  return Op::kAtOnce > 1 && sizeof(typename Op::Real) == 4 ? 8 : 4;
}
template <class Access>
constexpr int kRowPacks = Access::kMovesWhole ? 3 : 1;

// All sums of a row, which are reduced at once.
template <int kSums>
struct Totals {
  double of[kSums];
};

struct AddTotals {
  template <int kSums>
  __device__ __forceinline__ Totals<kSums> operator()(const Totals<kSums>& a,
                                                      const Totals<kSums>& b) const {
    Totals<kSums> sum;
#pragma unroll
    for (int k = 0; k < kSums; ++k) sum.of[k] = a.of[k] + b.of[k];
    return sum;
  }
};

template <int kSums, class Real>
__device__ __forceinline__ Totals<kSums> totals_of(const Real (&sums)[kSums]) {
  Totals<kSums> totals;
#pragma unroll
  for (int k = 0; k < kSums; ++k) totals.of[k] = static_cast<double>(sums[k]);
  return totals;
}

// The packs of elements [begin, end) of one tensor, cut at multiples of V in the flat index.
template <int V>
struct PackRun {
  int64_t begin, end, first;  // first: where the pack that holds `begin` starts

  __device__ __forceinline__ PackRun(int64_t begin, int64_t end, int64_t origin)
      : begin(begin), end(end), first(begin - ((origin + begin) & (V - 1))) {}

  __device__ __forceinline__ Range range(int64_t pack) const {
    const int64_t i = first + pack * V, left = end - i;
    return {i, i < begin ? static_cast<int>(begin - i) : 0,
            left >= V ? V : (left > 0 ? static_cast<int>(left) : 0)};
  }
  __device__ __forceinline__ Range whole_range(int64_t pack) const {
    return {first + pack * V, 0, V};
  }
};

// Adds a pack's terms, which are summed by themselves first: short chains have small errors.
template <class Op, class Row, class Inputs, class Sums>
__device__ __forceinline__ void add_pack(const Op& op, const Row& shared, int64_t job,
                                         const Inputs& inputs, const Range& range, bool whole,
                                         Sums& sums) {
  typename Op::Real own[Op::kSums] = {};
  op.add(shared, job, inputs, range, whole, own);
#pragma unroll
  for (int k = 0; k < Op::kSums; ++k) sums[k] += own[k];
}

// ---- short rows ------------------------------------------------------------------------------

template <class Op, int kLanes>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Op>)
    sum_short_rows(const __grid_constant__ Op op, const RowShape shape) {
  using Real = typename Op::Real;
  constexpr int V = Op::V;
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const bool exists = row < shape.rows;
#pragma unroll 1
  for (int64_t job = 0; job < op.jobs(); ++job) {
    Real sums[Op::kSums] = {};
    if (exists) {
      const auto shared = op.row(row, job);
      const PackRun<V> run(row * shape.size, (row + 1) * shape.size, op.origin(row));
#pragma unroll 1
      for (int64_t pack = lane; run.first + pack * V < run.end; pack += kLanes) {
        const Range range = run.range(pack);
        const bool whole = range.holds(V);
        add_pack(op, shared, job, op.load(job, range, whole), range, whole, sums);
      }
    }
    Totals<Op::kSums> totals = totals_of(sums);
    if constexpr (kLanes > 1) {
      using Reduce = cub::WarpReduce<Totals<Op::kSums>, kLanes>;
      __shared__ typename Reduce::TempStorage storage[kThreads / kLanes];
      totals = Reduce(storage[threadIdx.x / kLanes]).Reduce(totals, AddTotals());
      __syncwarp();
    }
    if (exists && lane == 0) op.finish(row, job, totals.of);
  }
}

// ---- long rows -------------------------------------------------------------------------------

// Adds kPacks of a thread's packs, the first of them number `first`, each kRowThreads packs behind
// the one before: all loads come first. kWhole: all packs exist and are whole.
template <int kPacks, bool kWhole, class Op, class Row, class Sums>
__device__ __forceinline__ void add_packs(const Op& op, const Row& shared, int64_t job,
                                          const PackRun<Op::V>& run, int first, Sums& sums) {
  Range range[kPacks];
  bool whole[kPacks];
  typename Op::Inputs inputs[kPacks];
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    range[u] =
        kWhole ? run.whole_range(first + u * kRowThreads) : run.range(first + u * kRowThreads);
    whole[u] = kWhole || range[u].holds(Op::V);
    inputs[u] = op.load(job, range[u], whole[u]);
  }
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    if (kWhole || !range[u].empty()) {
      add_pack(op, shared, job, inputs[u], range[u], whole[u], sums);
    }
  }
}

// One block for each segment of each row. With several segments, their sums go to `partial`, laid
// out as rows x jobs x sums x segments.
template <class Op>
__global__ void __launch_bounds__(kRowThreads, row_blocks<Op>())
    sum_segments(const __grid_constant__ Op op, const RowShape shape, double* partial) {
  using Real = typename Op::Real;
  constexpr int V = Op::V;
  using Reduce = cub::BlockReduce<Totals<Op::kSums>, kRowThreads>;
  __shared__ typename Reduce::TempStorage storage;
  const int64_t row = blockIdx.x / shape.segments;
  const int64_t segment = blockIdx.x % shape.segments;

  // Segments are cut where packs are, counted from the row's first pack.
  PackRun<V> run(row * shape.size, (row + 1) * shape.size, op.origin(row));
  run.first += segment * kSegmentElements<V>;
  const int64_t limit = run.first + kSegmentElements<V>;
  if (limit < run.end) run.end = limit;
  // The packs that the block takes at once make a round. How many there are, and how many whole.
  const int rounds = ceil_div(run.end - run.first, kRowThreads * V);
  const int whole = run.first < run.begin ? 0 : (run.end - run.first) / (kRowThreads * V);

#pragma unroll 1
  for (int64_t job = 0; job < op.jobs(); ++job) {
    const auto shared = op.row(row, job);
    Real sums[Op::kSums] = {};
    int round = 0;
#pragma unroll 1
    for (; round + Op::kAtOnce <= whole; round += Op::kAtOnce) {
      add_packs<Op::kAtOnce, true>(op, shared, job, run, round * kRowThreads + threadIdx.x, sums);
    }
    if constexpr (Op::kAtOnce > 1) {
#pragma unroll 1
      for (; round < whole; ++round) {
        add_packs<1, true>(op, shared, job, run, round * kRowThreads + threadIdx.x, sums);
      }
    }
#pragma unroll 1
    for (; round < rounds; ++round) {
      add_packs<1, false>(op, shared, job, run, round * kRowThreads + threadIdx.x, sums);
    }
    if (job > 0) __syncthreads();  // The storage is used again.
    const Totals<Op::kSums> totals = Reduce(storage).Reduce(totals_of(sums), AddTotals());
    if (threadIdx.x != 0) continue;
    if (shape.segments == 1) {
      op.finish(row, job, totals.of);
    } else {
      const int64_t set = (row * op.jobs() + job) * Op::kSums;
#pragma unroll
      for (int k = 0; k < Op::kSums; ++k) {
        partial[(set + k) * shape.segments + segment] = totals.of[k];
      }
    }
  }
}

// One warp for each row and job.
template <class Op>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Op>)
    add_segments(const __grid_constant__ Op op, const RowShape shape, const double* partial) {
  using Reduce = cub::WarpReduce<Totals<Op::kSums>>;
  __shared__ typename Reduce::TempStorage storage[kThreads / 32];
  const int64_t set = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (set >= shape.rows * op.jobs()) return;  // The same for the whole warp.
  Totals<Op::kSums> totals = {};
#pragma unroll
  for (int k = 0; k < Op::kSums; ++k) {
    for (int64_t s = lane; s < shape.segments; s += 32) {
      totals.of[k] += partial[(set * Op::kSums + k) * shape.segments + s];
    }
  }
  totals = Reduce(storage[threadIdx.x / 32]).Reduce(totals, AddTotals());
  if (lane == 0) op.finish(set / op.jobs(), set % op.jobs(), totals.of);
}

// ---- choosing --------------------------------------------------------------------------------

template <int kLanes, class Op>
void launch_short(const Launcher& launch, const Op& op, const RowShape& shape) {
  launch.blocks(ceil_div(shape.rows * kLanes, kThreads), &sum_short_rows<Op, kLanes>, op, shape);
}

// The sums of all rows. What runs depends on the size of a row, never on their number.
template <class Op>
void sum_rows(const Launcher& launch, const Op& op, RowShape shape, const Tensor& like) {
  constexpr int V = Op::V;
  if (shape.size <= 2 * V) return launch_short<1>(launch, op, shape);
  if (shape.size <= 16 * V) return launch_short<8>(launch, op, shape);
  if (shape.size <= 256 * V) return launch_short<32>(launch, op, shape);
  const int64_t slack = shape.size % V == 0 ? 0 : V - 1;  // A row may begin within a pack.
  shape.segments = static_cast<uint32_t>(ceil_div(shape.size + slack, kSegmentElements<V>));
  if (shape.segments == 1) {
    launch.blocks<kRowThreads>(shape.rows, &sum_segments<Op>, op, shape,
                               static_cast<double*>(nullptr));
    return;
  }
  const int64_t sets = shape.rows * op.jobs();
  Tensor partial = new_tensor({sets * Op::kSums * shape.segments}, ScalarType::Double, like);
  double* sums = partial.mutable_data_ptr<double>();
  launch.blocks<kRowThreads>(shape.rows * shape.segments, &sum_segments<Op>, op, shape, sums);
  launch.blocks(ceil_div(sets * 32, kThreads), &add_segments<Op>, op, shape,
                static_cast<const double*>(sums));
}

}  // namespace fastscore::FASTSCORE_ISA
