"""The activations' slopes: ``dual`` along ones, without the ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import DTYPES, assert_same_bytes, ragged_shapes, randn
from test_dual import BAD_ACTIVATIONS, LAYOUTS, activations, laid_out
from torch import Tensor

from fastscore import ops, reference

Pair = tuple[Tensor, Tensor]


def gradient(outputs: Pair, h: Tensor, upstream: Pair) -> Tensor:
    return torch.autograd.grad(outputs, h, upstream)[0]


@activations
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_as_dual_along_ones(
    dtype: torch.dtype, activation: str, params: dict[str, Any], device: torch.device
) -> None:
    for shape in [(), *ragged_shapes()]:
        h = (3 * randn(*shape, dtype=torch.float64)).to(device, dtype).requires_grad_()
        upstream = tuple(randn(*shape, dtype=dtype, seed=s).to(device) for s in (1, 2))
        got = ops.dual_slope(h, activation, **params)
        value, tangents = ops.dual(h, torch.ones_like(h)[None], activation, **params)
        for a, b in zip(got, (value, tangents[0]), strict=True):
            assert_same_bytes(a, b)
        want = gradient((value, tangents), h, (upstream[0], upstream[1][None]))
        assert torch.equal(gradient(got, h, upstream), want)  # but for the signs of zeros


@activations
def test_matches_the_reference(
    activation: str, params: dict[str, Any], device: torch.device
) -> None:
    h = (3 * randn(7, 1301)).to(device).requires_grad_()
    upstream = randn(7, 1301, seed=1).to(device), randn(7, 1301, seed=2).to(device)
    got = ops.dual_slope(h, activation, **params)
    want = reference.dual_slope(h, activation, **params)
    torch.testing.assert_close(got, want)
    if "relu" not in activation:  # whose slope is constant
        torch.testing.assert_close(gradient(got, h, upstream), gradient(want, h, upstream))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_memory_layout(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    for shape in ((3, 2, 5, 4, 7), (2, 3, 16, 16, 16), (4, 1, 1, 1, 1)):
        plain = randn(*shape, dtype=dtype).to(device).requires_grad_()
        upstream = tuple(randn(*shape, dtype=dtype, seed=s).to(device) for s in (1, 2))
        want = ops.dual_slope(plain, "silu")
        h = laid_out(plain.detach(), layout).requires_grad_()
        got = ops.dual_slope(h, "silu")
        for a, b in zip(got, want, strict=True):
            assert_same_bytes(a, b)
        want_gradient = gradient(want, plain, upstream)
        for ups in (upstream, tuple(laid_out(up, layout) for up in upstream)):
            outputs = ops.dual_slope(h, "silu")
            assert_same_bytes(gradient(outputs, h, ups), want_gradient)


def test_channels_last_is_kept(device: torch.device) -> None:
    h = randn(2, 5, 4, 7).to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    value, slope = ops.dual_slope(h, "tanh")
    (grad,) = torch.autograd.grad(value.sum() + slope.sum(), h)
    assert value.stride() == slope.stride() == grad.stride() == h.stride()


@activations
def test_gradcheck(activation: str, params: dict[str, Any], device: torch.device) -> None:
    h = randn(3, 4, dtype=torch.float64).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: ops.dual_slope(h, activation, **params), h)


def test_one_unused_output(device: torch.device) -> None:
    h = randn(5).to(device).requires_grad_()
    (of_value,) = torch.autograd.grad(ops.dual_slope(h, "silu")[0].sum(), h)
    torch.testing.assert_close(of_value, reference.dual_slope(h, "silu")[1])
    (of_slope,) = torch.autograd.grad(ops.dual_slope(h, "silu")[1].sum(), h)
    (want,) = torch.autograd.grad(reference.dual_slope(h, "silu")[1].sum(), h)
    torch.testing.assert_close(of_slope, want)


def test_a_second_derivative_is_refused(device: torch.device) -> None:
    h = randn(3, 4).to(device).requires_grad_()
    (grad,) = torch.autograd.grad(ops.dual_slope(h, "silu")[1].sum(), h, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"^dual_slope: .*fastscore.reference.dual_slope"):
        grad.sum().backward()


def test_opcheck_compile_and_vmap(device: torch.device) -> None:
    op, numbers = torch.ops.fastscore, (0, 1.0, 20.0)
    for shape in ((4, 5), (0, 3)):
        h = randn(*shape).to(device)
        torch.library.opcheck(op.dual_slope.default, (h, *numbers))
        torch.library.opcheck(op.dual_slope_backward.default, (h, h, h, *numbers))

    def loss(h: Tensor) -> Tensor:
        value, slope = ops.dual_slope(h, "tanh")
        return (value * slope).sum()

    batch = randn(6, 5).to(device).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(batch), batch)
    (want,) = torch.autograd.grad(loss(batch), batch)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *BAD_ACTIVATIONS,
        ({"h": [1.0]}, TypeError, "h must be"),
        ({"h": torch.zeros(3, dtype=torch.int64)}, ValueError, "h must be"),
    ],
)
def test_bad_dual_slope(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"h": torch.zeros(3), "activation": "silu"}
    for dual_slope in (ops.dual_slope, reference.dual_slope):
        with pytest.raises(error, match=f"^dual_slope: {message}"):
            dual_slope(**(good | change))
        dual_slope(**good)


def test_a_constant_slope_has_no_gradient(device: torch.device) -> None:
    """Not even one of 0 times infinity."""
    h = torch.tensor([1.0, -1.0], device=device, requires_grad=True)
    upstream = torch.ones(2, device=device), torch.full((2,), torch.inf, device=device)
    for activation, slopes in (("relu", [1.0, 0.0]), ("leaky_relu", [1.0, 0.01])):
        got = gradient(ops.dual_slope(h, activation), h, upstream)
        torch.testing.assert_close(got.cpu(), torch.tensor(slopes))
