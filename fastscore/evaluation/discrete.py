"""The likelihood of discrete data, such as images, by the density of what dequantises them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.checks import check_choice, check_int, check_tensor, fail
from fastscore._support.explain import parameter_dtypes
from fastscore._support.options import hands_on_to
from fastscore.evaluation.bits import (
    UNIT,
    Range,
    bits_per_dim,
    check_levels,
    dequantized,
    levels_of_data,
)
from fastscore.evaluation.likelihood import log_likelihood
from fastscore.sde import Process

AVERAGES = ("mean", "log_mean_exp")
SEEDS = ("seed", "generator", "sample_offset", "samples")


@dataclass(frozen=True, eq=False, repr=False)
class DiscreteLikelihood:
    """What :func:`discrete_log_likelihood` returns.

    Attributes:
        bits: bits per dimension of each sample, (batch,), float64.
        log_prob: log probability of each discrete sample in nats, (batch,), float64: of its whole
            box, so that bits = -log_prob/(D ln 2). NaN, as the bits are, of one that failed.
        evaluations: of the model, over all draws, (batch,), int64.
        failed: (batch,), True for samples that were given up in one of their draws.

    Example:
        >>> bits, evaluations = torch.tensor([2.0, 4.0]).double(), torch.tensor([26, 32])
        >>> result = DiscreteLikelihood(bits, -bits, evaluations, bits < 0)
        >>> result
        DiscreteLikelihood(2 samples, 3 +- 1 bits per dimension)
        >>> result.mean_bits, result.stderr
        (3.0, 1.0)
    """

    bits: Tensor
    log_prob: Tensor
    evaluations: Tensor
    failed: Tensor

    @property
    def mean_bits(self) -> float:
        """The mean over the samples; NaN where one has failed: ``bits[~failed]`` has the others."""
        if not len(self.bits):
            fail("DiscreteLikelihood", "mean_bits", "asked of at least one sample", 0)
        return float(self.bits.mean())

    @property
    def stderr(self) -> float:
        """The standard error of ``mean_bits`` as that of a larger data set's mean."""
        if len(self.bits) < 2:
            fail("DiscreteLikelihood", "stderr", "asked of at least two samples", len(self.bits))
        return float(self.bits.std()) / math.sqrt(len(self.bits))

    def __repr__(self) -> str:
        samples = f"{len(self.bits)} samples"
        if len(self.bits) < 2:
            return f"DiscreteLikelihood({samples})"
        said = f"{self.mean_bits:.4g} +- {self.stderr:.2g} bits per dimension"
        return f"DiscreteLikelihood({samples}, {said})"


@hands_on_to(log_likelihood)
def discrete_log_likelihood(
    model: Any,
    x: Tensor,
    sde: Process | Any,
    *,
    levels: int | None = None,
    data_range: Range = UNIT,
    draws: int = 1,
    average: str = "mean",
    **options: Any,
) -> DiscreteLikelihood:
    r"""Bits per dimension of discrete data: the density of the data dequantised.

    :func:`dequantize` spreads each level over its box, :func:`log_likelihood` gives the density
    there, and :func:`bits_per_dim`, where all is derived, the bits. In expectation over the draws
    the result is an upper bound on -log2 P(x)/D (and ``log_prob`` a lower one on log P(x)); with
    ``average="log_mean_exp"`` over several draws a tighter one. (That average would take an error
    of its own in each draw for probability, half its variance. So the probes of a divergence by
    probes are the same in all draws, and their error is nearly the same too.)

    The model must have been trained on dequantised data: one of data on the grid has narrow peaks
    there, and its bits are those of the peaks.

    Args:
        model: as in :func:`log_likelihood`.
        x: discrete data, (batch, ...): integers of 0 to levels - 1, or floating-point numbers on
            the grid of ``data_range``, see :func:`dequantize`.
        sde: the process.
        levels: how many there are; by default 256.
        data_range: (lo, hi), where the model expects the data.
        draws: how often each sample is dequantised, each time with noise of its own. Probes are
            the same in all draws.
        average: what is taken of the draws: the "mean" of log p, or its "log_mean_exp".
        options: those of :func:`log_likelihood`. ``seed``, ``sample_offset`` and ``samples`` hold
            for the noise as well: the result is a sample's own.

    Returns:
        A :class:`DiscreteLikelihood`: bits per dimension of each sample, their mean and error.

    Raises:
        ValueError, TypeError: data that are not of these levels, the sample named; an argument that
            does not fit; as :func:`log_likelihood`.
        RuntimeError: as :func:`log_likelihood`.

    Example:
        >>> import torch, fastscore
        >>> model = fastscore.scores.GaussianMixture([1.0], torch.full((1, 4), 0.5), 0.01)
        >>> x = (255 * model.sample(200, seed=0)).round().clamp(0, 255).to(torch.uint8)
        >>> sde = fastscore.sde.VE(0.01, 10.0)
        >>> result = fastscore.evaluation.discrete_log_likelihood(model, x, sde, draws=2, seed=0)
        >>> abs(result.mean_bits - 6.73) < 0.1  # log2 sqrt(2 pi e (0.01 + 0.01^2)) + 8
        True
    """
    fn = "discrete_log_likelihood"
    check_tensor(fn, "x", x, min_dim=1)
    levels = levels_of_data(fn, x, levels)
    check_levels(fn, levels, data_range)
    check_int(fn, "draws", draws, minimum=1)
    check_choice(fn, "average", average, AVERAGES)
    own = {name: options.pop(name) for name in SEEDS if name in options}
    if own.get("seed") is None:  # one for all draws
        key = random.make_key(fn, None, device=x.device, generator=own.pop("generator", None))
        own["seed"] = int(key[0])
    double = not x.is_floating_point() and parameter_dtypes(model) == {torch.float64}
    dtype = torch.float64 if double else None
    found: list[Tensor] = []
    evaluations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    failed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for draw in range(draws):
        data = dequantized(fn, x, levels, data_range, draw=draw, dtype=dtype, **own)
        result = log_likelihood(model, data, sde, **own, **options)
        found.append(result.log_prob)
        evaluations += result.evaluations
        failed |= result.failed
    drawn = torch.stack(found)
    density = drawn.mean(0) if average == "mean" else drawn.logsumexp(0) - math.log(draws)
    bits = bits_per_dim(density, x.shape[1:], levels, data_range)
    return DiscreteLikelihood(
        bits, -bits * math.prod(x.shape[1:]) * math.log(2), evaluations, failed
    )
