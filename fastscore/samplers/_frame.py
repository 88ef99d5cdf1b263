"""The rows of a sampler in the variable that its state is kept in: what the model is called with.

The state is the w = kappa x of :mod:`fastscore.sde._frame`, so that no step rescales it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from fastscore.conditioning import check_sigma_range, sigma_range_of
from fastscore.samplers._rows import Rows
from fastscore.sde import Process
from fastscore.sde import _frame as along


@dataclass
class Frame(along.Frame):
    """How a model is called and what it returns along a process, from noise to the data."""

    sigma_range: tuple[float, float] | None = None  # the noise levels that the model knows

    @classmethod
    def asked(cls, fn: str, model: Any, process: Process, options: dict[str, Any]) -> Self:
        """As the options of a sampler say, and the model itself."""
        frame = cls.of(
            fn,
            model,
            process,
            conditioning=options["conditioning"],
            prediction=options["prediction"],
            time_scale=options["time_scale"],
            levels=along.index_levels(fn, options["sigmas"], options["betas"]),
        )
        known = options["sigma_range"]
        if known is not None:
            frame.sigma_range = check_sigma_range(fn, "sigma_range", known)
        else:
            frame.sigma_range = sigma_range_of(model, fn=fn)
        return frame

    def alpha(self, t: Tensor, s: Tensor) -> Tensor:
        """alpha_w; of the data themselves, s = 0 and t NaN, 1: the state is x there."""
        return torch.where(s > 0, super().alpha(torch.nan_to_num(t), s), 1.0)

    def scale(self, t: Tensor, s: Tensor) -> Tensor:
        """kappa, by which x is multiplied; 1 of the data."""
        return self.alpha(t, s) / process_alpha(self.process, t, s)

    def told(self, t: Tensor, s: Tensor) -> Tensor:
        """What the model is told of the level: s (whose logarithm it may want), or the time."""
        return t * self.time_scale if self.conditioning == "time" else s

    def labels(self, s: Tensor) -> list[int] | None:
        """The network's own index of each level, where it is called by one."""
        return None if self.levels is None else self.index(s).tolist()

    def output_coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of each level: the score of w is A output + B w."""
        alpha = self.alpha(t, s)
        return self.score_coefficients(t, alpha, alpha * s)

    def table(self, rows: Rows, *, multistep: bool) -> Tensor:
        """The rows for w and for what the model returns: columns a b c k m u, or h d e r too."""
        alpha, after = self.alpha(rows.t, rows.s), self.alpha(rows.t_after, rows.s_after)
        # w = alpha_w y, and the score of w is that of y divided by alpha_w.
        a, b, c = after * rows.a / alpha, after * rows.b * alpha, after * rows.c
        own, of_state = self.output_coefficients(rows.t, rows.s)
        # What the model is about to see: known elements carry the noise of that level.
        following = torch.cat([rows.s[1:], rows.s_after[-1:]])
        k = after * following
        k[-1] = 0
        bound = self.scale(rows.t_after, rows.s_after)
        columns = [a + b * of_state, b * own, c, k, after, bound]
        if multistep:
            # D = y + s^2 S. Where it is clipped, what the clipping takes away is taken from S too.
            d, e = 1 / alpha, rows.s.square() * alpha
            if rows.slopes:
                d, e = torch.zeros_like(d), -rows.s * alpha
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
