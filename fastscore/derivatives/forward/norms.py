"""Rules of normalisation layers and softmax, whose tangents share the statistics of the value.

With mean m, variance v and r = (v + eps)^(-1/2) over the K elements of a group, the value is
n = r c with c = x - m, and its derivative along xdot, whose centred form is t = xdot - mean(xdot),

    ndot = r (t - p n)    with    p = mean(n t).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.linear import add_to_value
from fastscore.derivatives.forward.shapes import shift
from fastscore.derivatives.forward.tensor import DualTensor, join, rule, rules
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
    if stacked.dtype in (torch.float16, torch.bfloat16):
        stacked = stacked.float()
    rows = stacked.unsqueeze(1).flatten(1, -2)
    return Standardise.run("jvp", rows, eps).view(stacked.shape)


def _layer(
    x: DualTensor,
    stacked: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype | None = None,
) -> DualTensor:
    """The layer's scale on everything, its offset on the value; then x's dtype, or another."""
    if weight is not None:
        stacked = stacked * weight
    if bias is not None:
        # A product is not read again by its own backward, so there the offset may go in place.
        stacked = add_to_value(stacked, bias, in_place=weight is not None)
    return DualTensor(stacked.to(x.dtype if dtype is None else dtype), x.run)


def _autocast_dtype(x: DualTensor) -> torch.dtype:
    """The dtype of a function that autocast runs in float32 on CUDA."""
    return torch.float32 if x.is_cuda and torch.is_autocast_enabled("cuda") else x.dtype


def _per_channel(parameter: Tensor | None, x: DualTensor) -> Tensor | None:
    return None if parameter is None else parameter.view(-1, *(1,) * (x.dim() - 2))


@rule("layer_norm")
def layer_norm(
    input: Any,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    stacked = input.stacked
    out = _standardise(stacked.flatten(-len(tuple(normalized_shape))), eps).view(stacked.shape)
    return _layer(input, out, weight, bias, _autocast_dtype(input))


@rule("group_norm")
def group_norm(
    input: Any,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    out = _by_group(input.stacked, num_groups, eps)
    weight, bias = _per_channel(weight, input), _per_channel(bias, input)
    return _layer(input, out, weight, bias, _autocast_dtype(input))


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
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        with torch.no_grad():  # for its update of the running statistics
            F.instance_norm(input.primal, running_mean, running_var, momentum=momentum)
    out = _by_group(input.stacked, input.shape[1], eps)
    return _layer(input, out, _per_channel(weight, input), _per_channel(bias, input))


def _batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    weight, bias = _per_channel(weight, input), _per_channel(bias, input)
    if not training and running_mean is not None:
        mean, variance = _per_channel(running_mean, input), _per_channel(running_var, input)
        r = torch.rsqrt(variance + eps)
        scale = r if weight is None else r * weight
        offset = -mean * scale if bias is None else bias - mean * scale
        return _layer(input, input.stacked, scale, offset)
    if running_mean is not None:
        with torch.no_grad():  # for its update of the running statistics
            F.batch_norm(input.primal, running_mean, running_var, None, None, True, momentum)
    by_channel = input.stacked.movedim(2, 1)
    out = _standardise(by_channel.flatten(2), eps).view(by_channel.shape).movedim(1, 2)
    return _layer(input, out, weight, bias)


@rule("rms_norm")
def rms_norm(
    input: Any, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Any:
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    out = input * (input.square().mean(dims, keepdim=True) + eps).rsqrt()
    return out if weight is None else out * weight


@rules(["softmax", "special_softmax", "log_softmax", "special_log_softmax", "softmin"])
def softmax(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func.__name__ == "softmin":
        return F.softmax(-args[0], *args[1:], **kwargs)
    log = "log" in func.__name__
    return _softmax(*args, **kwargs, log=log)


def _softmax(
    input: Any, dim: int | None = None, dtype: Any = None, *, log: bool, _stacklevel: int = 3
) -> Any:
    if dim is None:  # the choice of torch.nn.functional.softmax
        dim = 0 if input.dim() in (0, 1, 3) else 1
    primal, tangents = input.parts()
    value = (torch.log_softmax if log else torch.softmax)(primal, dim, dtype)
    if input.dim() == 0:
        return join(value, torch.zeros_like(tangents, dtype=value.dtype), input.run)
    dim = shift(dim, input.dim())
    weighted = (value.exp() if log else value) * tangents
    mean = weighted.sum(dim, keepdim=True)
    return join(value, tangents - mean if log else weighted - value * mean, input.run)


@rule("scaled_dot_product_attention")
def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value
