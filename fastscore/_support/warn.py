"""Warnings at the line of the user's that led to them."""

from __future__ import annotations

import sys
import warnings

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
