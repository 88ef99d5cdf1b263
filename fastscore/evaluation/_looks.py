"""What is said of latents that are not what a flow from data leads to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore._support.warn import warn_caller
from fastscore.evaluation._flow import LikelihoodChain
from fastscore.evaluation._prior import Prior
from fastscore.samplers._warnings import is_off, share_of_noise, warn_of_share
from fastscore.sde import Process

FAR = 10.0  # of latents' squares, times the prior's variance
DEVIATIONS = 6.0  # of what is chance
NOTICED = 0.1  # of the data's squares, over the highest noise: 0.002 nats a dimension in the mean


def look_at_data(fn: str, x: Tensor, process: Process, begin: float, end: float) -> None:
    """That the highest noise is many times the data's own spread, which the prior leaves out."""
    values = x.double() / float(process.alpha(begin))
    share = float(values.square().mean()) / float(process.noise_level(end)) ** 2
    if share > NOTICED:
        warn_caller(
            f"{fn}: the data's mean square is {share:.2g} times that of the highest noise, which "
            "the prior takes for all there is: log densities are off. prior=(mean, std), of the "
            "data, is nearer (if these are in the model's range).",
            UserWarning,
        )


def look_at_latents(
    chain: LikelihoodChain, latent: Tensor, prior: Prior, *, of_noise: bool
) -> None:
    """Of samples that have arrived: that the score is that of noise, and they are as the prior is.

    ``of_noise`` says that the prior is noise alone. Waits for the device.
    """
    assert chain.failed is not None
    arrived = ~chain.failed
    if of_noise and score_is_off(chain, arrived):
        return
    shares = prior.share(latent[arrived])
    share = float(shares.median())
    if share > max(FAR, 1 + DEVIATIONS * math.sqrt(2 / chain.dimensions)):
        warn_caller(
            f"{chain.fn}: the latents of most samples are {share**0.5:.3g} times as far out as "
            "their prior is wide: the data may lie in another range than the model was trained on.",
            UserWarning,
        )


def score_is_off(chain: LikelihoodChain, arrived: Tensor) -> bool:
    """Whether the score at the latents is far from that of noise; it is said."""
    frame = chain.angle.frame
    t = torch.tensor([chain.angle.last], dtype=torch.float64)
    s = frame.process.noise_level(t)
    own, of_state = frame.output_coefficients(t, s)
    variance = float((frame.alpha(t, s) * s).square())
    prior = (variance, float(own), float(of_state), float(s))
    share = float(share_of_noise(chain.x[arrived], chain.final_output()[arrived], prior))
    if not math.isfinite(share) or not is_off(share, prior):  # all latents may be 0
        return False
    warn_of_share(chain, share, prior)
    return True
