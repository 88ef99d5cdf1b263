"""The Gaussian that the flow's latents are taken to have, and how far off that is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from fastscore._support.checks import (
    check_device,
    check_finite,
    check_floating,
    check_number,
    describe,
    fail,
    fail_type,
)
from fastscore._support.sums import tree_sum
from fastscore.sde import Process, as_process


class Prior(NamedTuple):
    """N(mean, variance), elementwise."""

    mean: Tensor  # of a sample's shape, or what broadcasts to it; float64
    variance: Tensor

    @classmethod
    def at(cls, process: Process, t: float, mean: Tensor, std: Tensor) -> Self:
        """Of the process at a time, for data of this mean and standard deviation."""
        alpha, sigma = (float(f(t)) for f in (process.alpha, process.sigma))
        return cls(alpha * mean, (alpha * std).square() + sigma**2)

    def share(self, x: Tensor) -> Tensor:
        """The mean square of each sample's deviations, over the variance: about 1 of its own."""
        return ((x.double() - self.mean).square() / self.variance).reshape(len(x), -1).mean(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density, (batch,), float64: each sample's bytes are its own."""
        square = (x.double() - self.mean).square() / self.variance
        norms = (2 * math.pi * self.variance).log().expand(x.shape[1:]).reshape(-1)
        return -0.5 * (tree_sum(square.reshape(len(x), -1), 1) + tree_sum(norms, 0))


def check_prior(
    fn: str, prior: Any, shape: torch.Size, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The data's mean and standard deviation, which a sample's shape can take; zeros for None."""
    if prior is None:
        prior = (0.0, 0.0)
    if not isinstance(prior, (tuple, list)) or len(prior) != 2:
        fail_type(fn, "prior", "None or a pair (mean, std) of the data", prior)
    mean, std = (_moment(fn, f"prior[{i}]", value, shape, device) for i, value in enumerate(prior))
    if bool((std < 0).any()):
        fail(fn, "prior[1]", "a standard deviation, at least 0", float(std.min()))
    return mean, std


def _moment(fn: str, arg: str, value: Any, shape: torch.Size, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(check_number(fn, arg, value), dtype=torch.float64, device=device)
    check_floating(fn, arg, value)
    check_device(fn, arg, value, device, "where x is")
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        fail(fn, arg, f"of a sample's shape {tuple(shape)}, or broadcast to it", describe(value))
    check_finite(fn, arg, value)
    return value.detach().double()


def prior_mismatch(sde: Process | Any, mean: Tensor | float, std: Tensor | float) -> Tensor:
    r"""How far the published prior N(0, sigma^2) is from the latents of Gaussian data, in nats.

    A log-likelihood is that of the flow from the prior. From data N(m, v) the flow leads to
    N(alpha m, alpha^2 v + sigma^2) at the end of the process; with N(0, sigma^2) taken for that,
    log densities are off by the logarithm of the ratio of the two, whose mean over data is the
    divergence

        KL = 1/2 sum_i [ r_i + (alpha m_i)^2/sigma^2 - log(1 + r_i) ],    r_i = alpha^2 v_i/sigma^2

    and which ``log_likelihood(prior=(mean, std))`` does away with. For data that are not Gaussian
    it is what their mean and variance alone contribute, nearly all of it where sigma is large.

    Args:
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)``, ``sigma(t)``.
        mean, std: of the data: tensors of a sample's shape, which are summed over, or numbers, for
            the mismatch of one dimension.

    Returns:
        A scalar, float64, in nats; over D ln 2 it is in bits per dimension.

    Raises:
        ValueError, TypeError: a process or moments that are none.

    Example:
        >>> import torch, fastscore
        >>> sde = fastscore.sde.VE(0.01, 50.0)
        >>> off = fastscore.evaluation.prior_mismatch(sde, torch.full((64,), 0.5), torch.ones(64))
        >>> round(float(off), 5)
        0.0032
    """
    fn = "prior_mismatch"
    process = as_process(fn, sde)
    shapes = [value.shape for value in (mean, std) if isinstance(value, Tensor)]
    device = next((v.device for v in (mean, std) if isinstance(v, Tensor)), torch.device("cpu"))
    shape = torch.broadcast_shapes(*shapes) if shapes else torch.Size()
    m, d = check_prior(fn, (mean, std), shape, device)
    end = process.t_max
    alpha, sigma = float(process.alpha(end)), float(process.sigma(end))
    r, shift = (alpha * d / sigma).square(), (alpha * m / sigma).square()
    return 0.5 * (r + shift - r.log1p()).expand(shape).sum()
