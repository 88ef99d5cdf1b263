"""Stand-ins until fastscore.operators is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import fail


def as_operator(fn: str, operator: Any) -> Any:
    missing = [n for n in ("A", "A_adjoint") if not callable(getattr(operator, n, None))]
    if missing:
        got = f"{type(operator).__name__}, without {' and '.join(missing)}"
        raise TypeError(f"{fn}: operator must be an object with A and A_adjoint, got {got}")
    return operator


def measured_shape(operator: Any, x: Tensor) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(operator.A(x.new_zeros(1, *x.shape[1:])).shape[1:])


def check_measurement(fn: str, operator: Any, x: Tensor, y: Tensor) -> Tensor:
    shape = measured_shape(operator, x)
    if tuple(y.shape) != (len(x), *shape):
        fail(fn, "measurement", f"of shape {(len(x), *shape)}", f"shape {tuple(y.shape)}")
    return y
