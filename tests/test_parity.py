"""The same bytes from the CUDA kernels as from the CPU's, for every op, layout and precision.

``other`` is where they run: emulated on this machine, or on a device. Sums over samples
(``dsm_residual``, ``sliced_terms``, ``rk_error``) have an order of their own on each device: they
are compared within rounding, and to the byte between splits of the batch and between layouts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from byte_cases import langevin_table
from emulator.plugin import Side
from helpers import DTYPES, LAYOUTS, assert_same_bytes, make_key, randn
from parity_cases import (
    ELEMENTWISE,
    Results,
    Shape,
    duals,
    errors,
    gradients_in_advance,
    maker,
    noisy_gradients,
    noisy_residuals,
    projected,
    residual_gradients,
    residuals,
    shapes_for,
    sliced_gradients,
    terms,
)
from torch import Tensor

import fastscore
from fastscore import ops
from fastscore.random import Stream

# ---- elementwise ops -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_ops_give_the_bytes_of_the_cpu(
    name: str, dtype: torch.dtype, layout: str, other: Side
) -> None:
    if name == "duals" and dtype == torch.float64:
        pytest.skip("float64 activations are the platform's mathematics library")
    case = ELEMENTWISE[name]
    on_cpu, there = torch.device("cpu"), other.device
    for shape in shapes_for(layout):
        want = case(maker(dtype, layout, on_cpu), shape, on_cpu)
        got = other(case, maker(dtype, layout, there), shape, there)
        for ours, theirs in zip(got, want, strict=True):
            assert ours.device == there
            assert_same_bytes(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64_activations_are_the_cpus_within_rounding(layout: str, other: Side) -> None:
    on_cpu, there = torch.device("cpu"), other.device
    for shape in shapes_for(layout):
        want = duals(maker(torch.float64, layout, on_cpu), shape, on_cpu)
        got = other(duals, maker(torch.float64, layout, there), shape, there)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-12, atol=1e-13)


def test_many_normals(other: Side) -> None:
    """Enough for the rare words: small and large radii, angles near every quarter turn."""
    rows, columns = 64, 2**20
    for seed in range(2):
        want = fastscore.random.normal(make_key(seed), (rows, columns))
        key = make_key(seed, device=other.device)
        got = other(fastscore.random.normal, key, (rows, columns))
        assert_same_bytes(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nan_and_infinity_in_half_precision(dtype: torch.dtype, other: Side) -> None:
    x, score = randn(5, 70, dtype=dtype, seed=1), randn(5, 70, dtype=dtype, seed=2)
    x[:, ::7], x[:, 3::7], score[:, 4::5] = torch.nan, torch.inf, -torch.inf
    table, key = langevin_table(), make_key(1, 1)
    want = ops.langevin_step(x, score, table, key)
    got = other(ops.langevin_step, *(t.to(other.device) for t in (x, score, table, key)))
    assert_same_bytes(got, want)


# ---- sums over samples -----------------------------------------------------------------------


def compare_sums(
    sums: Callable[..., Results], dtype: torch.dtype, layout: str, shape: Shape, other: Side
) -> None:
    """The CPU's within rounding; the same bytes in every layout and for every part of a batch."""
    on_cpu, there = torch.device("cpu"), other.device
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    make, plain = maker(dtype, layout, there), maker(dtype, "contiguous", there)
    whole = other(sums, make, shape, there, slice(None))
    want = sums(maker(dtype, layout, on_cpu), shape, on_cpu, slice(None))
    for ours, theirs in zip(whole, want, strict=True):
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        size = max(1, randn(*shape).numel() // max(1, shape[0]))
        absolute = tolerance * max(scale, size**0.5)
        torch.testing.assert_close(ours.cpu(), theirs, rtol=10 * tolerance, atol=absolute)
    for ours, again in zip(whole, other(sums, plain, shape, there, slice(None)), strict=True):
        assert_same_bytes(ours, again)
    for first in range(0, min(shape[0], 3)):
        part = slice(first, first + 2)
        for ours, alone in zip(whole, other(sums, make, shape, there, part), strict=True):
            assert_same_bytes(alone, ours[..., part])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sums", [residuals, noisy_residuals, terms, errors])
def test_sums_are_the_cpus_within_rounding_and_split_to_the_byte(
    sums: Callable[..., Results], dtype: torch.dtype, layout: str, other: Side
) -> None:
    for shape in shapes_for(layout):
        compare_sums(sums, dtype, layout, shape, other)


@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_about_one_segment_and_of_several(
    dtype: torch.dtype, layout: str, other: Side
) -> None:
    """Kernels sum a long row in segments of 1024 packs of 16 bytes, and then those, by a launch of
    their own: 4097 elements of float32 are two segments."""
    on_cpu, there = torch.device("cpu"), other.device
    pack = 16 // dtype.itemsize
    segment = 1024 * pack
    for size in (segment, segment + 1, segment + pack, 3 * segment + 1):
        for sums in (residuals, noisy_residuals, terms, errors):
            compare_sums(sums, dtype, layout, (2, size), other)
        for case in (
            residual_gradients,
            gradients_in_advance,
            noisy_gradients,
            projected,
            sliced_gradients,
        ):
            want = case(maker(dtype, layout, on_cpu), (2, size), on_cpu)
            got = other(case, maker(dtype, layout, there), (2, size), there)
            for ours, theirs in zip(got, want, strict=True):
                assert_same_bytes(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_point_of_the_sphere_in_one_dimension_is_one_or_minus_one(
    dtype: torch.dtype, other: Side
) -> None:
    """Where a sample's radius would make a neighbour's v infinite in float16: key and offset of one
    such sample, and enough others for some more."""
    for seed, draw, offset, rows in ((-4216630886547464035, 77, 100, 2500), (0, 0, 0, 100_000)):
        key = make_key(seed, draw, other.device)
        score = torch.ones(rows, dtype=dtype, device=other.device)
        options = {"distribution": "sphere", "sample_offset": offset}
        v = other(ops.projections, key, (rows,), 3, dtype=dtype, **options)
        vjv, half_vs2, half_s2 = other(ops.sliced_terms, score, score.expand(3, -1), key, **options)
        assert bool((v.abs() - 1).abs().max() < 1e-6)
        assert_same_bytes(vjv, v.to(vjv.dtype))
        torch.testing.assert_close(half_vs2, torch.full_like(half_vs2, 0.5))
        torch.testing.assert_close(half_s2, torch.full_like(half_s2, 0.5))


# ---- a chain ---------------------------------------------------------------------------------


def mixture_score(x: Tensor) -> Tensor:
    """Of 1/2 N(m, v I) + 1/2 N(-m, v I), m = (1.5, -0.5), v = 1/4: (m tanh(m'x / v) - x) / v.

    Sums, products and the library's tanh alone: the same bytes on every device.
    """
    logit = 6.0 * x[:, 0] + -2.0 * x[:, 1]
    t = ops.dual(logit, logit.new_empty(0, *logit.shape), "tanh")[0]
    return torch.stack([(t * 1.5 - x[:, 0]) * 4.0, (t * -0.5 - x[:, 1]) * 4.0], dim=1)


def chain(device: torch.device, steps: int) -> Tensor:
    key = make_key(2024, device=device)
    a, b, c = 1.0, 0.005, 0.1
    table = torch.tensor([[a, b, c, 0.0]], dtype=torch.float64, device=device)
    x = fastscore.random.normal(key, (4099, 2), stream=Stream.INIT)
    for _ in range(steps):
        ops.langevin_step_(x, mixture_score(x), table, key)
        key[1].add_(1)
    return x


def test_a_chain_of_a_thousand_steps_gives_the_bytes_of_the_cpu(other: Side) -> None:
    want = chain(torch.device("cpu"), 1000)
    got = other(chain, other.device, 1000)
    assert_same_bytes(got, want)
    assert 0.3 < float((want[:, 0] > 0).float().mean()) < 0.7  # it visits both modes


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 2, 4, 4), (2, 0, 4, 4)])
def test_no_elements(shape: Shape, other: Side) -> None:
    make = maker(torch.float32, "contiguous", other.device)
    for case in ELEMENTWISE.values():
        other(case, make, shape, other.device)
    for sums in (residuals, noisy_residuals, terms, errors):
        found = other(sums, make, shape, other.device, slice(None))
        assert all(bool((t == 0).all()) for t in found)
