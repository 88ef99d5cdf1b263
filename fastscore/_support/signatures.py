"""Signatures as they are written: what ``help`` and ``inspect.signature`` show of annotations.

Annotations are strings in the modules of this package, which Python shows in quotes, and types in
the TypedDicts of shared options, which it shows with the modules that they come from:
``'Tensor'`` and ``collections.abc.Sequence[int]`` become ``Tensor`` and ``Sequence[int]``.
"""

from __future__ import annotations

import inspect
import re
from types import FunctionType, ModuleType
from typing import Any

# Whose names the sources import on their own; all others stand with their module, as in the source.
_MODULES = re.compile(r"\b(?:collections\.abc|typing|typing_extensions|fastscore[\w.]*)\.(?=\w)")
_NAMES = {"torch._C.Generator": "torch.Generator", "torch.Tensor": "Tensor"}


class Written(str):
    """An annotation, shown as it is written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def written(annotation: Any) -> Any:
    """An annotation, a string or a type, as it would be written; none at all stays none.

    >>> from collections.abc import Sequence
    >>> import torch
    >>> written("Tensor | None"), written(Sequence[int] | torch.Tensor | None)
    (Tensor | None, Sequence[int] | Tensor | None)
    """
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = _MODULES.sub("", text)
    for long, short in _NAMES.items():
        text = text.replace(long, short)
    return Written(text)


def show_as_written(module: ModuleType) -> None:
    """Let all that a module and its rooms make public show its annotations as they are written."""
    for name in getattr(module, "__all__", ()):
        public = getattr(module, name)
        if isinstance(public, ModuleType):
            show_as_written(public)
        elif isinstance(public, type):
            for cls in public.__mro__:
                if cls.__module__.startswith("fastscore."):
                    _show_members(cls)
        elif callable(public):
            _show(public)


def _show_members(cls: type) -> None:
    for member in vars(cls).values():
        if isinstance(member, property):
            member = member.fget
        _show(getattr(member, "__func__", member))  # behind a staticmethod or classmethod


def _show(function: Any) -> None:
    """In place, also of what a decorator wraps: the values remain strings of the same meaning."""
    while isinstance(function, FunctionType):
        annotations = function.__annotations__
        annotations.update({name: written(text) for name, text in annotations.items()})
        function = getattr(function, "__wrapped__", None)
