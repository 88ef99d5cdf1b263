"""Loads the compiled library; everything that talks to ``torch.ops.fastscore`` imports this."""

from __future__ import annotations

import torch

try:
    from fastscore import _C
except ImportError as error:
    raise ImportError(
        "fastscore: the compiled extension fastscore._C could not be loaded "
        f"(torch {torch.__version__}): {error}. Build it with "
        "`pip install --no-build-isolation .` in a checkout, with the torch that you run."
    ) from error

ops = torch.ops.fastscore
__all__ = ["_C", "ops", "refuse_grad"]


def refuse_grad(fn: str, *tensors: torch.Tensor) -> None:
    """An in-place op has no derivative: say so instead of losing the gradient."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{fn}: its tensors must be without requires_grad (or call it under torch.no_grad()), "
            "got one that requires grad; the differentiable form is the one without underscore"
        )
