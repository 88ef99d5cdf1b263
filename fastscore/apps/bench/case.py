"""What is measured: a case, the sides that do its work, and the errors that may stop one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LIBRARY = "fastscore"
ROLES = ("library", "peer", "limit", "network")


class NotAvailable(Exception):
    """A side that can't take part here, and why: a package that is not installed, say."""


class Disagreement(ValueError):
    """A side that does not compute what the case says."""


@dataclass(frozen=True)
class Agreement:
    """How far a side is from what it should give.

    For ``kind="reference"`` the error is the largest absolute difference; for ``"statistics"`` it
    is the largest of several standard scores, each of which is about normal if all is well.
    """

    kind: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


@dataclass
class Side:
    """One way of doing a case's work, with its buffers, ready to be called again and again."""

    run: Callable[[], Any]
    check: Callable[[], Agreement] | None = None
    wait: Callable[[], Any] | None = None  # for what returns before it is done, on the CPU too
    bytes: int | None = None  # that one call moves at least, where not the case's
    memory: Callable[[], int] | None = None  # peak bytes, where PyTorch does not allocate


@dataclass(frozen=True)
class Candidate:
    """A side not yet made. ``make`` may raise ImportError or NotAvailable."""

    provider: str
    role: str
    make: Callable[[], Side]


@dataclass(frozen=True)
class Work:
    """The candidates of a case, the library first, and the least work that its operation needs."""

    candidates: list[Candidate]
    bytes: int | None = None  # read and written
    operations: float | None = None  # multiplications on 32-bit lanes, see limits.py
    stays: tuple[Tensor, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Case:
    """One operation at one size. ``build`` makes its inputs and candidates when it is its turn."""

    op: str
    family: str
    build: Callable[[Case], Work] = field(repr=False)
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    params: Mapping[str, Any] = field(default_factory=dict)  # steps, levels, projections, ...
    providers: tuple[str, ...] | None = None  # leave out all others; None: all
    threads: int | None = None  # None: what PyTorch has
    axis: str | None = None  # what a scaling case varies ...
    at: int | None = None  # ... and its value here
    clock: str = "auto"  # "host": calls and launches count; "auto": the kernel alone on a GPU
    memory_bytes: int = 0  # that its buffers need, where that may be too much for a machine
    weight: float = 1.0  # of its share of time

    @property
    def name(self) -> str:
        """A short unique name, such as ``langevin_step_-16777216-float32-cpu``."""
        size = "x".join(map(str, self.shape))
        parts = [self.op, size, str(self.dtype).removeprefix("torch."), self.device]
        parts += [f"{key}:{value}" for key, value in self.params.items()]
        if self.axis is not None and self.axis not in self.params:
            parts.append(f"{self.axis}:{self.at}")
        return "-".join(parts)

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()


def library(make: Callable[[], Side]) -> Candidate:
    """The library's own side."""
    return Candidate(LIBRARY, "library", make)


def peer(provider: str, make: Callable[[], Side]) -> Candidate:
    """What a user would write instead."""
    return Candidate(provider, "peer", make)


def limit(provider: str, make: Callable[[], Side]) -> Candidate:
    """A pass over memory that does nothing else."""
    return Candidate(provider, "limit", make)
