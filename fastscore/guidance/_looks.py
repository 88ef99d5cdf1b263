"""What a score is looked at for, once, before guidance goes through its derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastscore._support.checks import fail, largest, per_sample
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.explain import explained
from fastscore._support.inference import is_captured
from fastscore._support.known import known_of
from fastscore._support.reach import modules_of
from fastscore._support.rewind import Rewind
from fastscore.derivatives.call import Call
from fastscore.derivatives.mixing import far_apart, mixes_samples
from fastscore.guidance._denoised import (
    denoised,
    in_transform,
    refuse_half,
    signs_like,
    sum_of_products,
)
from fastscore.scores.adapters import Wrapper

# Of the comparison with differences: their step over the noise, at most, over what rounding spoils.
STEP, MOST_STEP, ROUNDED = 0.01, 0.1, 1e3
DISAGREE = 0.05  # smooth networks are 1e-5 to 5e-3 apart
ROUNDINGS = 20.0  # of the denoised mean, in a difference
LOST = 0.1  # of the score, by what half precision makes of the guidance


class Looks:
    """What has been looked at, of one guided score: again when a module changes its mode.

    Of a module it is remembered beyond the one: by the network, the adapters around it, its modes,
    the precision, and whether there was more than one sample to look at.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.modules: list[nn.Module] = []
        self.situation: Any = None
        self.differentiates = False  # whether the score takes a derivative itself

    def __deepcopy__(self, memo: Any) -> Looks:
        """Nothing is known of a copy."""
        return Looks()

    def __reduce__(self) -> Any:
        """Nor of what a file holds."""
        return Looks, ()

    def __call__(self, call: Call, x: Tensor, level: Tensor) -> None:
        """Look at the score at x, where that has not been done.

        Raises:
            ValueError: it draws random numbers, mixes its samples, has half precision, or is not
                differentiable in x, all of it.
        """
        model, modules = call.model, self.modules
        if model is self.model and _situation(modules, x) == self.situation:
            return
        modules = modules_of(model)
        self.differentiates = any(getattr(m, "differentiates_energy", False) for m in modules)
        if in_transform() or is_captured(x):
            return  # where no value can be looked at: the next call is
        if not x.numel():
            return
        situation = _situation(modules, x)
        seen, key = _seen_of(model, situation)
        if key not in seen:
            points = x.detach(), level.detach()
            if not look_at_score(call, *points, differentiates=self.differentiates):
                return
            seen.add(key)
        self.model, self.modules, self.situation = model, modules, situation


def _situation(modules: list[nn.Module], x: Tensor) -> tuple[Any, ...]:
    """What the answer may hang on beside the model."""
    kind = x.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return (*(m.training for m in modules), x.dtype, x.shape[1:], len(x) > 1, autocast)


def _seen_of(model: Any, situation: tuple[Any, ...]) -> tuple[set[Any], Any]:
    """How a network has been looked at, and this way of it; a function has no such memory."""
    adapters: list[str] = []
    while isinstance(model, Wrapper) and isinstance(model.inner, nn.Module):
        adapters.append(repr((type(model), model.net_conditioning, model.extra_repr())))
        model = model.inner
    key = (*adapters, *situation)
    if not isinstance(model, nn.Module):
        return set(), key
    seen: set[Any] = known_of(model).setdefault("guided", set())
    return seen, key


@torch.no_grad()
def look_at_score(call: Call, x: Tensor, level: Tensor, *, differentiates: bool) -> bool:
    """Refuse a score of which guidance would be wrong. Waits for the device.

    Returns whether there was a sample to compare derivatives at: none at the lowest noise.
    """
    fn = call.fn
    if isinstance(call.model, nn.Module) and mixes_samples(call.model):
        got = "one with a BatchNorm layer that takes the statistics of its batch (model.eval())"
        fail(fn, "score", "one whose samples do not depend on one another", got)
    before = Rewind(call.model, x)
    with explained(fn, call.model, x, "sigma", call.kwargs):
        output = call.output(x).clone()  # the model may use its memory again, below
    if before.has_drawn():
        before()
        expected = "a function of x alone, for its derivative is one of what it returns"
        fail(fn, "score", expected, "one that draws random numbers (dropout? model.eval())")
    refuse_half(fn, output)
    if len(x) > 1:
        changed = x.clone()
        changed[1::2] = 1 - 2 * x[1::2]
        if far_apart(output[::2], call.output(changed)[::2], largest(output[::2])):
            got = "one whose output for a sample changes with the others in its batch"
            fail(fn, "score", "one whose samples do not depend on one another", got)
    compared = _compare(call, x, level, differentiates=differentiates)
    before()
    return compared


def _compare(call: Call, x: Tensor, level: Tensor, *, differentiates: bool) -> bool:
    """v'(dD/dx)v by reverse mode with differences of D, and under autocast with float32."""

    def product() -> Tensor:
        at = denoised(call, x, level, differentiates=differentiates, once=True)
        return at.pulled(v).clone()

    def mean(point: Tensor) -> Tensor:
        return point.double() + per_sample(level.double().square(), x) * call.output(point)

    v = signs_like(x)
    along = product()
    kind = x.device.type
    if differentiates and bool((along == v).all()):  # exactly, for nothing was added
        got = "the gradient of an energy whose second derivatives are 0 (of ReLUs? a smooth "
        got += "activation has some)"
        fail(call.fn, "score", "differentiable in x", got)
    if torch.is_autocast_enabled(kind):
        rounded = along
        with torch.autocast(kind, enabled=False):
            along = product()
        lost = (sum_of_products(rounded - along, rounded - along) / x[0].numel()).sqrt() * level
        if float(lost.nan_to_num().max()) > LOST:
            got = "one whose derivative autocast rounds, by what is more than a tenth of the "
            got += "score (autocast off, or a network with c_skip, as of EDMDenoiser)"
            fail(call.fn, "score", "differentiable in float32 at high noise", got)
    with torch.autocast(kind, enabled=False), compiled_parts_run_eagerly():
        size_of_x = x.abs().reshape(len(x), -1).amax(1).double()
        epsilon = torch.finfo(x.dtype).eps
        step = torch.maximum(STEP * level, ROUNDED * epsilon * size_of_x)
        shift = v * per_sample(step.to(x.dtype), x)
        ahead = mean(x + shift)
        terms = v * (ahead - mean(x - shift)) / per_sample(2 * step, x)
    off = sum_of_products(v.double(), along.double() - v * terms).abs()
    size = sum_of_products(terms.abs(), torch.ones_like(terms))
    rounding = ROUNDINGS * epsilon * size_of_x / step * x[0].numel() ** 0.5
    good = (step <= MOST_STEP * level) & off.isfinite()
    worst = (off - DISAGREE * size - rounding)[good].sum()
    if bool(worst > 0):
        share = float(off[good].sum() / size[good].sum())
        got = f"one whose derivative by autograd and by differences are {share:.2g} of it apart "
        got += "(a part without a graph, as a gradient that is taken inside without "
        got += "create_graph=True; or half precision inside)"
        fail(call.fn, "score", "differentiable in x, all of it", got)
    return bool(good.any())
