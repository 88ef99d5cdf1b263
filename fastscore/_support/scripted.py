"""TorchScript: compiled code that loses the tangents of forward-mode differentiation.

Its executor looks at a call or two, then fuses operations by rules that know of reverse mode alone.
A scripted method meets ``__torch_function__`` of its arguments, a scripted function meets nothing:
so their calls themselves are watched, for as long as somebody asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Check = Callable[[str, tuple[Any, ...], dict[str, Any]], None]

_KINDS = (torch._C.ScriptFunction, torch._C.ScriptMethod)
_ORIGINAL = {kind: kind.__dict__["__call__"] for kind in _KINDS}
_LOCK = threading.Lock()
_watching = 0


class _Local(threading.local):
    check: Check | None = None


_LOCAL = _Local()


@contextmanager
def scripted_calls(check: Check) -> Iterator[None]:
    """Calls of scripted code in this thread first go to ``check(name, args, kwargs)``."""
    before = _LOCAL.check
    _watch(1)
    _LOCAL.check = check
    try:
        yield
    finally:
        _LOCAL.check = before
        _watch(-1)


def _watch(change: int) -> None:
    global _watching
    with _LOCK:
        was, _watching = _watching, _watching + change
        if not was or not _watching:
            for kind in _KINDS:
                call = _watched(kind) if _watching else _ORIGINAL[kind]
                kind.__call__ = call  # type: ignore[method-assign]


def _watched(kind: Any) -> Callable[..., Any]:
    original = _ORIGINAL[kind]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _LOCAL.check is not None:
            _LOCAL.check(f"scripted code ({getattr(self, 'name', '?')})", args, kwargs)
        return original(self, *args, **kwargs)

    return call
