"""Every op launches its kernels on the right device, stream and number of blocks."""

from __future__ import annotations

import pytest
import torch
from emulator import Launch, configured, emulated, launches, op_names
from every_op import EveryOp
from helpers import assert_same_bytes, make_key
from torch import Tensor

pytestmark = pytest.mark.emulated

BATCH, COLUMNS = 6, 20_001
ELEMENTS = BATCH * COLUMNS
BLOCKS_PER_MULTIPROCESSOR = 32
# The tile of a block of 256 threads: so many packs of four elements a thread where an op can move
# packs whole, else four elements (rows of odd length make the stack of a tangent unaligned).
FILLED, MAPPED, PACKED, SPREAD = 4096, 3072, 2048, 1024
SEGMENT = 4096  # of a row that is summed
PROJECTIONS = 2

# The kernels of each op that have a block for each tile, with the elements of a tile. `regrad`
# shares its tiles out evenly over few blocks.
TILED = {
    "random_normal_": ("fill", FILLED),
    "random_uniform_": ("fill", FILLED),
    "random_rademacher_": ("fill", FILLED),
    "langevin_step": ("langevin", PACKED),
    "langevin_step_": ("langevin", PACKED),
    "multistep_step_": ("full_step<Multistep", SPREAD),
    "perturb": ("map", MAPPED),
    "dsm_residual_backward": ("map", MAPPED),
    "dsm_residual_regrad_": ("regrad", PACKED),
    "rk_stage": ("stage", MAPPED),
    "rk_stage_": ("stage", MAPPED),
    "rk_advance_": ("advance", MAPPED),
    "project_": ("project", SPREAD),
    "sliced_terms_backward": ("terms_backward", SPREAD),
    "dual": ("forward", SPREAD),
    "dual_backward": ("backward", SPREAD),
    "dual_slope": ("value_and_slope", PACKED),
    "dual_slope_backward": ("value_and_slope_backward", PACKED),
    "dual_stacked": ("forward", SPREAD),
    "dual_stacked_backward": ("backward", SPREAD),
}
# With x~ beside the output, where the residual's sum is always the one that may make a gradient.
BESIDE = {"dsm_residual_backward": ("regrad", PACKED)}
# The ops that sum rows, with how many sums each row gets; with the sphere they sum |v|^2 first.
SUMMED = {
    "dsm_residual": [("ResidualSum<", 1), ("ResidualSumWithGrad<Beside", 1)],
    "dsm_residual_with_grad": [("ResidualSumWithGrad", 1)],
    "rk_error": [("ErrorSum", 1)],
    "project_": [("SphereRadius", PROJECTIONS)],
    "sliced_terms": [("SphereRadius", PROJECTIONS), ("SlicedSums", PROJECTIONS)],
    "sliced_terms_backward": [("SphereRadius", PROJECTIONS)],
}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def expected(op: str, multiprocessors: int) -> set[tuple[str, int]]:
    """Names of kernels, each with its number of blocks."""
    found: set[tuple[str, int]] = set()
    for kernel, tile in (table[op] for table in (TILED, BESIDE) if op in table):
        blocks = ceil_div(ELEMENTS, tile)
        if kernel == "regrad":
            blocks = ceil_div(blocks, ceil_div(blocks, multiprocessors * BLOCKS_PER_MULTIPROCESSOR))
        found.add((kernel, blocks))
    for what, sums in SUMMED.get(op, []):
        found.add((f"sum_segments<{what}", BATCH * ceil_div(COLUMNS, SEGMENT)))
        found.add((f"add_segments<{what}", ceil_div(BATCH * sums * 32, 256)))
    if op == "perturb":
        found.add(("draw_labels", 1))
    return found


def run_all(**settings: int) -> tuple[list[Launch], list[Tensor]]:
    every_op = EveryOp(torch.device("cpu"), COLUMNS)
    with emulated(), configured(**settings), launches() as record:
        results = every_op(make_key(5, 1))
    return record, results


Run = tuple[int, list[Launch], list[Tensor]]  # with how many multiprocessors; what came of it


@pytest.fixture(scope="module", params=[132, 1])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param, *run_all(multiprocessors=request.param, device=2, stream=7)


def test_every_op_launches_something(run: Run) -> None:
    assert {launch.op for launch in run[1]} == set(op_names())


def test_on_the_current_stream_of_the_tensors_device(run: Run) -> None:
    elsewhere = [launch for launch in run[1] if (launch.device, launch.stream) != (2, 7)]
    assert not elsewhere


@pytest.mark.parametrize("op", sorted({*TILED, *SUMMED}))
def test_with_the_expected_number_of_blocks(op: str, run: Run) -> None:
    multiprocessors, record, _ = run
    mine = [launch for launch in record if launch.op == op]
    for launch in mine:
        threads = 128 if launch.kernel.startswith("sum_segments") else 256
        assert launch.block == (threads, 1, 1), launch.kernel
    assert all(launch.grid[1:] == (1, 1) for launch in mine)
    wanted = expected(op, multiprocessors)
    got = {(launch.kernel, launch.grid[0]) for launch in mine}
    for kernel, blocks in got:
        assert any(kernel.startswith(k) and blocks == n for k, n in wanted), (kernel, blocks)
    for k, n in wanted:
        assert any(kernel.startswith(k) and blocks == n for kernel, blocks in got), (k, n, got)


def test_every_op_is_in_one_of_the_tables() -> None:
    assert {*TILED, *SUMMED} == set(op_names())


def test_loops_over_tiles_give_the_bytes_of_a_block_for_each() -> None:
    many, one = run_all(multiprocessors=132)[1], run_all(multiprocessors=1)[1]
    for ours, theirs in zip(one, many, strict=True):
        assert_same_bytes(ours, theirs)


@pytest.mark.parametrize("order", ["backwards", "shuffled"])
def test_the_order_of_blocks_and_warps_changes_nothing(order: str) -> None:
    every_op, key = EveryOp(torch.device("cpu")), make_key(5, 1)
    with emulated():
        want = every_op(key)
        with configured(order=order, seed=3):
            got = every_op(key)
    for ours, theirs in zip(got, want, strict=True):
        assert_same_bytes(ours, theirs)
