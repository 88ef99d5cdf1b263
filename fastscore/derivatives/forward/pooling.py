"""Rules of pooling, resampling, padding and dropout: linear, or linear once the value is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.plain import check_as_plain
from fastscore.derivatives.forward.tensor import (
    DualTensor,
    by_forward_ad,
    is_dual,
    join,
    over_tangents,
    rule,
    rules,
)


def _spatial(name: str) -> int:
    """The number of spatial dimensions in a name such as ``avg_pool2d``."""
    return int(re.sub(r".*([123])d.*", r"\1", name))


def over_batch(x: DualTensor, func: Callable[[Tensor], Tensor], spatial: int) -> DualTensor:
    """A linear function of (N, C, *spatial) or (C, *spatial), once on value and tangents."""
    if x.dim() == spatial + 1:
        return DualTensor(func(x.stacked), x.run)
    out = func(x.stacked.flatten(0, 1))
    return DualTensor(out.unflatten(0, (1 + x.run.tangents, x.shape[0])), x.run)


@rules(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))
def average_pool(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    input, *rest = args
    return over_batch(input, lambda x: func(x, *rest, **kwargs), _spatial(func.__name__))


@rules(["interpolate", "upsample", "upsample_nearest", "upsample_bilinear"])
def resample(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    input, *rest = args
    return over_batch(input, lambda x: func(x, *rest, **kwargs), input.dim() - 2)


@rules("pixel_shuffle pixel_unshuffle")
def pixel_shuffle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    input, *rest = args
    return DualTensor(func(input.stacked, *rest, **kwargs), input.run)


@rules("channel_shuffle native_channel_shuffle")
def channel_shuffle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    input, *rest = args
    return over_batch(input, lambda x: func(x, *rest, **kwargs), input.dim() - 2)


@rule("grid_sample")
def grid_sample(input: Any, grid: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(grid, DualTensor):
        return by_forward_ad(F.grid_sample, (input, grid, *args), kwargs, name="grid_sample")
    return over_tangents(lambda x: F.grid_sample(x, grid, *args, **kwargs), (input,), {})


_MAX_POOLS = [
    f"{kind}max_pool{n}d{end}"
    for kind in ("", "adaptive_")
    for n in (1, 2, 3)
    for end in ("", "_with_indices")
]


@rules(_MAX_POOLS)
def max_pool(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The maximum's place is the value's; the tangents there are gathered."""
    input, *rest = args
    name = func.__name__.removesuffix("_with_indices")
    spatial = _spatial(name)
    wants_indices = kwargs.pop("return_indices", False) or name != func.__name__
    primal, tangents = input.parts()
    value, index = getattr(F, f"{name}_with_indices")(primal, *rest, **kwargs)
    place = index.flatten(-spatial).expand(input.run.tangents, *index.flatten(-spatial).shape)
    slopes = tangents.flatten(-spatial).gather(-1, place).reshape(-1, *value.shape)
    out = join(value, slopes, input.run)
    return (out, index) if wants_indices else out


@rules("max_unpool1d max_unpool2d max_unpool3d")
def max_unpool(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Linear, with the places given."""
    input, *rest = args
    return over_tangents(lambda x: func(x, *rest, **kwargs), (input,), {})


@rule("pad", "constant_pad_nd")
def pad(
    input: Any, pad: Sequence[int], mode: str | float = "constant", value: float | None = None
) -> Any:
    if not isinstance(mode, str):  # torch.constant_pad_nd(input, pad, value)
        value = mode
    elif mode != "constant":
        kind = mode
        return over_batch(input, lambda x: F.pad(x, pad, kind), len(pad) // 2)
    if not value:
        return DualTensor(F.pad(input.stacked, pad), input.run)
    primal, tangents = input.parts()
    return join(F.pad(primal, pad, value=value), F.pad(tangents, pad), input.run)


@rules(["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"])
def dropout(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The identity in evaluation mode; in training mode one mask for value and tangents."""
    return _dropout(func, *args, **kwargs)


def _dropout(
    func: Callable[..., Any], input: Any, p: float = 0.5, train: bool = True, **options: Any
) -> Any:
    if not options.get("training", train) or p == 0:
        return input
    mask = func(torch.ones_like(input.primal), p, True)
    return DualTensor(input.stacked * mask, input.run)


@rules(["alpha_dropout", "feature_alpha_dropout"])
def alpha_dropout(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    training = kwargs.get("training", args[2] if len(args) > 2 else False)
    return by_forward_ad(func, args, kwargs) if training else args[0]


@rules(
    """amax amin aminmax cosine_similarity cummax cummin dist index_put kthvalue
    linalg_inv linalg_matrix_norm linalg_norm linalg_vector_norm local_response_norm
    logsumexp lp_pool1d lp_pool2d lp_pool3d max median min multi_head_attention_forward nanmean
    nansum norm normalize pairwise_distance prod scatter sort std std_mean topk var
    var_mean"""
)
def known(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Functions that torch.func.jvp serves well: seldom the costly part of a score network."""
    return by_forward_ad(func, args, kwargs)


@rule("binary_cross_entropy")
def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    if not is_dual(target) and not is_dual(weight):
        rest = (weight, size_average, reduce, reduction)
        return by_forward_ad(F.binary_cross_entropy, (input, target, *rest), {})
    options = {"size_average": size_average, "reduce": reduce, "reduction": reduction}
    check_as_plain(F.binary_cross_entropy, input, target, weight, **options)
    logs = [torch.clamp(x, min=-100) for x in (torch.log(input), torch.log1p(-input))]
    loss = -(target * logs[0] + (1 - target) * logs[1])
    loss = loss if weight is None else loss * weight
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


@rule("embedding")
def embedding(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    if weight.dim() != 2:
        check_as_plain(F.embedding, input, weight, *args, **kwargs)
    return by_forward_ad(F.embedding, (input, weight, *args), kwargs)
