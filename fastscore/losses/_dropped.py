"""Conditions that are left out in training now and then, for classifier-free guidance.

Ho and Salimans 2021, https://arxiv.org/abs/2207.12598: one network learns both the conditional and
the unconditional score where a part of the samples gets a null condition.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastscore._support.checks import (
    check_device,
    check_number,
    check_tensor,
    describe,
    fail,
    fail_type,
    per_sample,
)

Null = Mapping[str, "Tensor | float"]


def check_null(fn: str, drop: Any, null: Any) -> tuple[float, dict[str, Tensor | float]]:
    """The part of the samples whose conditions are dropped, and what stands in their place."""
    part = check_number(fn, "drop", drop, minimum=0.0)
    if part > 1:
        fail(fn, "drop", "a probability, at most 1", part)
    expected = 'a dictionary of what stands for no condition, as {"label": 10}'
    if null is None:
        if part:
            fail(fn, "null", f"{expected}, with drop", None)
        return part, {}
    if not isinstance(null, Mapping):
        fail_type(fn, "null", expected, null)
    checked: dict[str, Tensor | float] = {}
    for name, value in null.items():
        if not isinstance(name, str):
            fail_type(fn, "null", f"{expected}, with names that are strings", name)
        arg = f"null[{name!r}]"
        if isinstance(value, (numbers.Real, bool)):
            checked[name] = value  # type: ignore[assignment]
            continue
        check_tensor(fn, arg, value)
        if value.requires_grad:
            fail(fn, arg, "a tensor that needs no gradient", "one that requires grad")
        checked[name] = value
    if part and not checked:
        fail(fn, "null", f"{expected}, with drop", "an empty one")
    return part, checked


def dropped(fn: str, model_kwargs: dict[str, Any], null: Null, without: Tensor) -> dict[str, Any]:
    """``model_kwargs`` with the null value of each name where ``without``, bool (batch,), is true.

    Raises:
        ValueError: a name that is not among ``model_kwargs``; an entry that is no tensor of
            (batch, ...), a null value that is none of its samples' (another shape, device, or a
            broken number where the entry holds whole ones).
    """
    changed = dict(model_kwargs)
    for name, value in null.items():
        if name not in model_kwargs:
            fail(fn, "null", f"of names in model_kwargs ({', '.join(model_kwargs)})", repr(name))
        changed[name] = _replaced(fn, name, model_kwargs[name], value, without)
    return changed


def _replaced(fn: str, name: str, entry: Any, value: Tensor | float, without: Tensor) -> Tensor:
    arg, expected = f"model_kwargs[{name!r}]", f"a tensor of shape ({len(without)}, ...), to drop"
    if not isinstance(entry, Tensor):
        fail_type(fn, arg, expected, entry)
    if not entry.dim() or entry.shape[0] != len(without):
        fail(fn, arg, expected, describe(entry))
    check_device(fn, arg, entry, without.device, "where x is")
    mask, arg = per_sample(without, entry), f"null[{name!r}]"
    whole = not (entry.is_floating_point() or entry.is_complex())
    if not isinstance(value, Tensor):
        if whole and value != int(value):
            fail(fn, arg, f"a whole number, for an entry of {entry.dtype}", value)
        return entry.masked_fill(mask, value)
    if value.shape not in ((), entry.shape[1:]):
        fail(fn, arg, f"a number or a tensor of shape {tuple(entry.shape[1:])}", describe(value))
    if whole and (value.is_floating_point() or value.is_complex()):
        fail(fn, arg, f"of whole numbers, for an entry of {entry.dtype}", describe(value))
    check_device(fn, arg, value, entry.device, f"where model_kwargs[{name!r}] is")
    return value.to(entry.dtype).where(mask, entry)
