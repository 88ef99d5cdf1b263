"""Arguments with a new name: the old one works for one more version, with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch

_OURS = ("fastscore.", "torch.")


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line outside of this library and of PyTorch that led here."""
    if torch.compiler.is_compiling():  # which sees no frames
        return
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)


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
