"""What a model reaches: its modules, also those of functions, and their running statistics."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

# Code of these is not looked into: it names the whole library.
_LIBRARIES = ("torch", "fastscore", "numpy", "builtins")
_CONTAINERS = (list, tuple, set, frozenset)
_FOLLOWED = frozenset({FunctionType, MethodType, partial, list, tuple, dict})
_AT_MOST = 10_000  # objects: a function may name all that a program holds
_NAMES: dict[CodeType, tuple[str, ...]] = {}


def modules_of(model: Any) -> list[nn.Module]:
    """Every module that a model reaches, once.

    Those below a module, and those that a function has in its closure, its defaults, its
    ``partial`` arguments or the object that it is bound to, or that it names as globals.
    """
    return [x for x in _reached(model) if isinstance(x, nn.Module)]


def tensors_of(model: Any) -> list[Tensor]:
    """The tensors that a model reaches in the same ways; those of a module, all that it holds."""
    found: list[Tensor] = []
    for x in _reached(model):
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, nn.Module):
            held = (*vars(x).values(), *x._parameters.values(), *x._buffers.values())
            found.extend(value for value in held if isinstance(value, Tensor))
    return found


def _reached(model: Any) -> list[Any]:
    found: list[Any] = []
    seen: set[int] = set()
    left: list[Any] = [model]
    while left and len(seen) < _AT_MOST:
        x = left.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        found.append(x)
        if isinstance(x, nn.Module):
            if x._modules:
                left.extend(x._modules.values())
            if not _is_of_pytorch(type(x).__module__) or "forward" in vars(x):
                left.extend([value for value in vars(x).values() if type(value) in _FOLLOWED])
        elif x is not None:
            left.extend(_within(x))
    return found


@functools.cache
def _is_of_pytorch(module: str) -> bool:
    """Whether modules of a type from there hold others as their parts alone."""
    return module.startswith("torch.nn.")


def _within(x: Any) -> Iterator[Any]:
    """What an object that is not a module holds, as far as it may lead to one."""
    if isinstance(x, FunctionType):
        if x.__module__ is None or x.__module__.partition(".")[0] not in _LIBRARIES:
            yield from _held_by_function(x)
    elif isinstance(x, MethodType):
        yield x.__func__
        yield x.__self__
    elif isinstance(x, partial):
        yield x.func
        yield from x.args
        yield from x.keywords.values()
    elif isinstance(x, _CONTAINERS):
        yield from x
    elif isinstance(x, dict):
        yield from x.values()
    elif not isinstance(x, type) and type(x).__module__.partition(".")[0] not in _LIBRARIES:
        yield from getattr(x, "__dict__", {}).values()
        yield vars(type(x)).get("__call__")


def _held_by_function(f: FunctionType) -> Iterator[Any]:
    yield getattr(f, "__wrapped__", None)
    yield from f.__defaults__ or ()
    yield from (f.__kwdefaults__ or {}).values()
    for cell in f.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty as yet
            continue
    for name in _names(f.__code__):
        value = f.__globals__.get(name)
        if not inspect.ismodule(value):
            yield value


def _names(code: CodeType) -> tuple[str, ...]:
    """The names that a code object and the functions defined in it look up."""
    if code not in _NAMES:
        inner = (c for c in code.co_consts if isinstance(c, CodeType))
        _NAMES[code] = (*code.co_names, *(name for c in inner for name in _names(c)))
    return _NAMES[code]


class Statistics:
    """The running statistics of all that a model reaches in training, as they were."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.kept = [
            (buffer, buffer.clone())
            for module in modules_of(model)
            if module._buffers and module.training
            for buffer in module._buffers.values()
            if buffer is not None
        ]

    def restore(self) -> None:
        with torch.no_grad():
            for buffer, value in self.kept:
                _overwrite(buffer, value)


def _overwrite(buffer: Tensor, value: Tensor) -> None:
    if torch._C._are_functorch_transforms_active():  # which have no .data
        buffer.copy_(value)
    else:
        buffer.data.copy_(value)  # unseen by autograd, as a layer's own update of it is


@contextmanager
def same_statistics(model: Callable[..., Any]) -> Iterator[None]:
    """Leave the running statistics of a model in training alone."""
    kept = Statistics(model)
    try:
        yield
    finally:  # a checkpoint's second run ends by an exception
        kept.restore()
