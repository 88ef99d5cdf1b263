"""What only a CUDA device can tell: streams, graphs, waiting, several devices, long tensors.

``test_parity`` compares results, on a device and emulated.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from every_op import EveryOp
from helpers import assert_same_bytes, make_key
from torch import Tensor

from fastscore import ops

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_ops_run_on_the_current_stream() -> None:
    device = torch.device("cuda", 0)
    every_op, key, late = EveryOp(device), make_key(5, 1, device), make_key(99, 99, device)
    want = every_op(key)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # The key that the ops read is written late, on their stream: on another they would miss it.
        torch.cuda._sleep(20_000_000)
        late.copy_(key)
        got = every_op(late)
    stream.synchronize()
    for ours, theirs in zip(got, want, strict=True):
        assert_same_bytes(ours, theirs)


def test_a_captured_graph_draws_fresh_noise_at_each_replay() -> None:
    device = torch.device("cuda", 0)
    every_op, key = EveryOp(device), make_key(5, 0, device)
    every_op(key)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = every_op(key)
        key[1].add_(1)
    key.copy_(make_key(5, 0, device))
    seen: list[Tensor] = []
    for draw in range(4):
        graph.replay()
        for ours, theirs in zip(captured, every_op(make_key(5, draw, device)), strict=True):
            assert_same_bytes(ours, theirs)
        seen.append(captured[0].clone())
    assert int(key[1]) == 4
    assert not any(torch.equal(a, b) for a, b in pairwise(seen))


def test_ops_do_not_wait_for_the_device() -> None:
    every_op, key = EveryOp(torch.device("cuda", 0)), make_key(5, 1, "cuda")
    every_op(key)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        every_op(key)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_ops_run_on_the_device_of_their_tensors() -> None:
    here, there = torch.device("cuda", 0), torch.device("cuda", 1)
    want = EveryOp(here)(make_key(5, 1, here))
    with torch.cuda.device(here):
        got = EveryOp(there)(make_key(5, 1, there))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.device == there
        assert_same_bytes(ours, theirs)


def test_more_than_31_bits_of_elements() -> None:
    """The ends of long tensors, against a shard of their own. ``test_large`` has the other ops."""
    rows, columns, device = 2**11 + 1, 2**20, torch.device("cuda", 0)
    if torch.cuda.mem_get_info()[0] < 9 * rows * columns * 2:
        pytest.skip("needs 39 GB of GPU memory")
    key = make_key(5, 1, device)
    s = torch.zeros(rows, columns, dtype=torch.bfloat16, device=device)
    ops.normal_(s, key)
    whole = ops.sliced_terms(s, s[None], key, distribution="sphere")
    value, tangent = ops.dual(s, s[None], "silu")
    v = ops.projections(key, (rows, columns), 1, dtype=torch.bfloat16)
    for row in (0, rows // 2, rows - 1):
        one = slice(row, row + 1)
        options = {"distribution": "sphere", "sample_offset": row}
        for ours, alone in zip(
            whole, ops.sliced_terms(s[one], s[None, one], key, **options), strict=True
        ):
            assert_same_bytes(ours[..., one], alone)
        alone = ops.dual(s[one].clone(), s[None, one].clone(), "silu")
        assert_same_bytes(value[one], alone[0])
        assert_same_bytes(tangent[:, one], alone[1])
        want = ops.projections(
            make_key(5, 1), (1, columns), 1, dtype=torch.bfloat16, sample_offset=row
        )
        assert_same_bytes(v[:, one], want)
