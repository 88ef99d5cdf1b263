"""The extra arguments of a network: classes, context, molecules.

Every loss, sampler and derivative takes them as ``model_kwargs``, a dictionary of keyword
arguments that the network is called with each time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastscore._support.checks import describe, fail_type

ModelKwargs = Mapping[str, Any] | None


def check_model_kwargs(fn: str, model_kwargs: Any) -> dict[str, Any]:
    """A dictionary of keyword arguments; empty for None."""
    if model_kwargs is None:
        return {}
    expected = "a dictionary of keyword arguments, or None"
    if not isinstance(model_kwargs, Mapping):
        fail_type(fn, "model_kwargs", expected, model_kwargs)
    for name in model_kwargs:
        if not isinstance(name, str):
            fail_type(fn, "model_kwargs", f"{expected}, with names that are strings", name)
    return dict(model_kwargs)


class Shared:
    """What :func:`shared` returns."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        value = describe(self.value) if isinstance(self.value, Tensor) else repr(self.value)
        return f"shared({value})"


def shared(value: Any) -> Any:
    """Mark an entry of ``model_kwargs`` as one for the whole batch, whatever its first size is.

    A tensor among ``model_kwargs`` whose first size is the batch's belongs to the samples, and goes
    with them where a method repeats or splits the batch. Where that size is a coincidence, as of a
    table of 64 embeddings beside 64 samples, say so:

    >>> import torch, fastscore
    >>> table, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 3])
    >>> model = lambda x, table, labels: table[labels] - x
    >>> x, model_kwargs = torch.zeros(4, 2), {"table": fastscore.shared(table), "labels": labels}
    >>> fastscore.ssm_loss(
    ...     model, x, method="finite_difference", model_kwargs=model_kwargs
    ... ).isfinite()
    tensor(True)
    """
    return Shared(value)


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A dictionary, list or tuple with ``change`` applied to its entries; itself if none changes.

    A class of its own is kept. Anything else is returned as it is.
    """
    if isinstance(value, dict):
        changed = {name: change(entry) for name, entry in value.items()}
        if all(changed[name] is entry for name, entry in value.items()):
            return value
        if type(value) is dict:  # torch.compile can't trace a copy
            return changed
        result = copy.copy(value)
        result.update(changed)
        return result
    if type(value) is list or isinstance(value, tuple):
        entries = [change(entry) for entry in value]
        if all(new is old for new, old in zip(entries, value, strict=True)):
            return value
        if hasattr(value, "_make"):  # a named tuple
            return value._make(entries)
        return type(value)(entries)
    return value


def per_batch(
    kwargs: dict[str, Any], batch: int, change: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """``kwargs`` with ``change`` applied to each tensor whose first size is ``batch``.

    Dictionaries, lists and tuples in it are walked, what is :func:`shared` is left as it is, and so
    is anything else.
    """

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            belongs = value.dim() > 0 and value.shape[0] == batch
            return change(value) if belongs else value
        return rebuilt(value, walk)

    return {name: walk(value) for name, value in kwargs.items()}
