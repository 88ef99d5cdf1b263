"""The family ``dual``: an activation's value and any number of tangents in one pass.

    forward    (h, t_1 .. t_M) -> (phi(h), phi'(h) t_1 .. phi'(h) t_M)
    backward   g_h = g_0 phi'(h) + phi''(h) sum_m g_m t_m,  g_(t_m) = g_m phi'(h)

Least traffic: each tensor is read or written once, forward and backward.

Two layouts: :func:`dual` takes the value and the tangents apart, :func:`dual_stacked` as one tensor
whose slice 0 is the value, so that linear layers run once on everything. :func:`dual_slope` gives
the slope phi'(h) itself, for traces in closed form. Forward-mode differentiation: Wengert 1964, "A
simple automatic derivative evaluation program".

In float32 and half precision all instruction sets and devices give the same bytes, but for the bits
of a float32 NaN on a GPU. float64 uses the mathematics library, whose last bit may differ between
platforms.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from fastscore._support.checks import check_tensor
from fastscore.ops._library import Differentiable, check_same_device, ops
from fastscore.reference.duals import ACTIVATIONS, check_params

# In the order of csrc/core/activations.h.
_NUMBERS = {
    "softplus": 0,
    "silu": 1,
    "tanh": 2,
    "sigmoid": 3,
    "elu": 4,
    "gelu": 5,
    "gelu_tanh": 6,
    "relu": 7,
    "leaky_relu": 8,
}
Numbers = tuple[int, float, float]


def _numbers_of(activation: str, params: dict[str, Any]) -> Numbers:
    """The activation as the kernels know it: its number and up to two parameters."""
    if activation == "gelu":
        tanh_form = params["approximate"] == "tanh"
        return _NUMBERS["gelu_tanh" if tanh_form else "gelu"], 0.0, 0.0
    a, b, *_ = (*map(float, params.values()), 0.0, 0.0)
    return _NUMBERS[activation], a, b


_DEFAULTS = {name: _numbers_of(name, params) for name, (_, params) in ACTIVATIONS.items()}


def _checked(fn: str, activation: str, params: dict[str, Any]) -> Numbers:
    if not params and isinstance(activation, str) and activation in _DEFAULTS:
        return _DEFAULTS[activation]
    return _numbers_of(activation, check_params(fn, activation, params))


def dual(h: Tensor, hdot: Tensor, activation: str, **params: Any) -> tuple[Tensor, Tensor]:
    """``phi(h)`` and ``phi'(h) * hdot`` for the activation's phi.

    Args:
        h: any shape and strides; float32, float64, bfloat16 or float16.
        hdot: tangents ``(M, *h.shape)``, of h's dtype and device; M may be 0.
        activation: ``"softplus"`` (``beta``, ``threshold``), ``"silu"``, ``"tanh"``, ``"elu"``
            (``alpha``), ``"gelu"`` (``approximate="none"|"tanh"``), ``"relu"``, ``"leaky_relu"``
            (``negative_slope``) or ``"sigmoid"``.
        params: the activation's parameters, named as in ``torch.nn.functional``.

    Returns:
        The value, of h's shape, and the tangents, of hdot's shape. Differentiable once: a second
        derivative is refused (:func:`fastscore.reference.dual` has all).

    Raises:
        ValueError: unknown activation or parameter, or shapes, dtypes or devices that differ.
        TypeError: an argument that is not a tensor.

    >>> h, hdot = torch.tensor([-1.0, 2.0]), torch.tensor([[1.0, 1.0], [3.0, 4.0]])
    >>> value, tangents = dual(h, hdot, "leaky_relu", negative_slope=0.5)
    >>> value.tolist(), tangents.tolist()
    ([-0.5, 2.0], [[0.5, 1.0], [1.5, 4.0]])
    """
    return _Dual.run("dual", h, hdot, *_checked("dual", activation, params))


def dual_slope(h: Tensor, activation: str, **params: Any) -> tuple[Tensor, Tensor]:
    """``phi(h)`` and ``phi'(h)``: :func:`dual` along ones, which are never stored.

    Args:
        h, activation, params: as for :func:`dual`.

    Returns:
        The value and the slope, of h's shape and dtype. Differentiable once, as :func:`dual`.

    Raises:
        ValueError: unknown activation or parameter, or a dtype that is not floating.
        TypeError: h is not a tensor.

    >>> value, slope = dual_slope(torch.tensor([-1.0, 2.0]), "leaky_relu", negative_slope=0.5)
    >>> value.tolist(), slope.tolist()
    ([-0.5, 2.0], [0.5, 1.0])
    """
    check_tensor("dual_slope", "h", h)
    return _DualSlope.run("dual_slope", h, *_checked("dual_slope", activation, params))


def dual_stacked(h: Tensor, activation: str, **params: Any) -> Tensor:
    """``[phi(h_0), phi'(h_0) h_1, ..., phi'(h_0) h_M]`` for a stacked value and its tangents.

    Args:
        h: ``(1 + M, ...)``: the value, then the M tangents (M may be 0); any strides.
        activation, params: as for :func:`dual`.

    Returns:
        A tensor of h's shape and dtype. Differentiable once, as :func:`dual`.

    Raises:
        ValueError: unknown activation or parameter, or no slice 0.
        TypeError: h is not a tensor.

    >>> dual_stacked(torch.tensor([[-1.0, 2.0], [3.0, 4.0]]), "relu").tolist()
    [[0.0, 2.0], [0.0, 4.0]]
    """
    check_tensor("dual_stacked", "h", h)
    return _DualStacked.run("dual_stacked", h, *_checked("dual_stacked", activation, params))


def dual_softplus(
    h: Tensor, hdot: Tensor, beta: float = 1.0, threshold: float = 20.0
) -> tuple[Tensor, Tensor]:
    """:func:`dual` of softplus, ``log(1 + exp(beta h)) / beta``; linear above the threshold."""
    return dual(h, hdot, "softplus", beta=beta, threshold=threshold)


def dual_silu(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`dual` of SiLU, ``h sigmoid(h)``."""
    return dual(h, hdot, "silu")


def dual_tanh(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`dual` of tanh."""
    return dual(h, hdot, "tanh")


def dual_elu(h: Tensor, hdot: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """:func:`dual` of ELU, ``h`` above 0 and ``alpha (exp(h) - 1)`` below."""
    return dual(h, hdot, "elu", alpha=alpha)


def dual_gelu(h: Tensor, hdot: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor]:
    """:func:`dual` of GELU, exact (``"none"``) or in its tanh form (``"tanh"``)."""
    return dual(h, hdot, "gelu", approximate=approximate)


def dual_relu(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`dual` of ReLU; the slope at 0 is 0."""
    return dual(h, hdot, "relu")


def dual_leaky_relu(h: Tensor, hdot: Tensor, negative_slope: float = 0.01) -> tuple[Tensor, Tensor]:
    """:func:`dual` of leaky ReLU; the slope at 0 is ``negative_slope``."""
    return dual(h, hdot, "leaky_relu", negative_slope=negative_slope)


def dual_sigmoid(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`dual` of the logistic sigmoid."""
    return dual(h, hdot, "sigmoid")


# ---- what PyTorch must know ------------------------------------------------------------------


@torch.library.register_fake("fastscore::dual")
def _(h, hdot, activation, a, b):
    check_same_device("dual", h, hdot=hdot)
    return torch.empty_like(h), torch.empty_like(hdot)


@torch.library.register_fake("fastscore::dual_backward")
def _(grad_value, grad_tangents, h, hdot, activation, a, b):
    check_same_device(
        "dual_backward", h, grad_value=grad_value, grad_tangents=grad_tangents, hdot=hdot
    )
    return torch.empty_like(h), torch.empty_like(hdot)


@torch.library.register_fake("fastscore::dual_slope")
def _(h, activation, a, b):
    return torch.empty_like(h), torch.empty_like(h)


@torch.library.register_fake("fastscore::dual_slope_backward")
def _(grad_value, grad_slope, h, activation, a, b) -> Tensor:
    check_same_device("dual_slope_backward", h, grad_value=grad_value, grad_slope=grad_slope)
    return torch.empty_like(h)


@torch.library.register_fake("fastscore::dual_stacked")
def _(h, activation, a, b) -> Tensor:
    return torch.empty_like(h)


@torch.library.register_fake("fastscore::dual_stacked_backward")
def _(grad, h, activation, a, b) -> Tensor:
    check_same_device("dual_stacked_backward", h, grad=grad)
    return torch.empty_like(h)


def _batched(info: Any, x: Tensor, dim: int | None, to: int) -> Tensor:
    """``x`` with vmap's dimension at ``to``; given one when it has none."""
    if dim is not None:
        return x.movedim(dim, to)
    return x.unsqueeze(to).expand(*x.shape[:to], info.batch_size, *x.shape[to:])


@torch.library.register_vmap("fastscore::dual")
def _(info, in_dims, h, hdot, activation, a, b):
    h, hdot = _batched(info, h, in_dims[0], 0), _batched(info, hdot, in_dims[1], 1)
    return ops.dual.default(h, hdot, activation, a, b), (0, 1)


@torch.library.register_vmap("fastscore::dual_backward")
def _(info, in_dims, grad_value, grad_tangents, h, hdot, activation, a, b):
    grad_value, h = (
        _batched(info, x, dim, 0) for x, dim in ((grad_value, in_dims[0]), (h, in_dims[2]))
    )
    grad_tangents, hdot = (
        _batched(info, x, dim, 1) for x, dim in ((grad_tangents, in_dims[1]), (hdot, in_dims[3]))
    )
    return ops.dual_backward.default(grad_value, grad_tangents, h, hdot, activation, a, b), (0, 1)


@torch.library.register_vmap("fastscore::dual_slope")
def _(info, in_dims, h, activation, a, b):
    return ops.dual_slope.default(_batched(info, h, in_dims[0], 0), activation, a, b), (0, 0)


@torch.library.register_vmap("fastscore::dual_slope_backward")
def _(info, in_dims, grad_value, grad_slope, h, activation, a, b):
    tensors = zip((grad_value, grad_slope, h), in_dims, strict=False)
    grad_value, grad_slope, h = (_batched(info, x, dim, 0) for x, dim in tensors)
    return ops.dual_slope_backward.default(grad_value, grad_slope, h, activation, a, b), 0


@torch.library.register_vmap("fastscore::dual_stacked")
def _(info, in_dims, h, activation, a, b):
    return ops.dual_stacked.default(_batched(info, h, in_dims[0], 1), activation, a, b), 1


@torch.library.register_vmap("fastscore::dual_stacked_backward")
def _(info, in_dims, grad, h, activation, a, b):
    grad, h = (_batched(info, x, dim, 1) for x, dim in zip((grad, h), in_dims, strict=False))
    return ops.dual_stacked_backward.default(grad, h, activation, a, b), 1


def _refuse_second_derivative(fn: str) -> NoReturn:
    raise NotImplementedError(
        f"{fn}: the fused activations have one derivative, and a second was asked for; "
        f"fastscore.reference.{fn} has all of them"
    )


class _Dual(Differentiable):
    @staticmethod
    def forward(h, hdot, activation, a, b):
        return ops.dual.default(h, hdot, activation, a, b)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        h, hdot, *ctx.numbers = inputs
        ctx.save_for_backward(h, hdot)

    @staticmethod
    def backward(ctx, grad_value, grad_tangents):
        h, hdot = ctx.saved_tensors
        grads = _DualBackward.run("dual_backward", grad_value, grad_tangents, h, hdot, *ctx.numbers)
        return *grads, None, None, None


class _DualBackward(Differentiable):
    @staticmethod
    def forward(grad_value, grad_tangents, h, hdot, activation, a, b):
        return ops.dual_backward.default(grad_value, grad_tangents, h, hdot, activation, a, b)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        return None

    @staticmethod
    def backward(ctx, *grads):
        _refuse_second_derivative("dual")


class _DualSlope(Differentiable):
    @staticmethod
    def forward(h, activation, a, b):
        return ops.dual_slope.default(h, activation, a, b)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        h, *ctx.numbers = inputs
        ctx.save_for_backward(h)

    @staticmethod
    def backward(ctx, grad_value, grad_slope):
        (h,) = ctx.saved_tensors
        grad_h = _DualSlopeBackward.run(
            "dual_slope_backward", grad_value, grad_slope, h, *ctx.numbers
        )
        return grad_h, None, None, None


class _DualSlopeBackward(Differentiable):
    @staticmethod
    def forward(grad_value, grad_slope, h, activation, a, b):
        return ops.dual_slope_backward.default(grad_value, grad_slope, h, activation, a, b)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        return None

    @staticmethod
    def backward(ctx, grad):
        _refuse_second_derivative("dual_slope")


class _DualStacked(Differentiable):
    @staticmethod
    def forward(h, activation, a, b):
        return ops.dual_stacked.default(h, activation, a, b)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        h, *ctx.numbers = inputs
        ctx.save_for_backward(h)

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        grad_h = _DualStackedBackward.run("dual_stacked_backward", grad, h, *ctx.numbers)
        return grad_h, None, None, None


class _DualStackedBackward(Differentiable):
    @staticmethod
    def forward(grad, h, activation, a, b):
        return ops.dual_stacked_backward.default(grad, h, activation, a, b)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        return None

    @staticmethod
    def backward(ctx, grad):
        _refuse_second_derivative("dual_stacked")
