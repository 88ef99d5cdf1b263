"""A process in a file: its name and its constants, in plain values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastscore._support.checks import fail
from fastscore.sde import DDPM, VE, VP, Cosine, Process, RectifiedFlow, SubVP

PROCESSES: dict[str, Any] = {
    kind.__name__: kind for kind in (VE, VP, SubVP, Cosine, DDPM, RectifiedFlow)
}
BETAS = "betas"  # of a DDPM: a tensor of the file


def process_record(fn: str, process: Process | None) -> dict[str, Any] | None:
    """Name and constants, but for the betas.

    Raises:
        ValueError: a process of somebody's own, which no name tells.

    Example:
        >>> process_record("save_checkpoint", VP())
        {'process': 'VP', 'beta_min': 0.1, 'beta_max': 20.0}
    """
    if process is None:
        return None
    if PROCESSES.get(type(process).__name__) is not type(process):
        fail(fn, "process", f"one of fastscore.sde: {', '.join(PROCESSES)}", repr(process))
    return {name: value for name, value in process.constants().items() if name != BETAS}


def process_from(record: dict[str, Any] | None, tensors: dict[str, Tensor]) -> Process | None:
    """The process of a file, whose betas are taken out of the tensors.

    Raises:
        ValueError, TypeError, KeyError: no process of that name, or not with these constants.
    """
    betas = tensors.pop(BETAS, None)
    if record is None:
        return None
    constants = dict(record)
    name = constants.pop("process")
    if name not in PROCESSES:
        raise ValueError(f"there is no process {name!r}")
    if betas is not None:
        constants[BETAS] = betas
    process: Process = PROCESSES[name](**constants)
    return process
