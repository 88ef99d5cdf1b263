"""The family ``runge_kutta``: what an explicit Runge-Kutta method does beside evaluations.

    rk_stage      c_0 x + sum_j c_j k_j              read x and the slopes, write the stage
    rk_error      RMS of the scaled error            read x, new and the slopes
    rk_advance_   accept, and start the next step    read and write x and the first slope

Each sample has its own step, so coefficients may be its own. No op here has a derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_sequence, fail
from fastscore._support.tangents import refuse_tangents
from fastscore.ops._library import call, call_, check_same_device, ops, refuse_gradients
from fastscore.ops._vmap import map_slices


def rk_stage(
    x: Tensor, slopes: Sequence[Tensor], coefficients: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """c_0 x + sum_j c_j k_j in one pass, into ``out`` or a new tensor; returns it.

    Args:
        x: state, (batch, ...), any strides; float32 or float64.
        slopes: 1 to 7 tensors of x's shape, all of x's dtype, or of half precision where x is
            float32.
        coefficients: float64 (n + 1,) on x's device, or (batch, n + 1) for those of each sample.
            Where one is 0, what its tensor holds plays no part.
        out: of x's shape and dtype; may be x itself, or one of the slopes.

    Raises:
        TypeError, ValueError: an argument does not fit, or requires grad.

    Hairer, Norsett and Wanner 1993, "Solving Ordinary Differential Equations I", section II.1.

    >>> x, c = torch.ones(1, 2), torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    >>> rk_stage(x, (2 * x, -4 * x), c)
    tensor([[1., 1.]])
    """
    fn = "rk_stage"
    slopes = _listed(fn, slopes)
    _refuse_derivatives(fn, {"x": x}, slopes)
    if out is not None:
        return call_(fn, ops.rk_stage_.default, ("out",), out, x, slopes, coefficients)
    return call(fn, ops.rk_stage.default, x, slopes, coefficients)


def rk_error(
    x: Tensor, new: Tensor, slopes: Sequence[Tensor], coefficients: Tensor, tolerances: Tensor
) -> Tensor:
    """The norm of each sample's error, (batch,) float64: above 1, a step is to be made again.

    sqrt(mean(((e_0 x + sum_j e_j k_j) / (atol + rtol max(|x|, |new|)))^2)) over the sample's
    elements. Its bytes hang on the sample alone, not on the batch it is in. NaN where there is one
    in x, new or a slope; 0 of a sample without elements.

    Args:
        x, new: the state before the step and after it, (batch, ...); float32 or float64.
        slopes: as in :func:`rk_stage`.
        coefficients: e, float64 (n + 1,) or (batch, n + 1).
        tolerances: atol and rtol, float64 (2,) on x's device, or (batch, 2).

    Raises:
        TypeError, ValueError: an argument does not fit, or requires grad.

    Hairer, Norsett and Wanner 1993, section II.4.

    >>> x, e = torch.ones(1, 2), torch.tensor([0.0, 0.02], dtype=torch.float64)
    >>> rk_error(x, -x, (x,), e, torch.tensor([0.0, 0.01], dtype=torch.float64))
    tensor([2.], dtype=torch.float64)
    """
    fn = "rk_error"
    slopes = _listed(fn, slopes)
    _refuse_derivatives(fn, {"x": x, "new": new}, slopes)
    return call(fn, ops.rk_error.default, x, new, slopes, coefficients, tolerances)


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
    """Where a step is accepted, x becomes ``new`` and first becomes ``last``; returns x.

    The last slope of a step is the first of the next one (Dormand and Prince 1980). With ``out``,
    its first stage is made on the way: out = c_0 x + c_1 first, of the values after that.

    Args:
        x: state, (batch, ...), any strides; float32 or float64.
        first: slope at x; of x's dtype, or of half precision where x is float32.
        new, last: state and slope at the end of the step, of the dtypes of x and first.
        accepted: bool (batch,).
        out: of x's shape and dtype, with memory of its own or that of ``new``.
        coefficients: float64 (2,) on x's device, or (batch, 2); given with ``out``.

    Raises:
        TypeError, ValueError: an argument does not fit, or requires grad.

    >>> x, k = torch.zeros(2, 1), torch.zeros(2, 1)
    >>> rk_advance_(x, k, x + 1, k + 3, torch.tensor([True, False]))
    tensor([[1.],
            [0.]])
    """
    fn, op = "rk_advance_", ops.rk_advance_.default
    _refuse_derivatives(fn, {"x": x, "first": first, "new": new, "last": last}, ())
    call_(fn, op, ("out",), x, first, new, last, accepted, out, coefficients)
    if not torch.compiler.is_compiling():
        changed = (first,) if out is None else (first, out)
        torch._C._increment_version(changed)
    return x


def _listed(fn: str, slopes: Any) -> Sequence[Tensor]:
    """A list or a tuple, as the dispatcher takes them."""
    if isinstance(slopes, (list, tuple)):
        return slopes
    check_sequence(fn, "slopes", slopes, "tensors")
    return list(slopes)


def _refuse_derivatives(fn: str, named: dict[str, Tensor], slopes: Sequence[Tensor]) -> None:
    """Also in what torch.compile traces: it would drop the gradient without a word."""
    if torch.compiler.is_compiling():
        needed = any(t.requires_grad for t in (*named.values(), *slopes))
        if needed and torch.is_grad_enabled():
            names = ", ".join((*named, *(["slopes"] if slopes else [])))
            expected = "tensors that need no gradient (or call it under torch.no_grad())"
            fail(fn, names, expected, "one that requires grad")
        return
    refuse_gradients(fn, (*named, "slopes"), (*named.values(), slopes))
    refuse_tangents(fn, slopes)


map_slices("rk_stage", "rk_stage_", "rk_error", "rk_advance_")


def _same_device(fn: str, x: Tensor, slopes: Sequence[Tensor], **others: Tensor | None) -> None:
    check_same_device(fn, x, **others)
    for slope in slopes:
        check_same_device(fn, x, slopes=slope)


@torch.library.register_fake("fastscore::rk_stage")
def _(x, slopes, coefficients) -> Tensor:
    _same_device("rk_stage", x, slopes, coefficients=coefficients)
    return torch.empty_like(x)


@torch.library.register_fake("fastscore::rk_stage_")
def _(out, x, slopes, coefficients) -> None:
    _same_device("rk_stage", x, slopes, out=out, coefficients=coefficients)


@torch.library.register_fake("fastscore::rk_error")
def _(x, new, slopes, coefficients, tolerances) -> Tensor:
    like = {"new": new, "coefficients": coefficients, "tolerances": tolerances}
    _same_device("rk_error", x, slopes, **like)
    return x.new_empty(x.shape[:1], dtype=torch.float64)


@torch.library.register_fake("fastscore::rk_advance_")
def _(x, first, new, last, accepted, out=None, coefficients=None) -> None:
    like = {"first": first, "new": new, "last": last, "accepted": accepted, "out": out}
    check_same_device("rk_advance_", x, **like, coefficients=coefficients)
