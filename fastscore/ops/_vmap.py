"""A rule for ``torch.func.vmap`` that calls an op once for each slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import describe, fail
from fastscore.ops._library import ops, refuse_gradients

Dims = tuple[int | None, ...]


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
    pairs = zip(args, dims, strict=True)
    return [x if dim is None else x.select(dim, i) for x, dim in pairs]


def _map_functional(name: str) -> None:
    op = getattr(ops, name).default

    @torch.library.register_vmap(f"fastscore::{name}")
    def _(info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
        count = info.batch_size
        if count == 0:  # the shapes of the results are those of a slice of zeros
            pairs = zip(args, dims, strict=True)
            args = tuple(
                x if dim is None else x.new_zeros(x.movedim(dim, 0).shape[1:]).unsqueeze(dim)
                for x, dim in pairs
            )
        results = [op(*_slice(args, dims, i)) for i in range(max(count, 1))]
        if isinstance(results[0], tuple):
            stacked = (torch.stack(each)[:count] for each in zip(*results, strict=True))
            return tuple(stacked), (0,) * len(results[0])
        return torch.stack(results)[:count], 0


def _map_in_place(name: str) -> None:
    op = getattr(ops, name).default
    fn = name.removeprefix("random_")
    arguments, changed = [], []
    for i, argument in enumerate(op._schema.arguments):
        arguments.append(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed.append(i)

    @torch.library.register_vmap(f"fastscore::{name}")
    def _(info: Any, dims: Dims, *args: Any) -> tuple[None, None]:
        outs = [i for i in changed if args[i] is not None]
        for i in outs:
            _check_slices(fn, arguments[i], args[i], dims[i])
        # What vmap wraps shows neither its gradients nor, to autograd, that it changes.
        refuse_gradients(fn, arguments, args)
        for i in range(info.batch_size):
            op(*_slice(args, dims, i))
        if not torch.compiler.is_compiling():
            torch._C._increment_version(tuple(args[i] for i in outs))
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
