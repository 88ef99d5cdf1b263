"""PyTorch's own forward mode over this library: refused where its tangents would be lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(fn: str, args: Iterable[Any]) -> None:
    """Refuse tensors with tangents of ``torch.autograd.forward_ad``; costs nothing without any."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    if any(isinstance(x, Tensor) and _has_tangent(x) for x in args):
        raise NotImplementedError(
            f"{fn}: has no derivative in PyTorch's forward mode (torch.autograd.forward_ad, "
            "torch.func.jvp); differentiate it by reverse mode, or a model by fastscore.jvps"
        )


def _has_tangent(x: Tensor) -> bool:
    while True:
        if x.is_floating_point() and forward_ad.unpack_dual(x).tangent is not None:
            return True
        # In torch.vmap the tangents belong to the tensor inside.
        if not torch._C._functorch.is_batchedtensor(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
