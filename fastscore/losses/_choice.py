"""Which way of taking the trace in sliced score matching is the cheapest for a network."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.closed_form import NoClosedForm, jacobian
from fastscore.jvp.api import _compiled_parts_run_eagerly, _on_dual_tensors
from fastscore.jvp.tensor import Unsupported
from fastscore.traces import has_energy

_LOGGER = logging.getLogger("fastscore")
_CHOICES: weakref.WeakKeyDictionary[Any, dict[Any, str]] = weakref.WeakKeyDictionary()


def choose_method(
    fn: str, model: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...], projections: int
) -> str:
    """The method that ``"auto"`` stands for, remembered for the model and the shape of its data.

    Measured on the CPU, at equal numbers of multiply-adds all of them run at the rate of the matrix
    products, so that what counts is their number:

    * ``"exact"`` where the closed-form trace costs no more than the projections, and where there
      are as many projections as dimensions;
    * ``"reverse"`` for energies, whose Jacobian is symmetric and costs the same either way, and for
      models that tangents can't be carried through;
    * ``"forward"`` for everything else: it shares the score over all projections.

    The first call for a model runs it once or twice on ``x`` without recording gradients.
    """
    remembered = _remembered(model)
    situation = (x.shape, x.dtype, x.device.type, projections)
    if situation not in remembered:
        with torch.no_grad(), _untouched(model, x), _compiled_parts_run_eagerly():
            method, reason = _choose(fn, model, x, args, projections)
        _LOGGER.debug('%s: method "auto" is "%s" here: %s', fn, method, reason)
        remembered[situation] = method
    return remembered[situation]


def _choose(
    fn: str, model: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...], projections: int
) -> tuple[str, str]:
    """The method, and the reason in words."""
    if has_energy(model):
        return "reverse", "the model differentiates an energy"
    try:
        form = jacobian(model, x, *args)
        cost, cost_of_projections = form.training_cost(), projections * form.projection_cost()
        reason = f"closed-form trace of {cost:,} multiply-adds, projections {cost_of_projections:,}"
        if cost <= cost_of_projections:
            return "exact", reason
    except NoClosedForm as error:
        reason = f"no closed-form trace ({error})"
    if math.prod(x.shape[1:]) <= projections:
        return "exact", f"{reason}; no more dimensions than projections"
    try:
        _on_dual_tensors(fn, model, x, torch.zeros_like(x).unsqueeze(0), args, {}, False)
    except Unsupported as error:
        return "reverse", f"{reason}; no tangents through {error}"
    return "forward", reason


def _remembered(model: Callable[..., Tensor]) -> dict[Any, str]:
    """The choices for this model; a function written in place is known by its code."""
    try:
        return _CHOICES.setdefault(getattr(model, "__code__", model), {})
    except TypeError:  # can't be hashed or referred to weakly
        return {}


@contextmanager
def _untouched(model: Callable[..., Tensor], x: Tensor) -> Iterator[None]:
    """Leave the model's buffers (running statistics) and the random number generators alone."""
    buffers = list(model.buffers()) if isinstance(model, nn.Module) and model.training else []
    kept = [buffer.clone() for buffer in buffers]
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
    for buffer, value in zip(buffers, kept, strict=True):
        buffer.copy_(value)
