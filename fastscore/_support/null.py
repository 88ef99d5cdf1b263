"""What stands for no condition among ``model_kwargs``: given in training, and in guidance."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastscore._support.checks import (
    check_device,
    check_tensor,
    describe,
    fail,
    fail_type,
    per_sample,
)

Null = Mapping[str, "Tensor | float"]
EXPECTED = 'a dictionary of what stands for no condition, as {"label": 10}'


def check_null(fn: str, null: Any) -> dict[str, Tensor | float]:
    """A null value, a number or a tensor, of each name."""
    if not isinstance(null, Mapping):
        fail_type(fn, "null", EXPECTED, null)
    checked: dict[str, Tensor | float] = {}
    for name, value in null.items():
        if not isinstance(name, str):
            fail_type(fn, "null", f"{EXPECTED}, with names that are strings", name)
        arg = f"null[{name!r}]"
        if isinstance(value, (numbers.Real, bool)):
            checked[name] = value  # type: ignore[assignment]
            continue
        check_tensor(fn, arg, value)
        if value.requires_grad:
            fail(fn, arg, "a tensor that needs no gradient", "one that requires grad")
        checked[name] = value
    return checked


def without_conditions(
    fn: str, model_kwargs: dict[str, Any], null: Null, batch: int, without: Tensor | None = None
) -> dict[str, Any]:
    """``model_kwargs`` with the null value of each name, of all samples, or where ``without`` is.

    Args:
        without: bool (batch,); None for all samples.

    Raises:
        ValueError: a name that is not among ``model_kwargs``; an entry that is no tensor of
            (batch, ...), a null value that is none of its samples' (another shape, device, or a
            broken number where the entry holds whole ones).
    """
    changed = dict(model_kwargs)
    for name, value in null.items():
        if name not in model_kwargs:
            got = ", ".join(map(repr, model_kwargs)) or "nothing"
            expected = f'given by name, as model_kwargs={{"{name}": ...}}, for null has one'
            fail(fn, name, expected, got)
        changed[name] = _replaced(fn, name, model_kwargs[name], value, batch, without)
    return changed


def _replaced(
    fn: str, name: str, entry: Any, value: Tensor | float, batch: int, without: Tensor | None
) -> Tensor:
    arg, expected = f"model_kwargs[{name!r}]", f"a tensor of shape ({batch}, ...), for null"
    if not isinstance(entry, Tensor):
        fail_type(fn, arg, expected, entry)
    if not entry.dim() or entry.shape[0] != batch:
        fail(fn, arg, expected, describe(entry))
    if without is not None:
        check_device(fn, arg, entry, without.device, "where x is")
    mask, arg = None if without is None else per_sample(without, entry), f"null[{name!r}]"
    whole = not (entry.is_floating_point() or entry.is_complex())
    if not isinstance(value, Tensor):
        if whole and value != int(value):
            fail(fn, arg, f"a whole number, for an entry of {entry.dtype}", value)
        return (
            entry.new_full(entry.shape, value) if mask is None else entry.masked_fill(mask, value)
        )
    if value.shape not in ((), entry.shape[1:]):
        fail(fn, arg, f"a number or a tensor of shape {tuple(entry.shape[1:])}", describe(value))
    if whole and (value.is_floating_point() or value.is_complex()):
        fail(fn, arg, f"of whole numbers, for an entry of {entry.dtype}", describe(value))
    check_device(fn, arg, value, entry.device, f"where model_kwargs[{name!r}] is")
    value = value.to(entry.dtype)
    return value.expand_as(entry) if mask is None else value.where(mask, entry)
