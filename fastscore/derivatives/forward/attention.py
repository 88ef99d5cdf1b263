"""Rules of softmax and attention, whose tangents share the weights of the value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fastscore.derivatives.forward.plain import check_as_plain, value_of
from fastscore.derivatives.forward.shapes import shift
from fastscore.derivatives.forward.tensor import join, rule, rules


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
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    rest = (attn_mask, dropout_p, is_causal)
    if _looks_wrong(query, key, value, attn_mask, is_causal, enable_gqa):
        options = {"scale": scale, "enable_gqa": enable_gqa}
        check_as_plain(F.scaled_dot_product_attention, query, key, value, *rest, **options)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    device = value_of(query).device.type
    if not torch.is_autocast_enabled(device):
        return _attend(query, key, value, *rest, scale)
    # Autocast rounds the arguments; what is inside is then done as without it.
    dtype = torch.get_autocast_dtype(device)
    if query.dtype != torch.float64:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(device, enabled=False):
        return _attend(query, key, value, *rest, scale)


def _looks_wrong(
    query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, enable_gqa: bool
) -> bool:
    # The values are asked, which is quicker than asking dual tensors.
    query, key, value = value_of(query), value_of(key), value_of(value)
    if not query.dtype == key.dtype == value.dtype:
        return True
    if attn_mask is not None and (is_causal or attn_mask.dtype not in (torch.bool, query.dtype)):
        return True
    if query.dim() < 2 or not query.dim() == key.dim() == value.dim():
        return True
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return True
    return enable_gqa and (query.dim() < 3 or query.shape[-3] % key.shape[-3] != 0)


def _attend(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Any:
    given = value_of(query)
    dtype, shape = given.dtype, (given.shape[-2], value_of(key).shape[-2])
    half = dtype in (torch.float16, torch.bfloat16)
    if half:
        # As PyTorch does: inner products rounded to half precision would be wrong after exp.
        query, key, value = query.float(), key.float(), value.float()
    scale = given.shape[-1] ** -0.5 if scale is None else scale
    root = abs(scale) ** 0.5  # the scale is divided between the two, as PyTorch divides it
    scores = (query * math.copysign(root, scale)) @ (key * root).transpose(-2, -1)
    nowhere = None
    if is_causal:
        allowed = torch.ones(shape, dtype=torch.bool, device=given.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        nowhere = ~attn_mask.any(-1, keepdim=True)
        scores = scores.masked_fill(~(attn_mask | nowhere), -torch.inf)
    elif attn_mask is not None:
        nowhere = (attn_mask == -torch.inf).all(-1, keepdim=True)
        scores = scores + attn_mask.masked_fill(nowhere, 0)
    weights = scores.softmax(-1)
    out = (F.dropout(weights, dropout_p) if dropout_p else weights) @ value
    if nowhere is not None:  # gets 0, without the NaN of its softmax on the way
        out = out.masked_fill(nowhere, 0)
    return out.to(dtype) if half else out
