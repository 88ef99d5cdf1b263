"""Functions of numbers whose bytes do not hang on how many others there are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LANES = 64  # what vectors of every instruction set divide


def alike_everywhere(
    function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor
) -> tuple[Tensor, ...]:
    """``function`` of each element of x: with the same bytes wherever in x it stands.

    PyTorch's loops on the CPU compute what fills no vector by other instructions, whose result may
    differ in the last bit.
    """
    missing = -x.numel() % LANES
    if not missing or x.device.type != "cpu":
        return function(x)
    flat = x.reshape(-1)
    results = function(torch.cat([flat, flat[-1:].expand(missing)]))
    return tuple(r[: x.numel()].view(*x.shape, *r.shape[1:]) for r in results)


def hypot_everywhere(x: Tensor, y: float) -> Tensor:
    """sqrt(x^2 + y^2) of each element of x, likewise."""
    return alike_everywhere(lambda each: (torch.hypot(each, torch.full_like(each, y)),), x)[0]
