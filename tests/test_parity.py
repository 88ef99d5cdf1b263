"""The same bytes from the CUDA kernels as from the CPU's, for every op, layout and precision.

``other`` is where they run: emulated on this machine, or on a device. Sums over samples
(``dsm_residual``, ``sliced_terms``) have an order of their own on each device: they are compared
within rounding, and to the byte between splits of the batch and between layouts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from byte_cases import dsm_tables, langevin_table
from emulator.plugin import Side
from helpers import (
    DTYPES,
    LAYOUTS,
    assert_same_bytes,
    make_key,
    ragged_shapes,
    randn,
    with_layout,
)
from torch import Tensor

import fastscore
from fastscore import ops
from fastscore.random import Stream

Shape = tuple[int, ...]
Results = tuple[Tensor, ...]
Make = Callable[..., Tensor]  # Make(*shape, seed=): data of one dtype, layout and device
Case = Callable[[Make, Shape, torch.device], Results]

ACTIVATIONS = (
    "softplus", "silu", "tanh", "sigmoid", "elu", "gelu", "gelu_tanh", "relu", "leaky_relu",
)  # fmt: skip
DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")
# Samples of 1, 2, 8, ... elements and of several segments of the kernels that sum them, and whole
# tiles.
SHAPES = [*ragged_shapes(), (4, 8), (16, 4), (3, 1025), (2, 4, 4, 8), (2, 16_384), (2, 40_001)]
LONG_BATCH = (70_001, 2)


def maker(dtype: torch.dtype, layout: str, device: torch.device) -> Make:
    """Data that is equal on all devices, laid out alike."""

    def make(*shape: int, seed: int) -> Tensor:
        x = randn(*shape, dtype=dtype, seed=seed).to(device)
        return with_layout(x, layout)

    return make


def shapes_for(layout: str) -> list[Shape]:
    if layout == "contiguous":
        return [*SHAPES, LONG_BATCH]
    return [shape for shape in SHAPES if layout != "channels_last" or len(shape) == 4]


# ---- elementwise ops -------------------------------------------------------------------------


def fills(make: Make, shape: Shape, device: torch.device) -> Results:
    key = make_key(0x0123456789ABCDEF, 3, device)
    return tuple(
        fill(make(*shape, seed=0), key, stream=Stream.USER, sample_offset=offset)
        for fill in (ops.normal_, ops.uniform_, ops.rademacher_)
        for offset in (0, 13, 2**33)
    )


def steps(make: Make, shape: Shape, device: torch.device) -> Results:
    key, table = make_key(77, 1, device), langevin_table().to(device)
    each = torch.stack([langevin_table(max(shape[0], 1), seed=i)[: shape[0]] for i in (3, 4)])
    each[:, ::2, 2] = 0
    each, quiet = each.to(device), table * torch.tensor([1, 1, 0, 0], device=device)
    x, score, known = (make(*shape, seed=seed) for seed in (2, 3, 4))
    held = {"known": known, "mask": known > 0.3}
    step = ops.langevin_step
    return (
        step(x, score, table, key, sample_offset=5),
        step(x, score, table, key, **held, clamp=(-1.5, 1.25)),
        step(x, score, each, key, sample_offset=3),
        step(x, score, each, key, **held, clamp=(None, 0.5)),
        step(x, score, quiet, key, sample_offset=1),
        ops.langevin_step_(x.clone(), score, table, key),
    )


def steps_in_float32(make: Make, shape: Shape, device: torch.device) -> Results:
    """A state that a sampler keeps in float32 while the network's scores are narrower."""
    score = make(*shape, seed=3)
    x = randn(*shape, seed=2).to(device)
    if score.dtype == torch.float64:
        x = x.double()
    return (ops.langevin_step_(x, score, langevin_table().to(device), make_key(78, 2, device)),)


def perturbed(make: Make, shape: Shape, device: torch.device) -> Results:
    table, x = dsm_tables()[0].to(device), make(*shape, seed=5)
    labels = torch.arange(shape[0], device=device) % len(table)
    key = make_key(-3, 9, device)
    drawn = ops.perturb(x, table, key, sample_offset=2)
    return (*drawn, ops.perturb(x, table, key, labels=labels)[0])


def residual_gradients(make: Make, shape: Shape, device: torch.device) -> Results:
    table, output = dsm_tables()[1].to(device), make(*shape, seed=6).requires_grad_()
    labels = torch.arange(shape[0], device=device) % len(table)
    loss = ops.dsm_residual(output, table, labels, make_key(8, 9, device), sample_offset=1)
    weights = torch.linspace(0.5, 1.5, shape[0], dtype=loss.dtype).to(device)
    return torch.autograd.grad(loss, output, weights)


def gradients_in_advance(make: Make, shape: Shape, device: torch.device) -> Results:
    """Made with the loss for an upstream gradient of 1/4, then for the true one."""
    table, output = dsm_tables()[1].to(device), make(*shape, seed=6)
    labels = torch.arange(shape[0], device=device) % len(table)
    args, raw = (output, table, labels, make_key(8, 9, device), 1), torch.ops.fastscore
    quarter = torch.full((shape[0],), 0.25, dtype=torch.float64, device=device)
    some, wide = quarter.clone(), quarter.new_zeros(2 * shape[0])
    some[::3], wide[::2] = 1.5, quarter
    found: list[Tensor] = []
    for upstream in (quarter, some.float(), wide[::2], quarter[:1].expand(shape[0]), 2 * quarter):
        _, grad = raw.dsm_residual_with_grad(*args, 0.25)
        found.append(grad.clone())
        raw.dsm_residual_regrad_(grad, upstream, 0.25, *args)
        assert_same_bytes(grad, raw.dsm_residual_backward(upstream, *args))
        found.append(grad)
    return tuple(found)


def projected(make: Make, shape: Shape, device: torch.device) -> Results:
    dtype = make(1, 1, 1, 1, seed=0).dtype
    return tuple(
        ops.projections(
            make_key(4, 5, device), shape, 3, distribution=d, dtype=dtype, sample_offset=7
        )
        for d in DISTRIBUTIONS
    )


def sliced_gradients(make: Make, shape: Shape, device: torch.device) -> Results:
    found: list[Tensor] = []
    for count in (1, 3):
        for distribution in DISTRIBUTIONS:
            s = make(*shape, seed=7)
            s.mul_(s > 0)  # zeros of both signs, as the score of an image has them
            s.requires_grad_()
            jvp = torch.stack([make(*shape, seed=8 + m) for m in range(count)]).requires_grad_()
            terms = ops.sliced_terms(s, jvp, make_key(4, 5, device), distribution=distribution)
            upstream = [randn(*t.shape, seed=11).to(t) for t in terms]
            # Through v'Jv and |s|^2/2 alone: (v's)^2/2 hands v's on, which is a sum.
            found += torch.autograd.grad((terms[0], terms[2]), (s, jvp), upstream[::2])
    return tuple(found)


def duals(make: Make, shape: Shape, device: torch.device) -> Results:
    found: list[Tensor] = []
    for activation in ACTIVATIONS:
        name, params = activation, {}
        if activation == "gelu_tanh":
            name, params = "gelu", {"approximate": "tanh"}
        stack = torch.stack([3 * make(*shape, seed=m) for m in range(4)]).requires_grad_()
        h = make(*shape, seed=5).requires_grad_()
        hdot = torch.stack([make(*shape, seed=6)]).requires_grad_()
        outputs = (ops.dual_stacked(stack, name, **params), *ops.dual(h, hdot, name, **params))
        found += (output.detach() for output in outputs)
        upstream = [randn(*t.shape, seed=9).to(t) for t in outputs]
        found += torch.autograd.grad(outputs, (stack, h, hdot), upstream)
        both = ops.dual_slope(h, name, **params)
        found += (t.detach() for t in both)
        found += torch.autograd.grad(both, h, upstream[1:2] * 2)
    return tuple(found)


ELEMENTWISE: dict[str, Case] = {
    "fills": fills,
    "steps": steps,
    "steps_in_float32": steps_in_float32,
    "perturbed": perturbed,
    "residual_gradients": residual_gradients,
    "gradients_in_advance": gradients_in_advance,
    "projected": projected,
    "sliced_gradients": sliced_gradients,
    "duals": duals,
}


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


def test_float64_activations_are_the_cpus_within_rounding(other: Side) -> None:
    on_cpu, there = torch.device("cpu"), other.device
    for shape in SHAPES:
        want = duals(maker(torch.float64, "contiguous", on_cpu), shape, on_cpu)
        got = other(duals, maker(torch.float64, "contiguous", there), shape, there)
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


def residuals(make: Make, shape: Shape, device: torch.device, part: slice) -> Results:
    table, output = dsm_tables()[1].to(device), make(*shape, seed=6)[part]
    labels = (torch.arange(shape[0], device=device) % len(table))[part]
    args = (output, table, labels, make_key(8, 9, device), part.start or 0)
    loss = torch.ops.fastscore.dsm_residual(*args)
    assert_same_bytes(torch.ops.fastscore.dsm_residual_with_grad(*args, 0.25)[0], loss)
    return (loss,)


def terms(make: Make, shape: Shape, device: torch.device, part: slice) -> Results:
    found: list[Tensor] = []
    for count in (1, 2):
        for distribution in DISTRIBUTIONS:
            s = make(*shape, seed=7)[part]
            jvp = torch.stack([make(*shape, seed=8 + m) for m in range(count)])[:, part]
            options = {"distribution": distribution, "sample_offset": part.start or 0}
            found += ops.sliced_terms(s, jvp, make_key(4, 5, device), **options)
    return tuple(found)


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
@pytest.mark.parametrize("sums", [residuals, terms])
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
        for sums in (residuals, terms):
            compare_sums(sums, dtype, layout, (2, size), other)
        for case in (residual_gradients, gradients_in_advance, projected, sliced_gradients):
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
    for sums in (residuals, terms):
        found = other(sums, make, shape, other.device, slice(None))
        assert all(bool((t == 0).all()) for t in found)
