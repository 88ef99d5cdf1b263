"""Activations on dual numbers, in pure PyTorch: the specification of the fused ``dual`` ops.

Forward-mode differentiation carries a value and any number of tangents through a network. At an
elementwise activation phi it maps ``(h, hdot)`` to ``(phi(h), phi'(h) * hdot)``. Two layouts:

* :func:`dual` takes the value ``h`` and the tangents ``hdot`` of shape ``(M, *h.shape)`` apart;
* :func:`dual_stacked` takes and returns one tensor of shape ``(1 + M, ...)`` whose slice 0 is the
  value and whose other slices are the tangents, so that the linear layers around the activation
  run once on everything.

Both are made of differentiable operations: autograd goes through them, twice and more. float16 and
bfloat16 compute in float32 and round once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_device,
    check_floating,
    check_number,
    check_shape,
    fail,
)

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def _softplus(h: Tensor, beta: float, threshold: float) -> tuple[Tensor, Tensor]:
    slope = torch.where(h * beta > threshold, torch.ones_like(h), torch.sigmoid(h * beta))
    return F.softplus(h, beta, threshold), slope


def _silu(h: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(h)
    return h * s, s * (1 + h * (1 - s))


def _tanh(h: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(h)
    return value, 1 - value * value


def _sigmoid(h: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.sigmoid(h)
    return value, value * (1 - value)


def _elu(h: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    # The exponential is taken of min(h, 0): an overflow in the branch not chosen would turn into
    # NaN in the gradient.
    low = h.clamp(max=0)
    positive = h > 0
    value = torch.where(positive, h, alpha * torch.expm1(low))
    return value, torch.where(positive, torch.ones_like(h), alpha * torch.exp(low))


def _gelu(h: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    if approximate == "none":
        cdf = 0.5 * (1 + torch.erf(h * _SQRT_HALF))
        return h * cdf, cdf + h * (_INV_SQRT_2PI * torch.exp(-0.5 * h * h))
    t = torch.tanh(_SQRT_2_OVER_PI * (h + _GELU_CUBIC * h * h * h))
    inner_slope = _SQRT_2_OVER_PI * (1 + 3 * _GELU_CUBIC * h * h)
    return 0.5 * h * (1 + t), 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * inner_slope


def _relu(h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(h), torch.where(h <= 0, torch.zeros_like(h), torch.ones_like(h))


def _leaky_relu(h: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    slope = torch.where(h > 0, torch.ones_like(h), torch.full_like(h, negative_slope))
    return h * slope, slope


#: Activation name -> (value and slope, parameters with PyTorch's defaults).
ACTIVATIONS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], dict[str, Any]]] = {
    "softplus": (_softplus, {"beta": 1.0, "threshold": 20.0}),
    "silu": (_silu, {}),
    "tanh": (_tanh, {}),
    "elu": (_elu, {"alpha": 1.0}),
    "gelu": (_gelu, {"approximate": "none"}),
    "relu": (_relu, {}),
    "leaky_relu": (_leaky_relu, {"negative_slope": 0.01}),
    "sigmoid": (_sigmoid, {}),
}


def check_params(fn: str, activation: str, params: dict[str, Any]) -> dict[str, Any]:
    """The activation's parameters, the given ones over PyTorch's defaults."""
    check_choice(fn, "activation", activation, tuple(ACTIVATIONS))
    defaults = ACTIVATIONS[activation][1]
    for name, value in params.items():
        if name not in defaults:
            known = ", ".join(map(repr, defaults)) or "absent"
            fail(fn, f"parameter of {activation!r}", known, repr(name))
        if name == "approximate":
            check_choice(fn, name, value, ("none", "tanh"))
        else:
            check_number(fn, name, value, positive=name == "beta")
    return {**defaults, **params}


def _value_and_slope(
    fn: str, h: Tensor, activation: str, params: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """phi(h) and phi'(h); both in float32 when h is of half precision."""
    params = check_params(fn, activation, params)
    if h.dtype in (torch.float16, torch.bfloat16):
        h = h.float()
    return ACTIVATIONS[activation][0](h, **params)


def dual(h: Tensor, hdot: Tensor, activation: str, **params: Any) -> tuple[Tensor, Tensor]:
    """``phi(h)`` and ``phi'(h) * hdot`` for the activation's phi.

    Args:
        h: float tensor of any shape.
        hdot: tangents ``(M, *h.shape)``, of h's dtype and device.
        activation: ``"softplus"`` (``beta``, ``threshold``), ``"silu"``, ``"tanh"``, ``"elu"``
            (``alpha``), ``"gelu"`` (``approximate="none"|"tanh"``), ``"relu"``, ``"leaky_relu"``
            (``negative_slope``) or ``"sigmoid"``.
        params: the activation's parameters, named as in ``torch.nn.functional``.

    Returns:
        The value, of h's shape, and the tangents, of hdot's shape.

    Raises:
        ValueError: unknown activation or parameter, or shapes, dtypes or devices that differ.
        TypeError: an argument that is not a tensor.

    Example:
        >>> import torch
        >>> from fastscore.reference import dual
        >>> h, hdot = torch.tensor([-1.0, 2.0]), torch.tensor([[1.0, 1.0], [3.0, 4.0]])
        >>> value, tangents = dual(h, hdot, "leaky_relu", negative_slope=0.5)
        >>> value.tolist(), tangents.tolist()
        ([-0.5, 2.0], [[0.5, 1.0], [1.5, 4.0]])
    """
    check_floating("dual", "h", h)
    check_floating("dual", "hdot", hdot, min_dim=1)
    check_shape("dual", "hdot", hdot, (hdot.shape[0], *h.shape), "tangents of h")
    check_device("dual", "hdot", hdot, h.device, "h's device")
    if hdot.dtype != h.dtype:
        fail("dual", "hdot", f"of dtype {h.dtype} (h's dtype)", hdot.dtype)
    value, slope = _value_and_slope("dual", h, activation, params)
    return value.to(h.dtype), (slope * hdot).to(h.dtype)


def dual_slope(h: Tensor, activation: str, **params: Any) -> tuple[Tensor, Tensor]:
    """``phi(h)`` and ``phi'(h)``: :func:`dual` along ones.

    Args:
        h, activation, params: as for :func:`dual`.

    Returns:
        The value and the slope, of h's shape and dtype.

    Raises:
        ValueError: unknown activation or parameter, or a dtype that is not floating.
        TypeError: h is not a tensor.

    Example:
        >>> import torch
        >>> from fastscore.reference import dual_slope
        >>> value, slope = dual_slope(torch.tensor([-1.0, 2.0]), "leaky_relu", negative_slope=0.5)
        >>> value.tolist(), slope.tolist()
        ([-0.5, 2.0], [0.5, 1.0])
    """
    check_floating("dual_slope", "h", h)
    value, slope = _value_and_slope("dual_slope", h, activation, params)
    return value.to(h.dtype), slope.to(h.dtype)


def dual_stacked(h: Tensor, activation: str, **params: Any) -> Tensor:
    """``[phi(h_0), phi'(h_0) h_1, ..., phi'(h_0) h_M]`` for a stacked value and its tangents.

    Args:
        h: float tensor ``(1 + M, ...)``: the value, then the M tangents (M may be 0).
        activation, params: as for :func:`dual`.

    Returns:
        A tensor of h's shape and dtype.

    Raises:
        ValueError: unknown activation or parameter, or no slice 0.
        TypeError: h is not a tensor.

    Example:
        >>> import torch
        >>> from fastscore.reference.duals import dual_stacked
        >>> dual_stacked(torch.tensor([[-1.0, 2.0], [3.0, 4.0]]), "relu").tolist()
        [[0.0, 2.0], [0.0, 4.0]]
    """
    check_floating("dual_stacked", "h", h, min_dim=1)
    if h.shape[0] < 1:
        fail("dual_stacked", "h", "of shape (1 + M, ...)", f"shape {tuple(h.shape)}")
    value, slope = _value_and_slope("dual_stacked", h[0], activation, params)
    return torch.cat([value.unsqueeze(0), slope * h[1:]]).to(h.dtype)


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
