"""Rules of elementwise functions: activations, arithmetic, and everything with a known slope."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.linear import add_to_value, align, scaled
from fastscore.derivatives.forward.plain import check_as_plain, value_of
from fastscore.derivatives.forward.tensor import (
    DualTensor,
    as_function_of,
    by_forward_ad,
    is_dual,
    join,
    rule,
    rules,
)
from fastscore.ops import dual_stacked


def _activate(x: DualTensor, activation: str, **params: Any) -> DualTensor:
    return DualTensor(dual_stacked(x.stacked, activation, **params), x.run)


@rule("relu")
def relu(input: Any, inplace: bool = False) -> Any:
    return _activate(input, "relu")


@rule("silu")
def silu(input: Any, inplace: bool = False) -> Any:
    return _activate(input, "silu")


@rule("sigmoid", "special_expit")
def sigmoid(input: Any) -> Any:
    return _activate(input, "sigmoid")


@rule("tanh")
def tanh(input: Any) -> Any:
    return _activate(input, "tanh")


@rule("softplus")
def softplus(input: Any, beta: float = 1, threshold: float = 20) -> Any:
    stacked = input.stacked
    if stacked.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        stacked = stacked.float()  # as autocast does for softplus
    out = dual_stacked(stacked, "softplus", beta=float(beta), threshold=float(threshold))
    return DualTensor(out, input.run)


@rule("elu")
def elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return _activate(input, "elu", alpha=float(alpha))


@rule("gelu")
def gelu(input: Any, *, approximate: str = "none") -> Any:
    if approximate not in ("none", "tanh"):
        check_as_plain(F.gelu, input, approximate=approximate)
    return _activate(input, "gelu", approximate=approximate)


@rule("leaky_relu")
def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return _activate(input, "leaky_relu", negative_slope=float(negative_slope))


@rule("glu")
def glu(input: Any, dim: int = -1) -> Any:
    if input.dim() == 0 or input.shape[dim] % 2:
        check_as_plain(F.glu, input, dim)
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


@rule("prelu")
def prelu(input: Any, weight: Any) -> Any:
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.dim() > 1 or weight.numel() not in (1, channels) or weight.dtype != input.dtype:
        check_as_plain(torch.prelu, input, weight)
    if not isinstance(weight, DualTensor):
        return elementwise(torch.prelu, (input, weight), {})
    weight = weight.reshape(-1, *(1,) * (input.dim() - 2)) if input.dim() > 1 else weight.sum()
    return torch.where(input > 0, input, weight * input)


def _rank(*values: Any) -> int:
    return max(x.dim() for x in values if isinstance(x, Tensor))


def _dtype(x: Tensor) -> torch.dtype:
    return x.stacked.dtype if isinstance(x, DualTensor) else x.dtype  # the quicker way to ask


def promoted(a: Any, b: Any) -> tuple[Any, Any]:
    """Both in the dtype of their sum, which a value without dimensions does not decide."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or _dtype(a) == _dtype(b):
        return a, b
    dtype = torch.result_type(value_of(a), value_of(b))
    return a.to(dtype), b.to(dtype)


@rule("add", "__add__", "__radd__")
def add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if alpha != 1:
        other = other * alpha
    if not isinstance(input, DualTensor):
        input, other = other, input
    input, other = promoted(input, other)
    run = input.run
    rank = _rank(input, other)
    if isinstance(other, DualTensor):
        return DualTensor(align(input.stacked, rank) + align(other.stacked, rank), run)
    stacked = align(input.stacked, rank).to(torch.result_type(input.primal, other))
    if isinstance(other, Tensor):
        shape = torch.broadcast_shapes(input.shape, other.shape)
        stacked = stacked.expand(1 + run.tangents, *shape)
    return DualTensor(add_to_value(stacked, other, in_place=False), run)


@rule("sub", "subtract", "__sub__")
def sub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return add(input, -other if alpha == 1 else other * -alpha)


@rule("rsub", "__rsub__")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return add(-input if alpha == 1 else input * -alpha, other)


@rule("mul", "multiply", "__mul__", "__rmul__")
def mul(input: Any, other: Any) -> Any:
    if not isinstance(input, DualTensor):
        input, other = other, input
    deferred = scaled(input, other, torch.mul)
    if deferred is not None:
        return deferred
    input, other = promoted(input, other)
    run = input.run
    if not isinstance(other, Tensor):
        return DualTensor(input.stacked * other, run)
    rank = _rank(input, other)
    if not isinstance(other, DualTensor):
        return DualTensor(align(input.stacked, rank) * other, run)
    value, tangents = input.parts()
    other_value, other_tangents = other.parts()
    slopes = align(tangents, rank) * other_value + value * align(other_tangents, rank)
    return join(value * other_value, slopes, run)


@rule("div", "divide", "true_divide", "__truediv__", "__div__")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        # Piecewise constant: the slope is 0 wherever there is one.
        return torch.div(value_of(input), value_of(other), rounding_mode=rounding_mode)
    deferred = scaled(input, other, torch.div)
    if deferred is not None:
        return deferred
    input, other = promoted(input, other)
    if not isinstance(other, DualTensor):
        rank = _rank(input, other)
        return DualTensor(align(input.stacked, rank) / other, input.run)
    rank = _rank(input, other)
    other_value, other_tangents = other.parts()
    if not isinstance(input, DualTensor):
        value = input / other_value
        return join(value, -(value / other_value) * align(other_tangents, rank), other.run)
    input_value, tangents = input.parts()
    value = input_value / other_value
    slopes = (align(tangents, rank) - value * align(other_tangents, rank)) / other_value
    return join(value, slopes, other.run)


@rule("__rdiv__", "__rtruediv__")
def rdiv(input: Any, other: Any) -> Any:
    return div(other, input)


@rule("neg", "negative", "__neg__")
def neg(input: Any) -> Any:
    return DualTensor(-input.stacked, input.run)


@rule("positive", "__pos__")
def positive(input: Any) -> Any:
    return input


@rule("pow", "__pow__")
def power(input: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) or not isinstance(input, DualTensor):
        return elementwise(torch.pow, (input, exponent), {})
    value, tangents = input.parts()
    # Without the case of 0, the slope of x**0 at 0 would be 0 * inf.
    slope = exponent * value ** (exponent - 1) if exponent != 0 else torch.zeros_like(value)
    return join(value**exponent, slope * tangents, input.run)


@rule("__rpow__")
def rpow(input: Any, other: Any) -> Any:
    return elementwise(torch.pow, (other, input), {})


# Name -> slope as a function of the argument x and the value y.
_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "abs": lambda x, y: torch.sgn(x),
    "cos": lambda x, y: -torch.sin(x),
    "cosh": lambda x, y: torch.sinh(x),
    "erf": lambda x, y: torch.exp(-x * x) * (2 / math.sqrt(math.pi)),
    "exp": lambda x, y: y,
    "expm1": lambda x, y: y + 1,
    "hardsigmoid": lambda x, y: ((x > -3) & (x < 3)).to(x.dtype) / 6,
    "log": lambda x, y: 1 / x,
    "log1p": lambda x, y: 1 / (1 + x),
    "logsigmoid": lambda x, y: torch.sigmoid(-x),
    "reciprocal": lambda x, y: -y * y,
    "rsqrt": lambda x, y: -0.5 * y / x,
    "sin": lambda x, y: torch.cos(x),
    "sinh": lambda x, y: torch.cosh(x),
    "sqrt": lambda x, y: 0.5 / y,
    "square": lambda x, y: 2 * x,
}
_ALIASES = {"__abs__": "abs", "absolute": "abs", "log_sigmoid": "logsigmoid"}


@rules([*_SLOPES, *_ALIASES])
def with_slope(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name, x = func.__name__, args[0]
    if x.is_complex():
        return by_forward_ad(func, args, kwargs)
    primal, tangents = x.parts()
    value = func(primal)
    return join(value, _SLOPES[_ALIASES.get(name, name)](primal, value) * tangents, x.run)


@rules(
    """acos acosh addcdiv addcmul arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh
    atan atan2 atanh celu clamp clamp_max clamp_min clip copysign digamma erfc erfinv exp2 fmax
    fmin fmod frac hardshrink hardswish hardtanh hypot i0 ldexp lerp lgamma log10 log2
    logaddexp logaddexp2 logit maximum minimum mish nan_to_num relu6 remainder selu sinc
    softshrink softsign special_digamma special_entr special_erf special_erfc special_erfinv
    special_exp2 special_expm1 special_gammaln special_i0 special_log1p special_log_ndtr
    special_logit special_ndtr special_ndtri special_psi special_sinc special_xlog1py
    special_xlogy tan tanhshrink _threshold threshold xlogy"""
)
def elementwise(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One slope per dual argument, from forward-mode differentiation along ones, for all tangents.

    The slope stands for every element at once since each output element depends on one element of
    each argument.
    """
    call, duals = as_function_of(is_dual, func, args, kwargs)
    if any(x.is_complex() for x in duals):
        return by_forward_ad(func, args, kwargs)
    values, tangents = zip(*(x.parts() for x in duals), strict=True)

    def with_argument(i: int, x: Tensor) -> Tensor:
        return call(*values[:i], x, *values[i + 1 :])

    terms = []
    for i, at in enumerate(values):
        along = (torch.ones_like(at),)
        value, slope = torch.func.jvp(partial(with_argument, i), (at,), along)[:2]
        terms.append((slope * align(tangents[i], value.dim())).to(value.dtype))
    return join(value, sum(terms[1:], terms[0]), duals[0].run)
