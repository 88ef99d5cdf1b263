"""Which way of taking the trace in sliced score matching is the cheapest for a network."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.known import known_of
from fastscore._support.rewind import untouched
from fastscore.derivatives.call import Call
from fastscore.derivatives.closed_form import NoClosedForm, jacobian
from fastscore.derivatives.forward.api import on_dual_tensors
from fastscore.derivatives.forward.state import Unsupported
from fastscore.derivatives.forward.tensor import DualTensor
from fastscore.derivatives.mixing import (
    mixes_samples,
    modes_of,
    samples_depend_on_one_another,
    two_probes,
)
from fastscore.derivatives.projections import Slicing
from fastscore.derivatives.traces import has_energy

MOST_SITUATIONS = 1000  # of a function written in place, around one network after the other
_LOGGER = logging.getLogger("fastscore")


def choose_method(
    call: Call, x: Tensor, slicing: Slicing, *, again: bool = False, mixed: bool = False
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
    call with ``again``, for a model that has changed; ``mixed`` says that its samples were found to
    depend on one another.
    """
    model = call.model
    remembered, normalised, modules = known_of(model), mixes_samples(model), modes_of(model)
    prediction = getattr(model, "net_prediction", None)  # of one network, maybe, in two losses
    situation = (x.shape[1:], x.dtype, x.device.type, slicing, normalised, modules, prediction)
    if again or situation not in remembered:
        if len(remembered) > MOST_SITUATIONS:
            remembered.clear()
        with torch.no_grad(), untouched(model, x), compiled_parts_run_eagerly():
            method, reason = _choose(call, x, slicing, mixed or normalised)
        _LOGGER.debug('%s: method "auto" is "%s" here: %s', call.fn, method, reason)
        remembered[situation] = method
    return remembered[situation]


def _choose(call: Call, x: Tensor, slicing: Slicing, mixed: bool) -> tuple[str, str]:
    """The method, and the reason in words."""
    if has_energy(call.model):
        return "reverse", "the model differentiates an energy"
    reason = "variance is not to be reduced"
    if mixed:
        reason = "samples depend on one another"
    elif slicing.variance_reduced:
        try:
            form = jacobian(call.model, x, *call.args, **call.kwargs)
            cost, projected = form.training_cost(), slicing.count * form.projection_cost()
            reason = f"closed-form trace of {cost:,} multiply-adds, projections {projected:,}"
            if cost <= projected:
                return "exact", reason
        except NoClosedForm as error:
            reason = f"no closed-form trace ({error})"
    exact = not mixed and slicing.variance_reduced and few_dimensions(x, slicing)
    probes = two_probes(x) if exact else torch.zeros_like(x).unsqueeze(0)
    try:
        result = on_dual_tensors(call, x, probes, lazy=False)
    except Unsupported as error:
        if exact:  # by tangents or by reverse mode, which finds mixed samples as well
            return "exact", f"{reason}; no more dimensions than projections"
        return "reverse", f"{reason}; no tangents through {error}"
    if exact:
        products = result.parts()[1] if isinstance(result, DualTensor) else result[1]
        if not samples_depend_on_one_another(products, x):
            return "exact", f"{reason}; no more dimensions than projections"
        reason = "samples depend on one another"
    return "forward", reason


def few_dimensions(x: Tensor, slicing: Slicing) -> bool:
    """Whether unit vectors, which give the exact trace, are no more than the projections."""
    return math.prod(x.shape[1:]) <= slicing.count
