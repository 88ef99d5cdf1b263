"""Saying, once, which function a model could not be given tangents through."""

from __future__ import annotations

from fastscore._support.warn import warn_caller

_WARNED: set[str] = set()


def warn_once(function: str, message: str) -> None:
    """Warn about ``function``, once in a process, at the line of the caller's that led to it."""
    if function not in _WARNED:
        _WARNED.add(function)
        warn_caller(f"fastscore.jvp: {function} {message}", UserWarning)
