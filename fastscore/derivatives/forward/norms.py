"""Rules of normalisation layers, whose tangents share the statistics of the value.

With mean m, variance v and r = (v + eps)^(-1/2) over the K elements of a group, the value is
n = r c with c = x - m, and its derivative along xdot, whose centred form is t = xdot - mean(xdot),

    ndot = r (t - p n)    with    p = mean(n t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.linear import add_to_value
from fastscore.derivatives.forward.plain import check_as_plain, value_of
from fastscore.derivatives.forward.tensor import (
    DualTensor,
    Unsupported,
    by_forward_ad,
    is_dual,
    rule,
    rules,
)
from fastscore.ops._library import Differentiable


def _statistics(stacked: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """c and t_1 ... t_M in one tensor (1 + M, R, K), r of shape (R, 1), and p (M, R, 1)."""
    centred = stacked - stacked.mean(-1, keepdim=True)
    products = _means(centred[0], centred)
    r = torch.rsqrt(products[0] + eps)
    return centred, r, products[1:] * r


def _means(a: Tensor, b: Tensor) -> Tensor:
    """Means over K of a (R, K) times each of b (1 + M, R, K)."""
    return torch.einsum("rk,mrk->mr", a, b).unsqueeze(-1) / a.shape[-1]


def _subtract_product(x: Tensor, a: Tensor, b: Tensor) -> None:
    """x <- x - a b, which spares memory; autograd can follow it."""
    if torch._C._are_functorch_transforms_active():  # vmap has no rule for addcmul_
        x.sub_(a * b)
    else:
        x.addcmul_(a, b, value=-1)


class Standardise(Differentiable):
    """``(1 + M, R, K)`` -> the value with mean 0 and variance 1 over K, and its tangents.

    The backward recomputes the statistics from the input, which alone is kept, and is itself
    differentiable. For gradients g of n and g_m of ndot_m, centred to h and h_m, with
    q = mean(n g) and s = sum_m mean(g_m t_m), the gradient of xdot_m is r (h_m - q_m n), and that
    of x is

        r h - r^2 sum_m (p_m h_m + q_m t_m) - n (r q + r^2 (s - 3 sum_m p_m q_m)).
    """

    @staticmethod
    def forward(stacked: Tensor, eps: float) -> Tensor:
        out, r, p = _statistics(stacked, eps)
        out.mul_(r)
        _subtract_product(out[1:], out[0], r * p)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        stacked, ctx.eps = inputs
        ctx.save_for_backward(stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (stacked,) = ctx.saved_tensors
        centred, r, p = _statistics(stacked, ctx.eps)
        n = centred[0] * r
        q = _means(n, grad)
        s = torch.einsum("mrk,mrk->r", grad[1:], centred[1:]).unsqueeze(-1) / n.shape[-1]
        h = grad - grad.mean(-1, keepdim=True)
        out = h * r
        _subtract_product(out[1:], n, r * q[1:])
        _subtract_product(out[0], n, r * q[0] + r * r * (s - 3 * (p * q[1:]).sum(0)))
        for m in range(len(p)):
            _subtract_product(out[0], h[1 + m], r * r * p[m])
            _subtract_product(out[0], centred[1 + m], r * r * q[1 + m])
        return out, None


def _standardise(stacked: Tensor, eps: float) -> Tensor:
    """Standardise ``(1 + M, ..., K)`` over K, in float32 at least."""
    rows = _full(stacked).unsqueeze(1).flatten(1, -2)
    return Standardise.run("jvp", rows, eps).view(stacked.shape)


def _full(x: Any) -> Any:
    """In float32 where it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _affine(standard: Any, weight: Any, bias: Any, dtype: torch.dtype) -> Any:
    """The layer's scale on everything, its offset on the value; then its dtype.

    Input, weight and bias may each have tangents, or not.
    """
    if not isinstance(standard, DualTensor) or is_dual(weight) or is_dual(bias):
        out = standard if weight is None else standard * weight
        return (out if bias is None else out + bias).to(dtype)
    stacked = standard.stacked
    if weight is not None:
        stacked = stacked * weight
    if bias is not None:
        # A product is not read again by its own backward, so there the offset may go in place.
        stacked = add_to_value(stacked, bias, in_place=weight is not None)
    return DualTensor(stacked.to(dtype), standard.run)


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a function that autocast runs in float32 on CUDA."""
    x = value_of(x)
    return torch.float32 if x.is_cuda and torch.is_autocast_enabled("cuda") else x.dtype


def _shape(x: Tensor) -> torch.Size:
    return x.stacked.shape[1:] if isinstance(x, DualTensor) else x.shape  # the quicker way to ask


def _per_channel(parameter: Any, x: Tensor) -> Any:
    return None if parameter is None else parameter.view(-1, *(1,) * (len(_shape(x)) - 2))


def _unlike(shape: Any, *parameters: Any) -> bool:
    """Whether a parameter that is there is of another shape."""
    return any(p is not None and p.shape != shape for p in parameters)


@rule("layer_norm")
def layer_norm(
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    shape = torch.Size(normalized_shape)
    if not shape or _shape(input)[-len(shape) :] != shape or _unlike(shape, weight, bias):
        check_as_plain(F.layer_norm, input, normalized_shape, weight, bias)
    if isinstance(input, DualTensor):
        stacked = input.stacked
        out = _standardise(stacked.flatten(-len(shape)), eps).view(stacked.shape)
        standard: Tensor = DualTensor(out, input.run)
    else:
        standard = F.layer_norm(_full(input), shape, None, None, eps)
    return _affine(standard, weight, bias, _autocast_dtype(input))


@rule("group_norm")
def group_norm(
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    size = _shape(input)
    per_group = math.prod(size) // (size[0] * num_groups) if len(size) > 1 and size[0] else 0
    if per_group <= 1 or size[1] % num_groups or _unlike(size[1:2], weight, bias):
        check_as_plain(F.group_norm, input, num_groups, weight, bias)
    if isinstance(input, DualTensor):
        standard: Tensor = DualTensor(_by_group(input.stacked, num_groups, eps), input.run)
    else:
        standard = F.group_norm(_full(input), num_groups, None, None, eps)
    weight, bias = _per_channel(weight, input), _per_channel(bias, input)
    return _affine(standard, weight, bias, _autocast_dtype(input))


def _by_group(stacked: Tensor, groups: int, eps: float) -> Tensor:
    grouped = stacked.unflatten(2, (groups, stacked.shape[2] // groups)).flatten(3)
    return _standardise(grouped, eps).view(stacked.shape)


def _running_first(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments as torch.nn.functional has them: torch's own put weight and bias first."""
    if func not in (torch.batch_norm, torch.instance_norm):
        return args
    input, weight, bias, running_mean, running_var, *rest = args
    return (input, running_mean, running_var, weight, bias, *rest[:3])


@rules(["instance_norm", "batch_norm"])
def channel_norm(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    norm = _instance_norm if func.__name__ == "instance_norm" else _batch_norm
    return norm(*_running_first(func, args), **kwargs)


def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    size, parameters = _shape(input), (running_mean, running_var, weight, bias)
    if math.prod(size[2:]) <= 1 or _unlike(size[1:2], *parameters):
        check_as_plain(F.instance_norm, input, *parameters)
    if running_mean is not None:
        _refuse_dual_statistics("instance_norm", running_mean, running_var)
        with torch.no_grad():  # for its update of the running statistics
            F.instance_norm(value_of(input), running_mean, running_var, momentum=momentum)
    if isinstance(input, DualTensor):
        standard: Tensor = DualTensor(_by_group(input.stacked, input.shape[1], eps), input.run)
    else:
        standard = F.instance_norm(_full(input), eps=eps)
    return _affine(standard, _per_channel(weight, input), _per_channel(bias, input), input.dtype)


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Any:
    size, parameters = _shape(input), (running_mean, running_var, weight, bias)
    if len(size) < 2:  # without elements
        rest = (training, 0.0 if momentum is None else momentum, eps)
        return by_forward_ad(F.batch_norm, (input, *parameters, *rest), {})
    too_few = training and (eps <= 0 or size[1] >= size.numel())
    no_statistics = not training and (running_mean is None or running_var is None)
    if too_few or no_statistics or _unlike(size[1:2], *parameters):
        check_as_plain(F.batch_norm, input, *parameters, training, momentum or 0.0, eps)
    weight, bias = _per_channel(weight, input), _per_channel(bias, input)
    if not training and running_mean is not None:
        mean, variance = _per_channel(running_mean, input), _per_channel(running_var, input)
        r = torch.rsqrt(variance + eps)
        scale = r if weight is None else r * weight
        offset = -mean * scale if bias is None else bias - mean * scale
        return _affine(input, scale, offset, input.dtype)
    if running_mean is not None:
        _refuse_dual_statistics("batch_norm", running_mean, running_var)
        with torch.no_grad():  # for its update of the running statistics
            state = (running_mean, running_var)
            F.batch_norm(value_of(input), *state, None, None, True, momentum)  # type: ignore[arg-type]
    if isinstance(input, DualTensor):
        by_channel = input.stacked.movedim(2, 1)
        out = _standardise(by_channel.flatten(2), eps).view(by_channel.shape).movedim(1, 2)
        standard: Tensor = DualTensor(out, input.run)
    else:
        standard = F.batch_norm(_full(input), None, None, None, None, True, 0.0, eps)
    return _affine(standard, weight, bias, input.dtype)


def _refuse_dual_statistics(name: str, *statistics: Any) -> None:
    if any(is_dual(x) for x in statistics):
        raise Unsupported(name, "it updates running statistics that depend on x")


@rule("rms_norm")
def rms_norm(
    input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Any:
    shape = torch.Size(normalized_shape)
    if not shape or _shape(input)[-len(shape) :] != shape or _unlike(shape, weight):
        check_as_plain(F.rms_norm, input, normalized_shape, weight)
    dims = tuple(range(-len(shape), 0))
    full = _full(input)
    eps = torch.finfo(full.dtype).eps if eps is None else eps
    out = full * (full.square().mean(dims, keepdim=True) + eps).rsqrt()
    return _affine(out, weight, None, input.dtype)


# The functions under those above: also the statistics are returned, with their tangents.


@rule("native_layer_norm")
def native_layer_norm(
    input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[Any, Any, Any]:
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    out = layer_norm(input, normalized_shape, weight, bias, eps)
    dtype = input.dtype if weight is None else weight.dtype
    return (out, *_mean_and_scale(input, dims, eps, dtype, keepdim=True))


@rule("native_group_norm")
def native_group_norm(
    input: Any, weight: Any, bias: Any, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Any, Any, Any]:
    out = group_norm(input.reshape(N, C, HxW), group, weight, bias, eps).reshape(input.shape)
    dtype = input.dtype if weight is None else weight.dtype
    grouped = input.reshape(N, group, C // group * HxW)
    return (out, *_mean_and_scale(grouped, (-1,), eps, dtype))


@rule("native_batch_norm", "_native_batch_norm_legit")
def native_batch_norm(input: Any, weight: Any, bias: Any, *rest: Any) -> tuple[Any, Any, Any]:
    *state, training, momentum, eps = rest
    mean, variance = state or (None, None)
    out = _batch_norm(input, mean, variance, weight, bias, training, momentum, eps)
    if not training:
        return out, input.new_empty(0), input.new_empty(0)
    dtype = next((x.dtype for x in (weight, bias, *state) if x is not None), input.dtype)
    dims = (0, *range(2, input.dim()))
    return (out, *_mean_and_scale(input, dims, eps, dtype))


@rule("torch._ops.aten._batch_norm_with_update")
def batch_norm_with_update(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
) -> tuple[Any, Any, Any, Tensor]:
    state = (running_mean, running_var)
    results = native_batch_norm(input, weight, bias, *state, True, momentum, eps)
    return (*results, torch.empty(0, dtype=torch.uint8, device=input.device))


def _mean_and_scale(
    x: Any, dims: tuple[int, ...], eps: float, dtype: torch.dtype, *, keepdim: bool = False
) -> tuple[Any, Any]:
    """Mean and (variance + eps)^(-1/2)."""
    x = _full(x)
    mean = x.mean(dims, keepdim=True)
    r = ((x - mean).square().mean(dims, keepdim=keepdim) + eps).rsqrt()
    mean = mean if keepdim else mean.reshape(r.shape)
    return mean.to(dtype), r.to(dtype)
