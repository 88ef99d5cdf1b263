"""The variable that a sampler in continuous time keeps its state in: what the model is called with.

A network of (y, sigma) sees y = x / alpha, one that was trained in its process's time sees x. The
state is w = kappa x with the kappa that makes it what the network sees, so that no step rescales
it: in w the process has alpha_w = kappa alpha and sigma_w = kappa sigma, and the same s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_sigmas, fail
from fastscore._support.wrappers import said_by
from fastscore.conditioning import convention_in_time, time_scale_of
from fastscore.samplers._rows import Rows
from fastscore.sde import DDPM, Process
from fastscore.sde.conversions import score_coefficients

UNIT_VARIANCE = "unit variance"  # alpha_w^2 + sigma_w^2 = 1
COLUMNS, MULTISTEP_COLUMNS = 6, 10  # a b c k m u, and h d e r


@dataclass
class Frame:
    """How a model is called and what it returns, along a process."""

    process: Process
    conditioning: str
    prediction: str
    time_scale: float = 1.0
    levels: Tensor | None = None  # s of each index of the network's own
    kind: str = "x"  # "x", "y" or UNIT_VARIANCE

    @classmethod
    def of(cls, fn: str, model: Any, process: Process, options: dict[str, Any]) -> Frame:
        """As the caller and the model say."""
        conditioning, prediction = convention_in_time(
            fn, model, options["conditioning"], options["prediction"], process.conditioning
        )
        own = cls(process, conditioning, prediction)
        own.kind = "y" if conditioning in ("sigma", "log_sigma") else "x"
        own._read_levels(fn, model, options)
        own._read_time_scale(fn, model, options)
        if prediction == "v":
            own.kind = UNIT_VARIANCE
        return own

    def _read_levels(self, fn: str, model: Any, options: dict[str, Any]) -> None:
        """The levels that an index counts: the network's own, not those of the sampler's grid."""
        sigmas, betas = options["sigmas"], options["betas"]
        if self.conditioning != "index":
            for name, given in (("sigmas", sigmas), ("betas", betas)):
                if given is not None:
                    fail(fn, name, 'None but with conditioning="index"', "levels")
            return
        if sigmas is not None and betas is not None:
            fail(fn, "betas", "None where sigmas are given", "both")
        if sigmas is None and betas is None:
            sigmas, betas = said_by(model, "sigmas"), said_by(model, "betas")
            if sigmas is None and betas is None and isinstance(self.process, DDPM):
                betas = self.process.betas
        if sigmas is not None:
            self.levels = check_sigmas(fn, sigmas).detach().double().cpu()
            self.kind = "y"
        elif betas is not None:
            ddpm = DDPM(betas)
            count = len(ddpm.betas)
            times = torch.arange(count, dtype=torch.float64) / (count - 1)
            self.levels = ddpm.noise_level(times)
            self.kind = UNIT_VARIANCE
        else:
            expected = "given (or betas), the levels that the network's index counts"
            fail(fn, "sigmas", expected, 'neither, with conditioning="index"')

    def _read_time_scale(self, fn: str, model: Any, options: dict[str, Any]) -> None:
        scale = options["time_scale"]
        if self.conditioning != "time":
            if scale is not None:
                fail(fn, "time_scale", 'None but with conditioning="time"', scale)
            return
        self.time_scale = time_scale_of(fn, model, scale)

    def alpha(self, t: Tensor, s: Tensor) -> Tensor:
        """alpha_w; of the data themselves, s = 0, 1: the state is x there."""
        if self.kind == "y":
            return torch.ones_like(s)
        if self.kind == UNIT_VARIANCE:
            return 1 / torch.sqrt(1 + s.square())
        return torch.where(s > 0, self.process.alpha(torch.nan_to_num(t)), 1.0)

    def scale(self, t: Tensor, s: Tensor) -> Tensor:
        """kappa, by which x is multiplied; 1 of the data."""
        return self.alpha(t, s) / process_alpha(self.process, t, s)

    def told(self, t: Tensor, s: Tensor) -> Tensor:
        """What the model is told of the level: s (whose logarithm it may want), or the time."""
        return t * self.time_scale if self.conditioning == "time" else s

    def labels(self, s: Tensor) -> list[int] | None:
        """The index of the level that is nearest in log s, in the levels' own direction."""
        nearest = self.nearest(s)
        return None if nearest is None else nearest.tolist()

    def nearest(self, s: Tensor) -> Tensor | None:
        """The same, on the device."""
        if self.levels is None:
            return None
        distance = (s.log().unsqueeze(-1) - self.levels.to(s.device).log()).abs()
        return distance.argmin(dim=-1)

    def score_coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of each level: the score of w is A output + B w."""
        alpha = self.alpha(t, s)
        rates: Sequence[Tensor] = ()
        if self.prediction == "velocity":
            if self.kind != "x":  # betas that are not the process's own
                fail("score_coefficients", "prediction", "another in this frame", self.prediction)
            rates = self.process.alpha_rate(t), self.process.sigma_rate(t)
        return score_coefficients(self.prediction, alpha, alpha * s, *rates)

    def table(self, rows: Rows, *, multistep: bool) -> Tensor:
        """The rows for w and for what the model returns: columns a b c k m u, or h d e r too."""
        alpha, after = self.alpha(rows.t, rows.s), self.alpha(rows.t_after, rows.s_after)
        # w = alpha_w y, and the score of w is that of y divided by alpha_w.
        a, b, c = after * rows.a / alpha, after * rows.b * alpha, after * rows.c
        own, of_state = self.score_coefficients(rows.t, rows.s)
        # What the model is about to see: known elements carry the noise of that level.
        following = torch.cat([rows.s[1:], rows.s_after[-1:]])
        k = after * following
        k[-1] = 0
        bound = self.scale(rows.t_after, rows.s_after)
        columns = [a + b * of_state, b * own, c, k, after, bound]
        if multistep:
            # D = y + s^2 S. Where it is clipped, what the clipping takes away is taken from S too.
            d, e = 1 / alpha, rows.s.square() * alpha
            change = after * rows.b / rows.s.square()
            columns += [after * rows.h, d + e * of_state, e * own, change]
        return torch.stack(columns, dim=-1)

    def known_table(self, rows: Rows) -> Tensor:
        """How known elements enter w after each row, a known + b z: for one z of the whole run."""
        after = self.alpha(rows.t_after, rows.s_after)
        following = torch.cat([rows.s[1:], rows.s_after[-1:]])
        none = torch.zeros_like(after)
        return torch.stack([after, after * following, none, none], dim=-1)


def process_alpha(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """alpha of the process at each level; 1 of the data."""
    return torch.where(s > 0, process.alpha(torch.nan_to_num(t)), 1.0)
