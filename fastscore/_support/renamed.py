"""Arguments with a new name: the old one works for one more version, with a DeprecationWarning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastscore._support.warn import warn_caller


def with_new_names(fn: str, renamed: Mapping[str, str], kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` under their present names; ``renamed`` has the old names and the new.

    Raises:
        TypeError: an argument under both of its names.
    """
    if renamed.keys().isdisjoint(kwargs):
        return kwargs
    result = {}
    for name, value in kwargs.items():
        new = renamed.get(name, name)
        if new in result or (new != name and new in kwargs):
            raise TypeError(f"{fn}: {new} is given twice, also by its old name")
        if new != name:
            warn_caller(f"{fn}: {name}= is now {new}=", DeprecationWarning)
        result[new] = value
    return result
