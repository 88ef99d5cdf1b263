"""What the losses of one model and clean or perturbed data share: levels, checks, reductions.

A score matching loss is an expectation over data x of a term of each sample. With noise levels it
is taken over perturbed data x~ = x + sigma_i z instead, weighted by lambda(sigma_i), as in
denoising score matching (Song and Ermon 2019, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_floating,
    check_int,
    check_sigmas,
    fail,
    fail_type,
)
from fastscore.conditioning import CONDITIONINGS, condition, explain_failure
from fastscore.derivatives.projections import Batch
from fastscore.losses.dsm import (
    REDUCTIONS,
    WEIGHTINGS,
    Loss,
    Weighting,
    _check_data,
    _check_labels,
    weights,
)
from fastscore.ops import perturb
from fastscore.ops.dsm import reduced
from fastscore.random import noise_key


class Levels(NamedTuple):
    """Noise levels, prepared: float64 tensors on the data's device."""

    sigmas: Tensor  # (L,)
    table: Tensor  # (L, 2), columns 1 and sigma, of ``perturb``
    weights: Tensor  # (L,), lambda(sigma)


# (fn, model, batch) -> the term of each sample, (batch,).
Estimator = Callable[[str, Callable[..., Tensor], Batch], Tensor]


def prepare_levels(fn: str, sigmas: Any, weighting: Weighting) -> Levels | None:
    """Check sigmas and weighting; None for clean data."""
    if sigmas is None:
        if not callable(weighting):
            check_choice(fn, "weighting", weighting, WEIGHTINGS, other="a function of the sigmas")
        return None
    values = check_sigmas(fn, sigmas).detach().double()
    table = torch.stack([torch.ones_like(values), values], dim=-1)
    return Levels(values, table, weights(fn, values, weighting))


def check_conditioning(fn: str, conditioning: str | None, levels: Levels | None) -> str:
    """The way the model is called; by default ``model(x)`` on clean data, else with sigma."""
    if conditioning is None:
        return "none" if levels is None else "sigma"
    check_choice(fn, "conditioning", conditioning, CONDITIONINGS)
    if levels is None and conditioning != "none":
        fail(fn, "conditioning", "'none' without sigmas", repr(conditioning))
    return conditioning


def expected_term(
    fn: str,
    estimator: Estimator,
    model: Callable[..., Tensor],
    x: Tensor,
    levels: Levels | None,
    *,
    labels: Tensor | None = None,
    conditioning: str,
    reduction: str,
    draws: bool = True,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
) -> Tensor:
    """The loss: the estimator's terms at x, or at perturbed x and weighted, and reduced.

    ``draws`` says whether the estimator itself draws random numbers.
    """
    check_floating(fn, "x", x, min_dim=1)
    check_choice(fn, "reduction", reduction, REDUCTIONS)
    check_int(fn, "sample_offset", sample_offset, minimum=0)
    if not callable(model):
        fail_type(fn, "model", "callable", model)
    _check_data(fn, x, x if levels is None else levels.sigmas)
    if labels is not None:
        if levels is None:
            fail(fn, "labels", "None without sigmas", "labels")
        _check_labels(fn, labels, x, len(levels.sigmas))
    if key is not None or draws or levels is not None:
        key = noise_key(fn, x, key, seed, generator)

    if levels is None:
        terms = _estimate(fn, estimator, model, Batch(x, (), None, key, sample_offset), "none")
    else:
        noisy, chosen = perturb(x, levels.table, key, labels=labels, sample_offset=sample_offset)
        valid = chosen
        if labels is not None and labels.device.type != "cpu":
            # A label out of range, unseen so far, has made its sample NaN; it must not read past
            # the sigmas, nor past an embedding of the model's, as well.
            valid = chosen.clamp(0, len(levels.sigmas) - 1)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        sigma = levels.sigmas.index_select(0, valid).to(dtype)
        args = condition(conditioning, sigma, valid)
        batch = Batch(noisy, args, sigma, key, sample_offset)
        terms = _estimate(fn, estimator, model, batch, conditioning)
        terms = terms * levels.weights.index_select(0, valid).to(terms.dtype)
    return reduced(terms, reduction)


def _estimate(
    fn: str, estimator: Estimator, model: Callable[..., Tensor], batch: Batch, conditioning: str
) -> Tensor:
    """The estimator's terms; a failure of the model's is explained where it can be."""
    if torch.compiler.is_compiling():
        return estimator(fn, model, batch)
    try:
        return estimator(fn, model, batch)
    except (RuntimeError, TypeError) as error:
        explain_failure(fn, model, batch.x, conditioning, error)
        raise


class ScoreMatchingModule(Loss):
    """A loss of this kind with its noise levels, if any, prepared once.

    Subclasses say how the term of a sample is estimated.
    """

    sigmas: Tensor | None
    draws = True  # whether the estimator draws random numbers

    def __init__(
        self,
        sigmas: Tensor | Sequence[float] | None,
        *,
        weighting: Weighting,
        conditioning: str | None,
        reduction: str,
    ) -> None:
        super().__init__()
        fn = type(self).__name__
        levels = prepare_levels(fn, sigmas, weighting)
        self.weighting = weighting
        self.conditioning = check_conditioning(fn, conditioning, levels)
        self.reduction = check_choice(fn, "reduction", reduction, REDUCTIONS)
        for name in Levels._fields:
            buffer = None if levels is None else getattr(levels, name)
            self.register_buffer(name, buffer, persistent=False)

    def _levels(self) -> Levels | None:
        return None if self.sigmas is None else Levels(self.sigmas, self.table, self.weights)

    def _estimate(self, fn: str, model: Callable[..., Tensor], batch: Batch) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        levels = 0 if self.sigmas is None else len(self.sigmas)
        return (
            f"levels={levels}, weighting={self.weighting!r}, reduction={self.reduction!r}, "
            f"conditioning={self.conditioning!r}"
        )

    def forward(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        *,
        labels: Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        """The loss of ``model`` on ``x``; see the function of the same name for the arguments."""
        return expected_term(
            type(self).__name__,
            self._estimate,
            model,
            x,
            self._levels(),
            labels=labels,
            conditioning=self.conditioning,
            reduction=self.reduction,
            draws=self.draws,
            seed=seed,
            generator=generator,
            key=key,
            sample_offset=sample_offset,
        )


def to_device(levels: Levels | None, x: Any) -> Levels | None:
    """The levels where the data are."""
    if levels is None or not isinstance(x, Tensor):
        return levels
    return Levels(*(table.to(x.device) for table in levels))
