"""What a sampler says of a run that went wrong, though no argument was."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import largest
from fastscore._support.warn import warn_caller
from fastscore.samplers._loop import Chain
from fastscore.samplers._plan import Plan, Prior

FAR_OFF = 1e4  # times the noise that a chain begins with: no data are there
# What the first score may be of -x/sigma^2, for data have a spread and a mean of their own: near to
# it where the level s is high.
HIGH, FROM_HIGH, FROM_LOW = 10.0, (0.6, 1.25), (0.25, 2.0)


class FirstLook:
    """A look at the first score of a run, of states that are noise: about -x/sigma^2.

    On the CPU at once; on a GPU, where the host would wait, after the run.
    """

    def __init__(self, chain: Chain, prior: Prior) -> None:
        """Look when the chain first has a score, ``prior`` being sigma^2, A, B and s there."""
        self.chain, self.prior, self.own = chain, prior, chain.adjust
        self.share: Tensor | None = None
        chain.adjust = self

    def __call__(self, chain: Chain, output: Tensor) -> None:
        """The score is A output + B x; its share is <x, score> over <x, -x/sigma^2>."""
        chain.adjust = self.own
        if self.own is not None:
            self.own(chain, output)
        if chain.second is not None:
            return  # a guided score is another one
        self.share = share_of_noise(chain.x, output, self.prior)
        if chain.x.device.type == "cpu":
            self.warn()

    def warn(self) -> None:
        """Say so once where the score is far from what it must be."""
        share, self.share = self.share, None
        if share is not None:
            warn_of_share(self.chain, float(share), self.prior)


def share_of_noise(x: Tensor, output: Tensor, prior: Prior) -> Tensor:
    """The mean of <x, score> over that of <x, -x/sigma^2>, of states x and the model's outputs."""
    variance, of_output, of_state, _ = prior
    size = x.square().sum(dtype=torch.float64)
    along = (x * output).sum(dtype=torch.float64)
    return -variance * (of_output * along + of_state * size) / size


def is_off(share: float, prior: Prior) -> bool:
    """Whether a score's share is far from that of noise: NaN is."""
    least, most = FROM_HIGH if prior[-1] >= HIGH else FROM_LOW
    return not least < share < most


def warn_of_share(chain: Chain, share: float, prior: Prior) -> None:
    """Say that it is far from what it must be, where it is."""
    if not is_off(share, prior):
        return
    warn_caller(
        f"{chain.fn}: at the highest noise level, where the score is about that of noise "
        f"alone, -x/sigma^2, the model's is {share:.3g} times that. It may be called "
        "otherwise than it was trained, or return something else than is assumed: see "
        f"conditioning (here {chain.conditioning!r}), time_scale and prediction.",
        UserWarning,
    )


def warn_of_divergence(
    fn: str, model: Any, x: Tensor, start: Tensor | None, steps: int, plan: Plan
) -> None:
    """Say that a chain has left the finite numbers, or all reason: looked at once, at the end."""
    size = largest(x)
    if size <= FAR_OFF * max(plan.init_scale, 1.0):  # False for NaN
        return
    if start is not None and size <= FAR_OFF * largest(start):
        return
    if math.isfinite(size):
        what = f"elements of up to {size:.1e} after {steps} steps"
    else:
        bad = int((~torch.isfinite(x)).reshape(len(x), -1).any(1).sum())
        what = f"NaN or infinity in {bad} of {len(x)} samples after {steps} steps"
    own = getattr(model, "diverges_where", None)
    advice = f"{own} " if isinstance(own, str) else ""
    warn_caller(
        f"{fn}: {what}. {advice}The chain diverges where {plan.step_size} is too large, where the "
        "model returns something else than the score (of a network that predicts the noise or the "
        'data, say prediction="eps" or "x0", or make it a score by fastscore.scores.EpsScore or '
        "DenoiserScore), or where it is called with another conditioning than it was trained with, "
        "or at noise levels that it was not trained on (sigma_range=).",
        UserWarning,
    )
