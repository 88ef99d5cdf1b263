"""Rules of functions that rearrange, select and sum: linear, one dimension further to the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.linear import align
from fastscore.derivatives.forward.plain import check_as_plain, value_of
from fastscore.derivatives.forward.tensor import (
    DualTensor,
    Unsupported,
    assign,
    join,
    lift,
    over_tangents,
    over_tangents_as_view,
    rule,
    rules,
    run_of,
    wrap,
)


def shift(dim: Any, rank: int) -> Any:
    """Dimensions of a value of rank ``rank`` as dimensions of its stacked tensor."""
    if isinstance(dim, (tuple, list)):
        return tuple(shift(d, rank) for d in dim)
    if not -rank <= dim < rank:
        raise IndexError(
            "Dimension out of range (expected to be in range of "
            f"[{-rank}, {rank - 1}], but got {dim})"
        )
    return dim + 1 if dim >= 0 else dim


def _sizes(sizes: Sequence[Any]) -> tuple[int, ...]:
    """The sizes in ``view(2, 3)`` as in ``view((2, 3))``."""
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)


@rule("reshape", "view")
def reshape(input: Any, *shape: Any, **named: Any) -> Any:
    if isinstance(next(iter((*shape, *named.values()))), torch.dtype):
        raise Unsupported("view", "it reinterprets the bytes of a tensor")
    sizes = _sizes(shape) if shape else tuple(*named.values())
    if -1 in sizes and input.numel() == 0:
        # Ambiguous for the stacked tensor, though perhaps not for the value.
        sizes = torch.empty(input.shape, device="meta").reshape(sizes).shape
    return DualTensor(input.stacked.reshape(1 + input.run.tangents, *sizes), input.run)


@rule("flatten")
def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if input.dim() == 0:
        return reshape(input, 1)
    start, end = shift(start_dim, input.dim()), shift(end_dim, input.dim())
    return DualTensor(input.stacked.flatten(start, end), input.run)


@rule("permute")
def permute(input: Any, *dims: Any) -> Any:
    return DualTensor(input.stacked.permute(0, *_positive(_sizes(dims), input.dim())), input.run)


def _positive(dims: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(d % (rank + 1) if d < 0 else d for d in shift(tuple(dims), rank))


@rule("expand", "broadcast_to")
def expand(input: Any, *size: Any, implicit: bool = False) -> Any:
    size = _sizes(size)
    return DualTensor(align(input.stacked, len(size)).expand(-1, *size), input.run)


@rule("expand_as")
def expand_as(input: Any, other: Any) -> Any:
    return (
        expand(input, other.shape) if isinstance(input, DualTensor) else input.expand(other.shape)
    )


@rule("view_as", "reshape_as")
def view_as(input: Any, other: Any) -> Any:
    return input.reshape(other.shape)


@rule("repeat")
def repeat(input: Any, *repeats: Any) -> Any:
    repeats = _sizes(repeats)
    return DualTensor(align(input.stacked, len(repeats)).repeat(1, *repeats), input.run)


# Name -> (position of the argument dim, its default; None stands for all dimensions).
_DIM_AT: dict[str, tuple[int, int | None]] = {
    "chunk": (2, 0),
    "cumsum": (1, None),
    "index_select": (1, None),
    "mean": (1, None),
    "narrow": (1, None),
    "select": (1, None),
    "split": (2, 0),
    "split_with_sizes": (2, 0),
    "squeeze": (1, None),
    "sum": (1, None),
    "tensor_split": (2, 0),
    "unbind": (1, 0),
    "unflatten": (1, None),
    "unsqueeze": (1, None),
}


@rules(_DIM_AT)
def along_dim(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    input, *rest = args
    name = func.__name__
    rank = input.dim() + (name == "unsqueeze")
    if rank == 0:
        return over_tangents(func, args, kwargs)
    position, default = _DIM_AT[name]
    at = position - 1
    dim = kwargs.pop("dim") if "dim" in kwargs else rest.pop(at) if len(rest) > at else default
    if dim is None or (dim in ((), []) and name != "squeeze"):
        dim = range(rank)
    dim = shift(tuple(dim) if isinstance(dim, (range, list)) else dim, rank)
    if at == 0:
        return wrap(func(input.stacked, dim, *rest, **kwargs), input.run)
    return wrap(func(input.stacked, *rest, dim=dim, **kwargs), input.run)


@rules(["transpose", "swapaxes", "swapdims"])
def transpose(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    input, first, second = (*args, *kwargs.values())
    rank = input.dim()
    if rank == 0:  # which has a dimension 0, and a dimension -1, to transpose
        func(input.primal, first, second)
        return DualTensor(input.stacked.view_as(input.stacked), input.run)
    return DualTensor(input.stacked.transpose(shift(first, rank), shift(second, rank)), input.run)


@rules(
    """.H .T .imag .mH .mT .real adjoint broadcast_tensors diagonal hsplit meshgrid movedim t unfold
    view_as_complex view_as_real vsplit"""
)
def view(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is F.unfold:  # patches of an image; Tensor.unfold is a view
        return over_tangents(func, args, kwargs)
    return over_tangents_as_view(func, args, kwargs)


@rule("moveaxis")
def moveaxis(input: Any, source: Any, destination: Any) -> Any:
    return input.movedim(source, destination)


@rules(
    """atleast_1d atleast_2d atleast_3d block_diag column_stack conj conj_physical diag diag_embed
    diagonal_scatter diff dsplit dstack fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_ifft
    fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2
    fft_rfftn flip fliplr flipud fold gather hstack index_add index_copy masked_scatter
    repeat_interleave resolve_conj resolve_neg roll rot90 row_stack scatter_add select_scatter
    slice_scatter take take_along_dim tile trace tril triu vstack"""
)
def linear_in_all(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return over_tangents(func, args, kwargs)


@rule("cat", "concat", "concatenate")
def cat(tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None) -> Any:
    run = run_of(tensors)
    dim = dim if axis is None else axis
    # An empty vector goes with tensors of any rank, for the sake of old programs.
    kept = [x for x in tensors if x.shape != (0,)] or tensors
    stacked = [lift(x, run).stacked for x in kept]
    if len(kept) < len(tensors) or kept[0].dim() == 0:
        check_as_plain(torch.cat, list(tensors), dim)
        dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
        stacked = [x.to(dtype) for x in stacked]
    return DualTensor(torch.cat(stacked, shift(dim, kept[0].dim())), run)


@rule("stack")
def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    run = run_of(tensors)
    duals = [lift(x, run) for x in tensors]
    return DualTensor(torch.stack([x.stacked for x in duals], shift(dim, duals[0].dim() + 1)), run)


@rule("where")
def where(*args: Any, **kwargs: Any) -> Any:
    # torch.where(condition, input, other), but input.where(condition, other).
    is_mask = isinstance(args[0], Tensor) and args[0].dtype in (torch.bool, torch.uint8)
    order = ("condition", "input", "other") if is_mask else ("input", "condition", "other")
    bound = {**dict(zip(order, args, strict=False)), **kwargs}
    condition, sides = bound["condition"], (bound["input"], bound["other"])
    run = run_of(sides)
    dtype = torch.result_type(*map(value_of, sides))
    # Filled, not copied from the host, for which a GPU would be waited for.
    tensors = [
        x if isinstance(x, Tensor) else condition.new_full((), x, dtype=dtype) for x in sides
    ]
    rank = max(x.dim() for x in (condition, *tensors))
    first, second = (align(lift(x, run).stacked.to(dtype), rank) for x in tensors)
    return DualTensor(torch.where(condition, first, second), run)


@rule("masked_fill")
def masked_fill(input: Any, mask: Any, value: Any) -> Any:
    if isinstance(value, DualTensor) or not isinstance(input, DualTensor):
        if value.dim() > 0:
            check_as_plain(torch.masked_fill, input, mask, value)
        return where(mask, value.to(input.dtype), input)
    if mask.dim() > input.dim():
        input = expand(input, torch.broadcast_shapes(input.shape, mask.shape))
    primal, tangents = input.parts()
    return join(primal.masked_fill(mask, value), tangents.masked_fill(mask, 0), input.run)


@rule("as_strided_scatter")
def as_strided_scatter(
    input: Any, src: Any, size: Any, stride: Any, storage_offset: int | None = None
) -> Any:
    """By places: PyTorch's backward gives the elements that are overwritten a gradient."""
    check_as_plain(torch.as_strided_scatter, input, src, size, stride, storage_offset)
    places = torch.arange(input.numel(), device=input.device)
    places = places.as_strided(size, stride, storage_offset or 0).flatten()

    def scatter(input: Tensor, src: Tensor) -> Tensor:
        return input.reshape(-1).scatter(0, places, src.reshape(-1)).view(input.shape)

    return over_tangents(scatter, (input, src), {})


@rules(
    """clone _lazy_clone contiguous to float double half bfloat16 type type_as cpu cuda int long
    short char byte bool"""
)
def convert(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    input = args[0]
    rest = [value_of(x) for x in args[1:]]
    if not isinstance(input, DualTensor):
        return func(input, *rest, **kwargs)
    formats = [x for x in (*rest, *kwargs.values()) if isinstance(x, torch.memory_format)]
    if formats and formats[0] not in (torch.preserve_format, torch.contiguous_format):
        # The others are for values of four or five dimensions, as the stacked tensor is not.
        if input.dim() != (4 if formats[0] == torch.channels_last else 5):
            return func(input.primal, *rest, **kwargs)  # which raises
        merged = func(input.stacked.flatten(0, 1), *rest, **kwargs)
        result = merged.unflatten(0, (1 + input.run.tangents, -1))
    else:
        result = func(input.stacked, *rest, **kwargs)
    if not isinstance(result, Tensor):
        return func(input.primal, *rest, **kwargs)
    if not (result.is_floating_point() or result.is_complex()):
        return result[0]
    return DualTensor(result, input.run)


@rule("__getitem__")
def getitem(input: Any, index: Any) -> Any:
    if not isinstance(input, DualTensor):
        raise Unsupported("__getitem__", "its index carries tangents")
    return DualTensor(_select(input.stacked, index), input.run)


def _select(stacked: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if sum(not _is_basic(i) for i in index) <= 1:
        return stacked[(slice(None), *index)]
    # Several index arrays move to the front, wherever they stand: one slice at a time.
    return torch.stack([x[index] for x in stacked.unbind(0)])


def _is_basic(index: Any) -> bool:
    if isinstance(index, bool):
        return False
    return index is None or index is Ellipsis or isinstance(index, (slice, int))


@rule("__setitem__")
def setitem(input: Any, index: Any, value: Any) -> None:
    if not isinstance(input, DualTensor):
        raise Unsupported("__setitem__", "it writes a value with tangents into a tensor without")
    run = input.run
    index = index if isinstance(index, tuple) else (index,)
    stacked = input.stacked.clone()
    for i in range(1 + run.tangents):
        if isinstance(value, DualTensor):
            stacked[i][index] = value.stacked[i]
        else:
            stacked[i][index] = value if i == 0 else 0
    assign(input, DualTensor(stacked, run), aliased=run.has_alias(input), name="__setitem__")


@rule("__iter__")
def iterate(input: Any) -> Any:
    return iter(input.unbind(0))


@rule("cumprod")
def cumprod(input: Any, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """By doubling: products of neighbouring ranges, which a factor 0 does not disturb."""
    x = input if dtype is None else input.to(dtype)
    value = torch.cumprod(x.primal, dim)
    if x.dim() > 0:
        length, reach = x.shape[dim], 1
        while reach < length:
            products = x.narrow(dim, reach, length - reach) * x.narrow(dim, 0, length - reach)
            x = torch.cat([x.narrow(dim, 0, reach), products], dim)
            reach *= 2
    return join(value, x.parts()[1], x.run)


@rules("unique unique_consecutive")
def unique(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A selection: of equal elements, one passes its tangents on."""
    input, *rest = args
    names = ("sorted", "return_inverse", "return_counts", "dim")
    options = {**dict(zip(names[func.__name__ != "unique" :], rest, strict=False)), **kwargs}
    dim = options.get("dim")
    values, inverse, *counts = func(input.primal, **{**options, "return_inverse": True})
    length = values.shape[0 if dim is None else dim]
    at = inverse.flatten()
    place = at.new_zeros(length).scatter_(0, at, torch.arange(len(at), device=at.device))
    selected = input.reshape(-1)[place] if dim is None else input.index_select(dim, place)
    results = (selected, *([inverse] if options.get("return_inverse") else []), *counts)
    return results if len(results) > 1 else selected


@rule("as_strided_")
def as_strided_(*args: Any, **kwargs: Any) -> Any:
    raise Unsupported("as_strided_", "it changes the shape of a tensor in place")
