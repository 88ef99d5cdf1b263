"""Inputs that several families share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore.apps.bench.case import Case

BUFFERS = 12  # arrays of a case's size that all its sides together may need at once


def size(elements: int, bytes_per_element: int = 4, buffers: int = BUFFERS) -> dict[str, Any]:
    """The field ``memory_bytes`` of a case."""
    return {"memory_bytes": elements * bytes_per_element * buffers}


def empty(case: Case) -> Tensor:
    return torch.empty(case.shape, dtype=case.dtype, device=case.device)


def normal(case: Case, *leading: int, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normals of the case's shape, after ``leading`` dimensions."""
    return torch.randn((*leading, *case.shape), dtype=dtype or case.dtype, device=case.device)


def table(*rows: tuple[float, ...], device: str) -> Tensor:
    """A table of coefficients as the ops take it."""
    return torch.tensor(rows, dtype=torch.float64, device=device)
