"""What every loss takes: each option declared, documented and given its default here, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypedDict

from torch import Tensor

from fastscore._support.checks import check_choice
from fastscore._support.common_options import KeyOptions, ModelOptions
from fastscore._support.options import Option
from fastscore.conditioning import LEVEL_CONDITIONINGS, LEVEL_PREDICTIONS, refuse_time

Weighting = str | Callable[[Tensor], Tensor]


class DrawOptions(ModelOptions, KeyOptions, total=False):
    """What may differ from call to call: levels, random numbers, a network's extra arguments."""

    levels: Annotated[
        Tensor | None,
        Option(
            None,
            """the noise level of each sample, as an index into ``sigmas``: (batch,), int64 in
            [0, L); drawn uniformly when None.""",
        ),
    ]
    labels: Annotated[
        Tensor | None,
        Option(
            None,
            """the old name of ``levels``, for one more version. Labels of classes go into
            ``model_kwargs``.""",
        ),
    ]


class LossOptions(TypedDict, total=False):
    """What makes one loss differ from another of its kind."""

    weighting: Annotated[
        Weighting,
        Option(
            "sigma2",
            """lambda(sigma): "sigma2", sigma^2; "none", 1; "likelihood", g(t)^2 of the
            variance-exploding SDE (Song, Durkan et al. 2021; exact form:
            ``fastscore.losses.dsm.likelihood_weighting``); or a function of the float64 tensor of
            sigmas that returns the L weights.""",
        ),
    ]
    conditioning: Annotated[
        str | None,
        Option(
            None,
            """how the model is called: "sigma" for ``model(x, sigma)``; "index" for NCSN's
            ``model(x, i)`` with int64 indices i, 0 for the largest sigma; "log_sigma"; or "none"
            for ``model(x)``. By default as the model's own attribute ``conditioning`` says, else
            "sigma" with sigmas, and "none" on clean data.""",
        ),
    ]
    prediction: Annotated[
        str | None,
        Option(
            None,
            """what the model returns at x~ = x + sigma z: "score"; "eps", an estimate of z; or
            "x0", one of x. By default what its own attribute ``prediction`` says, else "score".
            The samplers take the same.""",
        ),
    ]
    reduction: Annotated[
        str,
        Option("mean", '"mean" or "sum" over the batch, or "none" for the loss of each sample.'),
    ]


def check_call(fn: str, options: LossOptions) -> None:
    """What the caller says of how the model is called, before there is one."""
    conditioning, prediction = options["conditioning"], options["prediction"]
    refuse_time(fn, "conditioning", conditioning)
    if conditioning is not None:
        check_choice(fn, "conditioning", conditioning, LEVEL_CONDITIONINGS)
    refuse_time(fn, "prediction", prediction)
    if prediction is not None:
        check_choice(fn, "prediction", prediction, LEVEL_PREDICTIONS)


def shown(**options: object) -> str:
    """Options for ``repr``; what is left to the model is left out."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
