"""The fused activations on values and tangents against the reference and float64."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from helpers import (
    DTYPES,
    assert_accurate,
    assert_same_bytes,
    data_bytes,
    max_error,
    ragged_shapes,
    randn,
)
from torch import Tensor

from fastscore import ops, reference

ACTIVATIONS: list[tuple[str, dict[str, Any]]] = [
    ("softplus", {}),
    ("softplus", {"beta": 2.5, "threshold": 3.0}),
    ("silu", {}),
    ("tanh", {}),
    ("sigmoid", {}),
    ("elu", {}),
    ("elu", {"alpha": 0.7}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": -0.3}),
]
activations = pytest.mark.parametrize(("activation", "params"), ACTIVATIONS)
SMOOTH = [(name, params) for name, params in ACTIVATIONS if "relu" not in name]


def value_and_gradient(op: Any, h: Tensor, upstream: Tensor, *args: Any, **params: Any) -> Any:
    """The op's result at h and its gradient for the given upstream gradient."""
    h = h.detach().requires_grad_()
    out = op(h, *args, **params)
    return out.detach(), torch.autograd.grad(out, h, upstream.to(out))[0]


def units(got: Tensor, exact: Tensor) -> float:
    """Largest error in units in the last place of float32."""
    place = torch.exp2(exact.abs().clamp(min=2.0**-126).log2().floor() - 23)
    return float(((got.double() - exact).abs() / place).max())


# ---- values ----------------------------------------------------------------------------------


@activations
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference(
    dtype: torch.dtype, activation: str, params: dict[str, Any], device: torch.device
) -> None:
    for shape in [(), *ragged_shapes()]:
        for tangents in (0, 1, 3):
            h = 3 * randn(1 + tangents, *shape, dtype=torch.float64, seed=1)
            h, upstream = h.to(dtype), randn(1 + tangents, *shape, dtype=dtype, seed=2)
            fused = value_and_gradient(
                ops.dual_stacked, h.to(device), upstream, activation, **params
            )
            eager = value_and_gradient(reference.dual_stacked, h, upstream, activation, **params)
            exact = value_and_gradient(
                reference.dual_stacked, h.double(), upstream, activation, **params
            )
            for got, want, truth in zip(fused, eager, exact, strict=True):
                assert got.dtype == dtype
                assert got.shape == truth.shape
                # Of few elements the largest decides: its rounding is a matter of luck. For
                # float64 the truth is no better than eager: see the test with mpmath.
                unit = 1e-13 if dtype == torch.float64 else torch.finfo(dtype).eps
                luck = unit * max(1.0, float(truth.abs().max() if h.numel() else 0))
                assert max_error(got, truth) <= 2 * max_error(want, truth) + luck


@activations
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_elements_are_accurate(
    dtype: torch.dtype, activation: str, params: dict[str, Any], device: torch.device
) -> None:
    h = (3 * randn(4, 100_003, dtype=torch.float64, seed=1)).to(dtype)
    upstream = randn(4, 100_003, dtype=dtype, seed=2)
    fused = value_and_gradient(ops.dual_stacked, h.to(device), upstream, activation, **params)
    eager = value_and_gradient(reference.dual_stacked, h, upstream, activation, **params)
    exact = value_and_gradient(reference.dual_stacked, h.double(), upstream, activation, **params)
    for got, want, truth in zip(fused, eager, exact, strict=True):
        assert_accurate(got.cpu(), want, truth)


@activations
def test_every_range_is_accurate(
    activation: str, params: dict[str, Any], device: torch.device
) -> None:
    """Value, slope and curvature over dense grids: at most twice PyTorch's own error."""
    for bound in (0.1, 1.0, 3.0, 6.0, 20.0, 100.0):
        x = torch.linspace(-bound, bound, 100_003, dtype=torch.float64).float()
        h = torch.stack([x, torch.ones_like(x)])
        upstream = torch.stack([torch.zeros_like(x), torch.ones_like(x)])
        fused = value_and_gradient(ops.dual_stacked, h.to(device), upstream, activation, **params)
        eager = value_and_gradient(reference.dual_stacked, h, upstream, activation, **params)
        exact = value_and_gradient(
            reference.dual_stacked, h.double(), upstream, activation, **params
        )
        for got, want, truth in zip(fused, eager, exact, strict=True):
            for part in range(2):  # value and slope; curvature and slope
                assert_accurate(got[part].cpu(), want[part], truth[part])


MPMATH = {
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    "gelu": lambda x: x * mpmath.ncdf(x),
}


@pytest.mark.parametrize("activation", MPMATH)
def test_float64_is_accurate(activation: str, device: torch.device) -> None:
    """Value, slope and curvature in float64 against 40 digits."""
    x = torch.linspace(-9, 9, 257, dtype=torch.float64)
    h = torch.stack([x, torch.ones_like(x)])
    upstream = torch.stack([torch.zeros_like(x), torch.ones_like(x)])
    fused = value_and_gradient(ops.dual_stacked, h.to(device), upstream, activation)
    eager = value_and_gradient(reference.dual_stacked, h, upstream, activation)
    with mpmath.workdps(40):
        orders = [mpmath.taylor(MPMATH[activation], mpmath.mpf(v), 2) for v in x.tolist()]
    results = ((fused[0][0], eager[0][0]), (fused[0][1], eager[0][1]), (fused[1][0], eager[1][0]))
    for order, (got, want) in enumerate(results):
        exact = torch.tensor(
            [float(c[order]) * (1, 1, 2)[order] for c in orders], dtype=torch.float64
        )
        allowed = 2 * max_error(want, exact) + torch.finfo(torch.float64).eps
        assert max_error(got, exact) <= allowed


def test_elementary_functions_are_within_three_units(device: torch.device) -> None:
    """Relative accuracy of what the polynomials make, down to the smallest normal numbers."""
    wide = torch.linspace(-80, 80, 400_009, dtype=torch.float64)
    narrow = torch.linspace(-2, 2, 400_009, dtype=torch.float64)
    x = torch.cat([wide, narrow, narrow**5]).float()
    h, exact = x.unsqueeze(0).to(device), x.double()
    results = {
        "tanh": torch.tanh(exact),
        "sigmoid": torch.sigmoid(exact),
        "elu": torch.where(exact > 0, exact, torch.expm1(exact)),
        "softplus": exact.clamp(min=0) + torch.log1p(torch.exp(-exact.abs())),
    }
    for activation, want in results.items():
        got = ops.dual_stacked(
            h, activation, **({"threshold": 1e9} if "plus" in activation else {})
        )
        limit = {"tanh": 1, "elu": 1}.get(activation, 2.75)
        assert units(got[0].cpu(), want) < limit, activation
    slope = ops.dual_stacked(torch.stack([x, torch.ones_like(x)]).to(device), "elu")[1].cpu()
    assert units(slope, torch.exp(exact.clamp(max=0))) < 1.25


@activations
def test_extreme_values(activation: str, params: dict[str, Any], device: torch.device) -> None:
    tiny, huge = 1e-45, 1e30
    x = torch.tensor([0.0, -0.0, tiny, -tiny, 1e-30, -1e-30, 88.0, -88.0, 104.0, -104.0, 150.0])
    x = torch.cat([x, torch.tensor([-150.0, 1e4, -1e4, torch.nan, -torch.nan])])
    h = torch.stack([x, torch.ones_like(x)])
    got = ops.dual_stacked(h.to(device), activation, **params).cpu()
    want = reference.dual_stacked(h.double(), activation, **params)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-38, equal_nan=True)
    if activation != "gelu":  # whose slope is 0 times infinity there
        h = torch.tensor([[huge, -huge], [1.0, 1.0]])
        got = ops.dual_stacked(h.to(device), activation, **params).cpu()
        want = reference.dual_stacked(h.double(), activation, **params)
        torch.testing.assert_close(got.double(), want)


@activations
def test_the_same_as_forward_mode(
    activation: str, params: dict[str, Any], device: torch.device
) -> None:
    h, hdot = randn(4, 33, seed=1).to(device), randn(2, 4, 33, seed=2).to(device)
    value, tangents = ops.dual(h, hdot, activation, **params)
    phi = getattr(torch.nn.functional, activation)
    for tangent, v in zip(tangents, hdot, strict=True):
        want = torch.func.jvp(lambda x: phi(x, **params), (h,), (v,))
        torch.testing.assert_close((value, tangent), want)


@activations
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_layouts_agree(
    dtype: torch.dtype, activation: str, params: dict[str, Any], device: torch.device
) -> None:
    for shape in ((), (5,), (2, 3, 700)):
        for tangents in (0, 1, 4):
            h = randn(1 + tangents, *shape, dtype=dtype).to(device).requires_grad_()
            upstream = randn(1 + tangents, *shape, dtype=dtype, seed=2).to(device)
            stacked = ops.dual_stacked(h, activation, **params)
            value, hdot = ops.dual(h[0], h[1:], activation, **params)
            assert_same_bytes(torch.cat([value.unsqueeze(0), hdot]), stacked)
            (got,) = torch.autograd.grad((value, hdot), h, (upstream[0], upstream[1:]))
            (want,) = torch.autograd.grad(stacked, h, upstream)
            assert torch.equal(got, want)  # the sum of two slices' gradients loses signs of zeros


def test_named_functions(device: torch.device) -> None:
    h, hdot = randn(9, seed=1).to(device), randn(2, 9, seed=2).to(device)
    calls = {
        "softplus": ((2.0, 1.0), {"beta": 2.0, "threshold": 1.0}),
        "silu": ((), {}),
        "tanh": ((), {}),
        "elu": ((0.5,), {"alpha": 0.5}),
        "gelu": (("tanh",), {"approximate": "tanh"}),
        "relu": ((), {}),
        "leaky_relu": ((0.2,), {"negative_slope": 0.2}),
        "sigmoid": ((), {}),
    }
    for name, (args, params) in calls.items():
        got = getattr(ops, f"dual_{name}")(h, hdot, *args)
        for a, b in zip(got, ops.dual(h, hdot, name, **params), strict=True):
            assert_same_bytes(a, b)
        assert hasattr(reference, f"dual_{name}")


# ---- memory ----------------------------------------------------------------------------------


def laid_out(x: Tensor, layout: str) -> Tensor:
    """(1 + M, B, C, H, W) that lies in memory another way."""
    if layout == "slices channels_last":
        return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    if layout == "tangents last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "misaligned":
        return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    if layout == "every other":
        return x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    assert layout == "every other slice"
    return x.new_zeros(2 * x.shape[0], *x.shape[1:])[::2].copy_(x)


LAYOUTS = (
    "slices channels_last",
    "tangents last",
    "misaligned",
    "every other",
    "every other slice",
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_memory_layout(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    for shape in ((3, 2, 5, 4, 7), (2, 3, 16, 16, 16), (1, 2, 3, 1, 1), (4, 1, 1, 1, 1)):
        plain = randn(*shape, dtype=dtype, seed=1).to(device)
        upstream = randn(*shape, dtype=dtype, seed=2).to(device)
        want = value_and_gradient(ops.dual_stacked, plain, upstream, "silu")
        h = laid_out(plain, layout)
        for up in (upstream, laid_out(upstream, layout)):
            got = value_and_gradient(ops.dual_stacked, h, up, "silu")
            for a, b in zip(got, want, strict=True):
                assert_same_bytes(a, b)
        value, hdot = ops.dual(h[0], h[1:], "silu")
        assert_same_bytes(torch.cat([value.unsqueeze(0), hdot]), want[0])
        mixed = ops.dual(plain[0], h[1:], "silu")[1]
        assert_same_bytes(mixed, want[0][1:])


def test_channels_last_is_kept(device: torch.device) -> None:
    h = laid_out(randn(3, 2, 5, 4, 7).to(device), "slices channels_last").requires_grad_()
    out = ops.dual_stacked(h, "tanh")
    (grad,) = torch.autograd.grad(out, h, torch.ones_like(out))
    assert out.stride() == grad.stride() == h.stride()


def test_expanded_inputs(device: torch.device) -> None:
    row = randn(1, 1, 33).to(device)
    h = row.expand(3, 4, 33)
    want = value_and_gradient(ops.dual_stacked, h.contiguous(), torch.ones(3, 4, 33), "gelu")
    got = value_and_gradient(ops.dual_stacked, h, torch.ones(1, 1, 1).expand(3, 4, 33), "gelu")
    for a, b in zip(got, want, strict=True):
        assert_same_bytes(a, b)


def test_inputs_are_left_alone(device: torch.device) -> None:
    h, hdot = randn(6, 33).to(device).requires_grad_(), randn(2, 6, 33).to(device)
    before = [data_bytes(x) for x in (h, hdot)]
    for name, params in ACTIVATIONS:
        value, tangents = ops.dual(h, hdot, name, **params)
        (value.sum() + tangents.sum()).backward()
    assert [data_bytes(x) for x in (h, hdot)] == before


# ---- what PyTorch must know ------------------------------------------------------------------


@activations
def test_gradcheck(activation: str, params: dict[str, Any], device: torch.device) -> None:
    h = randn(3, 4, dtype=torch.float64).to(device).requires_grad_()
    hdot = randn(2, 3, 4, dtype=torch.float64, seed=1).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: ops.dual_stacked(h, activation, **params), h)
    assert torch.autograd.gradcheck(lambda h, t: ops.dual(h, t, activation, **params), (h, hdot))


def test_one_unused_output(device: torch.device) -> None:
    h, hdot = (x.to(device).requires_grad_() for x in (randn(5), randn(2, 5, seed=1)))
    value, tangents = ops.dual(h, hdot, "silu")
    only_value = torch.autograd.grad(value.sum(), (h, hdot), retain_graph=True)
    assert not only_value[1].any()
    torch.testing.assert_close(only_value[0], ops.dual(h, torch.ones_like(h)[None], "silu")[1][0])
    only_tangents = torch.autograd.grad(tangents.sum(), (h, hdot))
    plain = [x.detach().requires_grad_() for x in (h, hdot)]
    want = torch.autograd.grad(reference.dual(*plain, "silu")[1].sum(), plain)
    torch.testing.assert_close(only_tangents, want)


def test_a_second_derivative_is_refused(device: torch.device) -> None:
    h = randn(3, 4).to(device).requires_grad_()
    for name, call in (
        ("dual_stacked", lambda: ops.dual_stacked(h, "silu")),
        ("dual", lambda: ops.dual(h, h[None], "silu")[1]),
    ):
        (grad,) = torch.autograd.grad(call().sum(), h, create_graph=True)
        with pytest.raises(NotImplementedError, match=f"^{name}: .*fastscore.reference.{name}"):
            grad.sum().backward()


def test_opcheck(device: torch.device) -> None:
    op = torch.ops.fastscore
    for shape in ((4, 5), (0, 3)):
        h, hdot = randn(*shape).to(device), randn(2, *shape, seed=1).to(device)
        numbers = (0, 1.0, 20.0)
        torch.library.opcheck(op.dual.default, (h, hdot, *numbers))
        torch.library.opcheck(op.dual_backward.default, (h, hdot, h, hdot, *numbers))
        torch.library.opcheck(op.dual_stacked.default, (hdot, *numbers))
        torch.library.opcheck(op.dual_stacked_backward.default, (hdot, hdot, *numbers))


def test_compile_fullgraph(device: torch.device) -> None:
    def train_step(x: Tensor, weight: Tensor) -> Tensor:
        value, tangents = ops.dual(x[0] @ weight, x[1:] @ weight, "tanh")
        both = torch.cat([value.unsqueeze(0), tangents])
        return ops.dual_stacked(both @ weight, "gelu", approximate="tanh").square().mean()

    compiled = torch.compile(train_step, fullgraph=True, backend="aot_eager")
    x, weight = randn(3, 4, 9).to(device), randn(9, 9, seed=1).to(device).requires_grad_()
    got, want = compiled(x, weight), train_step(x, weight)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, weight), torch.autograd.grad(want, weight))


@pytest.mark.filterwarnings("error")
def test_vmap_and_grad(device: torch.device) -> None:
    batch = randn(6, 3, 5).to(device)  # six stacks of a value and two tangents

    def loss(h: Tensor) -> Tensor:
        return ops.dual_stacked(h, "silu").square().sum()

    def loss_apart(h: Tensor, hdot: Tensor) -> Tensor:
        value, tangents = ops.dual(h, hdot, "silu")
        return value.square().sum() + tangents.square().sum()

    values = torch.func.vmap(lambda h: ops.dual_stacked(h, "silu"))(batch)
    assert_same_bytes(values, torch.stack([ops.dual_stacked(h, "silu") for h in batch]))
    grads = torch.func.vmap(torch.func.grad(loss))(batch)
    assert_same_bytes(grads, torch.stack([torch.func.grad(loss)(h) for h in batch]))
    apart = torch.func.vmap(torch.func.grad(loss_apart))(batch[:, 0], batch[:, 1:])
    assert_same_bytes(apart, grads[:, 0])
    shared = torch.func.vmap(torch.func.grad(loss_apart), (None, 0))(batch[0, 0], batch[:, 1:])
    want = [torch.func.grad(loss_apart)(batch[0, 0], h[1:]) for h in batch]
    assert_same_bytes(shared, torch.stack(want))


# ---- bad input -------------------------------------------------------------------------------

BAD_ACTIVATIONS: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"activation": "swish"}, ValueError, "activation must be"),
    ({"activation": 3}, TypeError, "activation must be"),
    ({"activation": ["silu"]}, TypeError, "activation must be"),
    ({"beta": 2.0}, ValueError, "parameter of 'silu' must be"),
    ({"activation": "softplus", "beta": 0.0}, ValueError, "beta must be"),
    ({"activation": "softplus", "beta": "1"}, TypeError, "beta must be"),
    ({"activation": "softplus", "alpha": 1.0}, ValueError, "parameter of 'softplus' must be"),
    ({"activation": "gelu", "approximate": "erf"}, ValueError, "approximate must be"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *BAD_ACTIVATIONS,
        ({"h": [1.0]}, TypeError, "h must be"),
        ({"h": torch.zeros(3, dtype=torch.int64)}, ValueError, "h must be"),
        ({"h": torch.zeros(3, dtype=torch.complex64)}, ValueError, "h must be"),
        ({"hdot": 1.0}, TypeError, "hdot must be"),
        ({"hdot": torch.zeros(3)}, ValueError, "hdot must be"),
        ({"hdot": torch.zeros(2, 4)}, ValueError, "hdot must be"),
        ({"hdot": torch.zeros(2, 3, dtype=torch.float64)}, ValueError, "hdot must be"),
        ({"hdot": torch.zeros(2, 3, device="meta")}, ValueError, "hdot must be"),
    ],
)
def test_bad_dual(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"h": torch.zeros(3), "hdot": torch.zeros(2, 3), "activation": "silu"}
    with pytest.raises(error, match=f"^dual: {message}"):
        ops.dual(**(good | change))
    ops.dual(**good)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *BAD_ACTIVATIONS,
        ({"h": [1.0]}, TypeError, "h must be"),
        ({"h": torch.zeros(())}, ValueError, "h must be"),
        ({"h": torch.zeros(0, 3)}, ValueError, "h must be"),
        ({"h": torch.zeros(2, 3, dtype=torch.int32)}, ValueError, "h must be"),
    ],
)
def test_bad_dual_stacked(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"h": torch.zeros(2, 3), "activation": "silu"}
    with pytest.raises(error, match=f"^dual_stacked: {message}"):
        ops.dual_stacked(**(good | change))
    ops.dual_stacked(**good)
