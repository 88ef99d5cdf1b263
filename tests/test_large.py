"""More than 2^31 elements. Slow and large: runs when FASTSCORE_TEST_LARGE is set."""

from __future__ import annotations

import os

import pytest
import torch
from byte_cases import dsm_tables, langevin_table
from helpers import assert_same_bytes, make_key
from torch import Tensor

from fastscore import ops

pytestmark = pytest.mark.skipif(
    not os.environ.get("FASTSCORE_TEST_LARGE"), reason="set FASTSCORE_TEST_LARGE=1: needs 16 GB"
)


def on(device: torch.device, *values: Tensor) -> tuple[Tensor, ...]:
    """The tensors moved to the device."""
    return tuple(value.to(device) for value in values)


@pytest.mark.parametrize("name", ["normal_", "uniform_", "rademacher_"])
def test_fills_beyond_31_bits(name: str, device: torch.device) -> None:
    rows, columns = 2**11 + 1, 2**20
    key = make_key(5, 1, device)
    out = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
    getattr(ops, name)(out, key, stream=0, sample_offset=0)
    for row in (0, rows // 2, rows - 1):
        alone = torch.empty(1, columns, dtype=torch.bfloat16, device=device)
        getattr(ops, name)(alone, key, stream=0, sample_offset=row)
        assert_same_bytes(out[row : row + 1], alone)


def test_langevin_step_beyond_31_bits(device: torch.device) -> None:
    """The last elements of a state of more than 2^31 elements, against a shard of their own."""
    rows, columns = 2**11 + 1, 2**20
    table, key = on(device, langevin_table(), make_key(5, 1))
    x = torch.zeros(rows, columns, dtype=torch.bfloat16, device=device)
    score = torch.ones(1, 1, dtype=torch.bfloat16, device=device).expand(rows, columns)
    ops.langevin_step_(x, score, table, key)
    for row in (0, rows // 2, rows - 1):
        alone = torch.zeros(1, columns, dtype=torch.bfloat16, device=device)
        ops.langevin_step_(alone, score[:1], table, key, sample_offset=row)
        assert_same_bytes(x[row : row + 1], alone)
    flat = x.view(1, -1).zero_()
    ops.langevin_step_(flat, score[:1, :1].expand(1, flat.numel()), table, key)
    assert_same_bytes(flat[:, -columns:], alone)


def test_dsm_beyond_31_bits(device: torch.device) -> None:
    noise_table, loss_table, key = on(device, *dsm_tables(), make_key(5, 1))
    rows, columns = 2**11 + 1, 2**20
    x = torch.ones(1, 1, dtype=torch.bfloat16, device=device).expand(rows, columns)
    labels = torch.arange(rows, device=device) % len(noise_table)
    loss = ops.dsm_residual(x, loss_table, labels, key)
    noisy, _ = ops.perturb(x, noise_table, key, labels=labels)
    for row in (0, rows // 2, rows - 1):
        one = slice(row, row + 1)
        options = {"sample_offset": row}
        alone = ops.dsm_residual(x[one], loss_table, labels[one], key, **options)
        torch.testing.assert_close(loss[one], alone, rtol=2e-6, atol=0)
        alone, _ = ops.perturb(x[one], noise_table, key, labels=labels[one], **options)
        assert_same_bytes(noisy[one], alone)
    flat = x[:1, :1].expand(1, rows * columns)  # one sample of more than 2^31 elements
    silent = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64, device=device)
    loss = ops.dsm_residual(flat, silent, labels[:1] * 0, key)
    assert float(loss[0]) == pytest.approx(flat.numel() / 2, rel=1e-4)
