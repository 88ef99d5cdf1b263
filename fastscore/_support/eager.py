"""Compiled parts of a network where compiled code has no derivatives of the order asked for."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch


def compiled_parts_run_eagerly() -> contextlib.AbstractContextManager[Any]:
    """torch.compile can trace neither dual tensors nor, from outside, torch.func transforms.

    What it compiled has no second derivatives either.
    """
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
