"""The variable that a model along a process is called with, and what it returns in it.

A network of (y, sigma) sees y = x / alpha, one that was trained in its process's time sees x. Both
are w = kappa x, and in w the process has alpha_w = kappa alpha and sigma_w = kappa sigma, and the
same s = sigma/alpha:

======================================  ======  ==========================
called with                             w       alpha_w
======================================  ======  ==========================
"sigma", "log_sigma", index of sigmas   y       1
"time", and any velocity                x       alpha
prediction "v", index of betas          x / n   1 / sqrt(1 + s^2)
======================================  ======  ==========================

with n = sqrt(alpha^2 + sigma^2). Losses and samplers ask here, so that a network is sampled as it
was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from fastscore._support.checks import fail
from fastscore._support.wrappers import said_by
from fastscore.conditioning import convention_in_time, time_scale_of
from fastscore.ops._library import traced
from fastscore.sde._levels import levels_of, nearest_level
from fastscore.sde._process import Process
from fastscore.sde.conversions import residual_coefficients, score_coefficients
from fastscore.sde.processes import DDPM, levels_of_betas

X, Y, UNIT_VARIANCE = "x", "y", "x / n"


class Levels(NamedTuple):
    """What an index counts, and the variable that networks of such levels are called with."""

    s: Tensor  # (L,), float64
    kind: str  # y = x_0 + s z of NCSN's sigmas; x / n of DDPM's betas


@dataclass
class Frame:
    """How a model is called and what it returns, along a process."""

    process: Process
    conditioning: str
    prediction: str
    time_scale: float = 1.0
    levels: Tensor | None = None  # s of each index of the network's own, (L,), float64
    kind: str = X

    @classmethod
    def of(
        cls,
        fn: str,
        model: Any,
        process: Process,
        *,
        conditioning: str | None = None,
        prediction: str | None = None,
        time_scale: float | None = None,
        levels: Levels | None = None,
        process_levels: Levels | None = None,
    ) -> Self:
        """As the caller says, and the model's own attributes of the same names.

        ``levels`` are what :func:`index_levels` makes of sigmas or betas that the caller gives, and
        ``process_levels`` of those that the process has; the model's own are in between.

        Raises:
            ValueError, TypeError: what is not known, what contradicts the model, an index without
                levels, and levels or a time_scale where nothing is told by them.
        """
        default = process.conditioning
        how, what = convention_in_time(fn, model, conditioning, prediction, default)
        own = cls(process, how, what)
        if how == "time":
            own.time_scale = time_scale_of(fn, model, time_scale)
        elif time_scale is not None:
            fail(fn, "time_scale", 'left out but for conditioning="time"', time_scale)
        if how == "index":
            if levels is None:
                levels = index_levels(fn, said_by(model, "sigmas"), said_by(model, "betas"))
            levels = levels or process_levels or levels_of_process(process)
            if levels is None:
                expected = 'given, one of the two, for conditioning="index"'
                fail(fn, "sigmas or betas", expected, "neither")
            own.levels, own.kind = levels
        elif levels is not None:
            arg = "sigmas" if levels.kind == Y else "betas"
            fail(fn, arg, 'left out but for conditioning="index"', f"levels, and {how!r}")
        elif how != "time":
            own.kind = Y
        if what == "v":
            own.kind = UNIT_VARIANCE
        elif what == "velocity":
            own.kind = X
        return own

    def alpha(self, t: Tensor, s: Tensor) -> Tensor:
        """alpha_w at the times and their noise levels; sigma_w is s times that."""
        if self.kind == Y:
            return torch.ones_like(s)
        if self.kind == UNIT_VARIANCE:
            return (s.square() + 1).rsqrt()
        return self.process.alpha(t)

    def index(self, s: Tensor) -> Tensor:
        """The index of the level that is nearest in log s, in the levels' own direction: int64."""
        if self.levels is None:
            return torch.zeros_like(s, dtype=torch.int64)
        return nearest_level(self.levels, s)

    def score_coefficients(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """A and B where the process has alpha_w and sigma_w: the score of w is A output + B w."""
        return score_coefficients(self.prediction, alpha, sigma, *self._rates(t))

    def residual_coefficients(
        self, t: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """p, q and h there: sigma_w score + z = p output + q z + h x_0."""
        return residual_coefficients(self.prediction, alpha, sigma, *self._rates(t))

    def _rates(self, t: Tensor) -> tuple[Tensor, ...]:
        """Of alpha and sigma, where a prediction needs them."""
        if self.prediction != "velocity":
            return ()
        return self.process.alpha_rate(t), self.process.sigma_rate(t)


def index_levels(fn: str, sigmas: Any, betas: Any) -> Levels | None:
    """The levels that an index counts, of NCSN's sigmas or DDPM's betas; None of neither."""
    if sigmas is None and betas is None:
        return None
    kind = UNIT_VARIANCE if sigmas is None else Y
    given = betas if sigmas is None else sigmas
    if isinstance(given, Tensor) and (given.device.type != "cpu" or traced()):
        # It can't be looked at, or not without waiting for a device.
        values = given.detach().double()
        return Levels(values if sigmas is not None else levels_of_betas(values), kind)
    return Levels(levels_of(fn, sigmas, betas), kind)


def levels_of_process(process: Process) -> Levels | None:
    """Those of a DDPM's betas; other processes have none."""
    return index_levels("DDPM", None, process.betas) if isinstance(process, DDPM) else None
