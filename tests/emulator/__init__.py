"""The CUDA kernels of this library, executed on the CPU: see README.md beside this file."""

from emulator.side import (
    HASHED,
    Counts,
    EmulationError,
    Kernel,
    Launch,
    Line,
    configured,
    counts,
    coverage,
    emulated,
    is_emulating,
    launches,
    load,
    op_names,
    run,
    why_not,
)

__all__ = [
    "HASHED",
    "Counts",
    "EmulationError",
    "Kernel",
    "Launch",
    "Line",
    "configured",
    "counts",
    "coverage",
    "emulated",
    "is_emulating",
    "launches",
    "load",
    "op_names",
    "run",
    "why_not",
]
