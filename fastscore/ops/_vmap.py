"""A rule for ``torch.func.vmap`` that calls an op once for each slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import describe, fail
from fastscore.ops._library import ops, refuse_gradients

Dims = tuple[Any, ...]  # of each argument: a number, None, or those of a list's tensors


def map_slices(*names: str) -> None:
    """Gives ops of ``torch.ops.fastscore`` such a rule.

    Noise goes by an element's place in its slice, so that a slice is what it would be alone, and
    slices that share a key share their noise.
    """
    for name in names:
        if getattr(ops, name).default._schema.is_mutable:
            _map_in_place(name)
        else:
            _map_functional(name)


def _slice(args: Sequence[Any], dims: Dims, i: int) -> list[Any]:
    return [_slice_of(x, dim, i) for x, dim in zip(args, dims, strict=True)]


def _slice_of(x: Any, dim: Any, i: int) -> Any:
    if isinstance(x, (list, tuple)) and dim is not None:
        return _slice(x, dim, i)
    return x if dim is None else x.select(dim, i)


def _zeros(x: Any, dim: Any) -> Any:
    """Arguments of one slice of zeros."""
    if isinstance(x, (list, tuple)) and dim is not None:
        return [_zeros(*pair) for pair in zip(x, dim, strict=True)]
    return x if dim is None else x.new_zeros(x.movedim(dim, 0).shape[1:]).unsqueeze(dim)


def _map_functional(name: str) -> None:
    op = getattr(ops, name).default

    @torch.library.register_vmap(f"fastscore::{name}")
    def _(info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
        count = info.batch_size
        if count == 0:  # the shapes of the results are those of a slice of zeros
            args = tuple(_zeros(*pair) for pair in zip(args, dims, strict=True))
        results = [op(*_slice(args, dims, i)) for i in range(max(count, 1))]
        if isinstance(results[0], tuple):
            stacked = (torch.stack(each)[:count] for each in zip(*results, strict=True))
            return tuple(stacked), (0,) * len(results[0])
        return torch.stack(results)[:count], 0


def _map_in_place(name: str) -> None:
    op = getattr(ops, name).default
    arguments = op._schema.arguments
    names = [argument.name for argument in arguments]
    changed = [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    fn = name.removeprefix("random_")

    @torch.library.register_vmap(f"fastscore::{name}")
    def _(info: Any, dims: Dims, *args: Any) -> tuple[None, None]:
        written = [i for i in changed if i < len(args) and args[i] is not None]
        for i in written:
            _check_slices(fn, names[i], args[i], dims[i])
        # What vmap wraps shows neither its gradients nor, to autograd, that it changes.
        refuse_gradients(fn, names, args)
        for i in range(info.batch_size):
            op(*_slice(args, dims, i))
        if not torch.compiler.is_compiling():
            torch._C._increment_version(tuple(args[i] for i in written))
        return None, None


def _check_slices(fn: str, name: str, out: Tensor, dim: int | None) -> None:
    """Of a tensor that an op changes: each slice is one of its own."""
    if dim is None:
        expected = "mapped by vmap, as other arguments are"
        fail(fn, name, expected, "one tensor that every slice would change")
    if _slices_share_memory(out, dim):
        expected = "a tensor whose slices have memory of their own"
        fail(fn, name, expected, f"{describe(out)} with strides {out.stride()}")


def _slices_share_memory(x: Tensor, dim: int) -> bool:
    """Those of an expanded tensor. Windows that overlap are not looked for."""
    return x.shape[dim] > 1 and x.stride(dim) == 0
