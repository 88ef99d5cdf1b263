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
from typing_extensions import Unpack

from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_floating,
    check_sigmas,
    fail,
)
from fastscore._support.explain import explained
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.options import takes_options
from fastscore.conditioning import (
    as_score,
    call_model,
    condition,
    conditioning_of,
    prediction_of,
)
from fastscore.derivatives.call import Call
from fastscore.derivatives.projections import Batch
from fastscore.losses._options import DrawOptions, LossOptions, check_call, shown
from fastscore.losses._perturbed import (
    check_data,
    check_levels,
    noise_key,
    perturbed,
    with_levels,
)
from fastscore.losses.dsm import REDUCTIONS, WEIGHTINGS, Loss, weights
from fastscore.ops.dsm import reduced


class Levels(NamedTuple):
    """Noise levels, prepared: float64 tensors on the data's device."""

    sigmas: Tensor  # (L,)
    table: Tensor  # (L, 2), columns 1 and sigma, of ``perturb``
    weights: Tensor  # (L,), lambda(sigma)


Estimator = Callable[[Batch], Tensor]  # the term of each sample, (batch,)


def prepare_levels(fn: str, sigmas: Any, options: LossOptions) -> Levels | None:
    """Check sigmas, weighting and reduction; None for clean data."""
    weighting = options["weighting"]
    check_choice(fn, "reduction", options["reduction"], REDUCTIONS)
    if sigmas is None:
        if not callable(weighting):
            check_choice(fn, "weighting", weighting, WEIGHTINGS, other="a function of the sigmas")
        return None
    values = check_sigmas(fn, sigmas).detach().double()
    table = torch.stack([torch.ones_like(values), values], dim=-1)
    return Levels(values, table, weights(fn, values, weighting))


class How(NamedTuple):
    """How the model is called, what it returns, and how the terms are reduced; checked."""

    conditioning: str | None
    prediction: str | None
    reduction: str

    @classmethod
    def of(cls, fn: str, options: LossOptions, *, clean: bool) -> How:
        """As the options say; ``clean`` is whether there are no noise levels."""
        check_call(fn, options)
        how = cls(options["conditioning"], options["prediction"], options["reduction"])
        if clean and how.conditioning not in (None, "none"):
            fail(fn, "conditioning", "'none' without sigmas", repr(how.conditioning))
        if clean and how.prediction not in (None, "score"):
            fail(fn, "prediction", "'score' without sigmas", repr(how.prediction))
        return how

    def for_model(self, fn: str, model: Any, *, clean: bool) -> How:
        """With what the model says of itself."""
        default = "none" if clean else "sigma"
        conditioning = conditioning_of(fn, model, self.conditioning, default)
        prediction = prediction_of(fn, model, self.prediction)
        if clean and (conditioning, prediction) != ("none", "score"):
            expected = f"given for a model of {conditioning=}, {prediction=}"
            if prediction == "score":
                expected += ' (one of x alone is of conditioning="none")'
            fail(fn, "sigmas", expected, None)
        return How(conditioning, prediction, self.reduction)


class _AsScore(torch.nn.Module):
    """A network as a score of (x, sigma, index), for one call on behalf of ``fn``.

    What is known of it is known of the network. No level is looked for, as an adapter does.
    """

    def __init__(self, fn: str, net: Callable[..., Tensor], how: How) -> None:
        super().__init__()
        self.fn, self.net = fn, net
        self.net_conditioning, self.net_prediction = str(how.conditioning), str(how.prediction)

    @property
    def known_as(self) -> Callable[..., Tensor]:
        return self.net

    def forward(self, x: Tensor, sigma: Tensor, index: Tensor, **model_kwargs: Any) -> Tensor:
        how = self.net_conditioning
        output = call_model(self.fn, self.net, x, sigma, index, how, model_kwargs)
        return as_score(self.net_prediction, output, x, sigma).to(x.dtype)


def expected_term(
    fn: str,
    estimator: Estimator,
    model: Callable[..., Tensor],
    x: Tensor,
    levels: Levels | None,
    how: How,
    draws: DrawOptions,
    *,
    random_terms: bool = True,
) -> Tensor:
    """The loss: the estimator's terms at x, or at perturbed x and weighted, and reduced.

    ``random_terms`` says whether the estimator itself draws random numbers.
    """
    check_floating(fn, "x", x, min_dim=1)
    check_callable(fn, "model", model)
    model_kwargs = check_model_kwargs(fn, draws["model_kwargs"])
    conditioning, prediction, reduction = how.for_model(fn, model, clean=levels is None)
    check_data(fn, x, x if levels is None else levels.sigmas)
    draws = with_levels(fn, model, str(conditioning), draws)
    check_levels(fn, draws, x, 0 if levels is None else len(levels.sigmas))
    numbering = draws["sample_offset"], draws["samples"]
    if levels is None:
        key = noise_key(fn, x, draws) if random_terms or draws["key"] is not None else None
        batch = Batch(x, Call(fn, model, (), model_kwargs, True), None, key, *numbering)
        with explained(fn, model, x, str(conditioning), model_kwargs):
            return reduced(estimator(batch), reduction)
    key = noise_key(fn, x, draws)
    at = perturbed(x, levels.sigmas, levels.table, key, draws)
    if prediction == "score":
        args = condition(str(conditioning), at.sigma, at.levels)
        call = Call(fn, model, args, model_kwargs, True)
    else:
        score = _AsScore(fn, model, How(conditioning, prediction, reduction))
        call = Call(fn, score, (at.sigma, at.levels), model_kwargs, True)
    with explained(fn, model, x, str(conditioning), model_kwargs):
        terms = estimator(Batch(at.x, call, at.sigma, key, *numbering))
    return reduced(terms * levels.weights.index_select(0, at.levels).to(terms.dtype), reduction)


class ScoreMatchingModule(Loss):
    """A loss of this kind with its noise levels, if any, prepared once.

    Subclasses say how the term of a sample is estimated.
    """

    sigmas: Tensor | None
    random_terms = True  # whether the estimator draws random numbers

    def __init__(self, sigmas: Tensor | Sequence[float] | None, options: LossOptions) -> None:
        """See the class."""
        super().__init__()
        fn = type(self).__name__
        levels = prepare_levels(fn, sigmas, options)
        self.weighting = options["weighting"]
        self.how = How.of(fn, options, clean=levels is None)
        self.conditioning, self.prediction, self.reduction = self.how
        for name in Levels._fields:
            buffer = None if levels is None else getattr(levels, name)
            self.register_buffer(name, buffer, persistent=False)

    def _levels(self) -> Levels | None:
        if self.sigmas is None:
            return None
        return Levels(*(self.get_buffer(name) for name in Levels._fields))

    def _estimate(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return shown(
            levels=0 if self.sigmas is None else len(self.sigmas),
            weighting=self.weighting,
            **self.how._asdict(),
        )

    @takes_options(DrawOptions)
    def forward(
        self, model: Callable[..., Tensor], x: Tensor, **draws: Unpack[DrawOptions]
    ) -> Tensor:
        """The loss of ``model`` on ``x``; see the function of the same name for the arguments."""
        return expected_term(
            type(self).__name__,
            self._estimate,
            model,
            x,
            self._levels(),
            self.how,
            draws,
            random_terms=self.random_terms,
        )


def to_device(levels: Levels | None, x: Any) -> Levels | None:
    """The levels where the data are."""
    if levels is None or not isinstance(x, Tensor):
        return levels
    return Levels(*(table.to(x.device) for table in levels))
