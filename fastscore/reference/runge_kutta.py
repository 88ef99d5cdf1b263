"""Runge-Kutta stages in pure PyTorch, of samples that each have their own step.

    stage    out = c_0 x + sum_j c_j k_j
    error    sqrt(mean(((e_0 x + sum_j e_j k_j) / (atol + rtol max(|x|, |new|)))^2))
    advance  where accepted:  x <- new,  first <- last;  and then  out = c_0 x + c_1 first

With c = (1, h a_1, h a_2, ...) the first is a stage of any explicit method (Hairer, Norsett and
Wanner 1993, II.1), and with e = (0, h (b_j - b*_j)) the second the error of an embedded pair
(II.4). A term whose coefficient is 0 plays no part, NaN or infinite as its tensor may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, fail
from fastscore.reference.langevin import compute_dtype, per_sample

MOST_SLOPES = 7


def combination(tensors: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """sum_j c_j t_j in the first tensor's compute dtype; coefficients (n,) or (batch, n)."""
    first = tensors[0]
    total = torch.zeros_like(first, dtype=compute_dtype(first.dtype))
    for tensor, c in zip(tensors, coefficients.unbind(-1), strict=True):
        c = per_sample(c, first)
        total = torch.where(c == 0, total, total + c * tensor.to(total.dtype))
    return total


def _check(fn: str, x: Tensor, slopes: Sequence[Tensor], coefficients: Tensor) -> None:
    if not 1 <= len(slopes) <= MOST_SLOPES:
        fail(fn, "slopes", f"1 to {MOST_SLOPES} tensors", len(slopes))
    width = 1 + len(slopes)
    if coefficients.shape not in ((width,), (x.shape[0], width)):
        expected = f"of shape ({width},) or ({x.shape[0]}, {width})"
        fail(fn, "coefficients", expected, tuple(coefficients.shape))
    check_choice(fn, "x's dtype", str(x.dtype), ("torch.float32", "torch.float64"))
    _refuse_gradients(fn, x, *slopes)


def _refuse_gradients(fn: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        fail(fn, "its tensors", "without requires_grad", "one that requires grad")


def rk_stage(
    x: Tensor, slopes: Sequence[Tensor], coefficients: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """c_0 x + sum_j c_j k_j, into ``out`` where there is one.

    x is float32 or float64, (batch, ...); ``slopes`` are 1 to 7 tensors of x's shape, all of x's
    dtype or, for float32, of half precision; ``coefficients`` float64 (n + 1,) or (batch, n + 1).
    """
    _check("rk_stage", x, slopes, coefficients)
    total = combination([x, *slopes], coefficients)
    return total if out is None else out.copy_(total)


def rk_error(
    x: Tensor, new: Tensor, slopes: Sequence[Tensor], coefficients: Tensor, tolerances: Tensor
) -> Tensor:
    """The error norm of each sample, float64 (batch,); 0 where a sample has no elements.

    ``tolerances`` are float64, (2,) or (batch, 2): atol and rtol.
    """
    _check("rk_error", x, slopes, coefficients)
    _refuse_gradients("rk_error", new)
    error = combination([x, *slopes], coefficients)
    atol, rtol = (per_sample(t, x) for t in tolerances.unbind(-1))
    ratio = error / (atol + rtol * torch.maximum(x.abs(), new.abs()))
    size = math.prod(x.shape[1:])
    squares = ratio.square().reshape(x.shape[0], size).sum(1, dtype=torch.float64)
    return (squares / max(size, 1)).sqrt()


def rk_advance_(
    x: Tensor,
    first: Tensor,
    new: Tensor,
    last: Tensor,
    accepted: Tensor,
    *,
    out: Tensor | None = None,
    coefficients: Tensor | None = None,
) -> Tensor:
    """Where ``accepted``, bool (batch,): x becomes ``new``, and first becomes ``last``; returns x.

    Then ``out`` becomes c_0 x + c_1 first, the next step's first stage: ``coefficients`` are
    float64, (2,) or (batch, 2), and given with ``out``.
    """
    _refuse_gradients("rk_advance_", x, first, new, last)
    if (out is None) != (coefficients is None):
        given = "out" if coefficients is None else "coefficients"
        fail("rk_advance_", "out and coefficients", "given together", f"{given} alone")
    mask = accepted.reshape(-1, *[1] * (x.dim() - 1))
    x.copy_(torch.where(mask, new, x))
    first.copy_(torch.where(mask, last, first))
    if out is not None and coefficients is not None:
        out.copy_(combination([x, first], coefficients))
    return x
