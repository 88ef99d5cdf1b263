"""Saying, once, which function a model could not be given tangents through."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

_WARNED: set[str] = set()
_LIBRARIES = tuple(
    str(Path(f).parents[n]) + os.sep for f, n in ((__file__, 2), (torch.__file__, 0))
)


def warn_once(function: str, message: str) -> None:
    """Warn about ``function``, once in a process, at the line of the caller's that led to it."""
    if function in _WARNED:
        return
    _WARNED.add(function)
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"fastscore.jvp: {function} {message}", UserWarning, stacklevel=level)
