"""What the loss of a process takes: each option declared and documented once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypedDict

from torch import Tensor

from fastscore._support.common_options import KeyOptions, ModelOptions
from fastscore._support.options import Option
from fastscore.losses._dropped import DropOptions

WEIGHTINGS = ("sigma2", "likelihood", "edm", "min_snr", "output")

SDEWeighting = str | Callable[[Tensor], Tensor]


class SDEDrawOptions(ModelOptions, KeyOptions, total=False):
    """What may differ from call to call: times, random numbers, a network's extra arguments."""

    t: Annotated[
        Tensor | float | None,
        Option(
            None,
            """the time of each sample, (batch,), or of all, from the process's ``t_eps`` to its
            ``t_max``; drawn as ``times`` says when None.""",
        ),
    ]


class TimesOptions(TypedDict, total=False):
    """At which times samples are perturbed."""

    times: Annotated[
        str,
        Option(
            "uniform",
            """"uniform" from the process's ``t_eps`` to its ``t_max``; "log_uniform", uniform in
            log s between the levels there, s = sigma/alpha; "log_normal", log s from
            N(log_mean, log_std^2) restricted to that range (Karras et al. 2022).""",
        ),
    ]
    stratified: Annotated[
        bool,
        Option(
            True,
            """spread the times of a batch evenly over their distribution, for less variance (as
            Kingma et al. 2021): each is drawn as before, they are not independent. False for
            independent ones, as they are where each sample has a seed of its own.""",
        ),
    ]
    log_mean: Annotated[float, Option(-1.2, 'of log s, for times="log_normal".')]
    log_std: Annotated[float, Option(1.2, "the same.")]


class CalledOptions(TypedDict, total=False):
    """How a model is told the time or the noise level."""

    conditioning: Annotated[
        str | None,
        Option(
            None,
            """how the model is called: "time" for ``model(x_t, time_scale t)``; "sigma" for
            ``model(x_t / alpha, s)``, "log_sigma" for log s; "index" for the nearest of its own
            levels. By default as the model's own attribute ``conditioning`` says, else as the
            process's: "sigma" of ``VE``, "time" of the others.""",
        ),
    ]
    time_scale: Annotated[
        float | None,
        Option(
            None,
            """by what the time is multiplied for "time": 999 for score_sde's networks. By default
            the model's own attribute ``time_scale``, else 1.""",
        ),
    ]
    sigmas: Annotated[
        Tensor | Sequence[float] | None,
        Option(
            None,
            """for "index", the noise levels (L,), decreasing, that the model's index counts; it
            is then called with x_t / alpha. By default the model's own attribute.""",
        ),
    ]
    betas: Annotated[
        Tensor | Sequence[float] | None,
        Option(
            None,
            """the same for DDPM's networks, (L,), called with x_t / n. By default the model's own
            attribute, or those of a process ``DDPM``.""",
        ),
    ]


class SDELossOptions(TimesOptions, CalledOptions, DropOptions, total=False):
    """What makes one loss of a process differ from another."""

    weighting: Annotated[
        SDEWeighting,
        Option(
            "sigma2",
            """lambda(t): "sigma2", sigma^2; "likelihood", g^2 (Song, Durkan et al. 2021), corrected
            for times that are not uniform, so that its mean stays the same ("log_uniform" is their
            importance sampling, of the least variance: there it is sigma^2 times a constant);
            "edm",
            alpha^2 s^2 (s^2 + sigma_data^2)/sigma_data^2 (Karras et al. 2022); "min_snr",
            sigma^2 min(1, gamma s^2) (Hang et al. 2023); "output", the squared error of what the
            network returns (flow matching, of a velocity); or a function of the float64 tensor of
            times (batch,) that returns their lambda. All but "likelihood" are of these times as
            they are drawn.""",
        ),
    ]
    sigma_data: Annotated[
        float, Option(0.5, 'standard deviation of the data, for weighting="edm".')
    ]
    gamma: Annotated[float, Option(5.0, 'the largest signal-to-noise ratio, for "min_snr".')]
    prediction: Annotated[
        str | None,
        Option(
            None,
            """what the model returns: "score", of the variable that it is called with; "eps", an
            estimate of z; "x0", of the data; "v", (alpha z - sigma x_0)/n, called with x_t / n,
            n = sqrt(alpha^2 + sigma^2); or "velocity", alpha' x_0 + sigma' z. By default what its
            own attribute ``prediction`` says, else "score".""",
        ),
    ]
    reduction: Annotated[
        str,
        Option("mean", '"mean" or "sum" over the batch, or "none" for the loss of each sample.'),
    ]
