"""What has been found out about a model, kept for as long as the model lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

_KNOWN: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def known_as(model: Any) -> Any:
    """The model; of what was made around it for one call, the model that it is made around."""
    return getattr(model, "known_as", model)


def known_of(model: Callable[..., Any]) -> dict[Any, Any]:
    """A dictionary of this model's own; a function written in place is known by its code."""
    while isinstance(model, partial):
        model = model.func
    model = known_as(model)
    if isinstance(model, MethodType):
        return known_of(model.__self__)  # type: ignore[arg-type]
    try:
        return _KNOWN.setdefault(getattr(model, "__code__", model), {})
    except TypeError:  # can't be hashed or referred to weakly
        return {}
