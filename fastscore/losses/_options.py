"""What every loss takes: each option declared, documented and given its default here, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypedDict

from torch import Tensor

from fastscore._support.common_options import KeyOptions, ModelOptions
from fastscore._support.options import Option

Weighting = str | Callable[[Tensor], Tensor]


class DrawOptions(ModelOptions, KeyOptions, total=False):
    """What may differ from call to call: levels, random numbers, a network's extra arguments."""

    labels: Annotated[
        Tensor | None,
        Option(
            None,
            """the noise level of each sample, (batch,), int64 in [0, L); drawn uniformly when
            None.""",
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
            ``model(x, labels)`` with int64 labels, 0 for the largest sigma; "log_sigma"; or "none"
            for ``model(x)``. By default "sigma" with sigmas, and "none" on clean data.""",
        ),
    ]
    reduction: Annotated[
        str,
        Option("mean", '"mean" or "sum" over the batch, or "none" for the loss of each sample.'),
    ]
