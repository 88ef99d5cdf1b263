"""TorchScript: compiled code that loses the tangents of forward-mode differentiation.

Its executor looks at a call or two, then fuses operations by rules that know of reverse mode alone.
A scripted method meets ``__torch_function__`` of its arguments, a scripted function meets nothing:
so their calls themselves are watched, for as long as somebody asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

Check = Callable[[str, tuple[Any, ...], dict[str, Any]], None]

_KINDS = (torch._C.ScriptFunction, torch._C.ScriptMethod)
_LOCK = threading.Lock()
_runs = 0


class _Local(threading.local):
    check: Check | None = None


_LOCAL = _Local()


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _LOCAL.check is not None:
            _LOCAL.check(f"scripted code ({getattr(self, 'name', '?')})", args, kwargs)
        return original(self, *args, **kwargs)

    return call


_ORIGINAL = [kind.__dict__["__call__"] for kind in _KINDS]
_WATCHED = [_watched(original) for original in _ORIGINAL]


class scripted_calls:
    """Calls of scripted code in this thread first go to ``check(name, args, kwargs)``."""

    __slots__ = ("before", "check")

    def __init__(self, check: Check) -> None:
        self.check = check

    def __enter__(self) -> None:
        self.before, _LOCAL.check = _LOCAL.check, self.check
        _watch(1)

    def __exit__(self, *_: object) -> None:
        _watch(-1)
        _LOCAL.check = self.before


def _watch(change: int) -> None:
    global _runs
    with _LOCK:
        before, _runs = _runs, _runs + change
        if before and _runs:  # other runs, around this one or beside it
            return
        for kind, call in zip(_KINDS, _WATCHED if _runs else _ORIGINAL, strict=True):
            kind.__call__ = call  # type: ignore[method-assign]
