"""Which way of taking the trace in sliced score matching is the cheapest for a network."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.known import known_of
from fastscore.derivatives.closed_form import NoClosedForm, jacobian
from fastscore.derivatives.forward.api import _on_dual_tensors
from fastscore.derivatives.forward.tensor import Unsupported
from fastscore.derivatives.projections import Slicing
from fastscore.derivatives.traces import has_energy, mixes_samples, untouched

_LOGGER = logging.getLogger("fastscore")


def choose_method(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    args: tuple[Any, ...],
    slicing: Slicing,
    *,
    again: bool = False,
) -> str:
    """The method that ``"auto"`` stands for, remembered for the model and the shape of a sample.

    Remembered, so that a last batch of fewer samples is estimated as the others are.

    Measured on the CPU, at equal numbers of multiply-adds all of them run at the rate of the matrix
    products, so that what counts is their number:

    * ``"exact"`` where the closed-form trace costs no more than the projections of this batch, and
      where there are as many projections as dimensions; only if variance is to be reduced, and of
      models whose samples do not depend on one another;
    * ``"reverse"`` for energies, whose Jacobian is symmetric and costs the same either way, and for
      models that tangents can't be carried through;
    * ``"forward"`` for everything else: it shares the score over all projections.

    The first call for a model runs it once or twice on ``x`` without recording gradients; so does a
    call with ``again``, for a model that has changed.
    """
    remembered = known_of(model)
    training = isinstance(model, nn.Module) and model.training
    mixed = mixes_samples(model)
    situation = (x.shape[1:], x.dtype, x.device.type, slicing, training, mixed)
    if again or situation not in remembered:
        with torch.no_grad(), untouched(model, x), compiled_parts_run_eagerly():
            method, reason = _choose(fn, model, x, args, slicing, mixed)
        _LOGGER.debug('%s: method "auto" is "%s" here: %s', fn, method, reason)
        remembered[situation] = method
    return remembered[situation]


def _choose(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    args: tuple[Any, ...],
    slicing: Slicing,
    mixed: bool,
) -> tuple[str, str]:
    """The method, and the reason in words."""
    if has_energy(model):
        return "reverse", "the model differentiates an energy"
    reason = "variance is not to be reduced"
    if mixed:
        reason = "samples depend on one another"
    elif slicing.variance_reduced:
        try:
            form = jacobian(model, x, *args)
            cost, projected = form.training_cost(), slicing.count * form.projection_cost()
            reason = f"closed-form trace of {cost:,} multiply-adds, projections {projected:,}"
            if cost <= projected:
                return "exact", reason
        except NoClosedForm as error:
            reason = f"no closed-form trace ({error})"
        if few_dimensions(x, slicing):
            return "exact", f"{reason}; no more dimensions than projections"
    try:
        _on_dual_tensors(fn, model, x, torch.zeros_like(x).unsqueeze(0), args, {}, False)
    except Unsupported as error:
        return "reverse", f"{reason}; no tangents through {error}"
    return "forward", reason


def few_dimensions(x: Tensor, slicing: Slicing) -> bool:
    """Whether unit vectors, which give the exact trace, are no more than the projections."""
    return math.prod(x.shape[1:]) <= slicing.count
