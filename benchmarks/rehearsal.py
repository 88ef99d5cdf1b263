"""Rehearsing what is for a GPU: every op on tensors of the CPU by the CUDA kernels, emulated."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path


def kernels(rehearse: bool) -> AbstractContextManager[None]:
    """The device's own, or emulated ones if this is a rehearsal."""
    if not rehearse:
        return nullcontext()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from emulator import emulated

    return emulated()
