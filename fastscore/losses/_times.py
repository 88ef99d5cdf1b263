"""The times of a loss in continuous time: uniform numbers, and the distribution made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_number, fail
from fastscore.ops import uniform_
from fastscore.ops._library import mapped_like
from fastscore.random import Stream
from fastscore.sde import Process

TIMES = ("uniform", "log_uniform", "log_normal")
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # (sqrt(5) - 1)/2 in units of 2^-64, as int64 holds it
LEAST_MASS = 1e-6  # of a normal distribution on the process's range


def uniform(
    key: Tensor, batch: int, stream: Stream, sample_offset: int, samples: Tensor | None
) -> Tensor:
    """A uniform number of each sample, float64 (batch,), inside (0, 1)."""
    u = mapped_like(key, samples).new_empty((batch,), dtype=torch.float64)
    uniform_(u, key, stream=stream, sample_offset=sample_offset, samples=samples)
    return u + 2.0**-25  # the middle of the 2^24 intervals that it stands for


def stratified(key: Tensor, batch: int, sample_offset: int, samples: Tensor | None) -> Tensor:
    """u_i = frac(u_0 + i (sqrt(5) - 1)/2), float64 (batch,): each is uniform, all are spread.

    u_0 is drawn once, i is the number of a sample in the whole batch, whatever shard it is in: any
    run of numbers is spread evenly. In 64-bit integers, so that no i is too large. With keys of
    each sample's own all are alone, and spread among none.

    Kingma, Salimans, Poole and Ho 2021, https://arxiv.org/abs/2107.00630, have times of low
    discrepancy by u_0 + i/batch, which needs to know the whole batch.
    """
    alone = key.dim() == 2
    u0 = mapped_like(key, samples).new_empty((batch if alone else 1,), dtype=torch.float64)
    uniform_(u0, key, stream=Stream.TIME)
    if alone:
        return u0 + 2.0**-25
    if samples is None:
        samples = torch.arange(batch, device=key.device) + sample_offset
    bits = samples * GOLDEN  # wraps around: the integer part is of no interest
    return (((bits >> 11) & (2**53 - 1)) * 2.0**-53 + (u0 + 2.0**-25)).remainder(1.0)


@dataclass(frozen=True)
class Times:
    """A distribution of times on [t_eps, t_max] of a process.

    ``kind`` is "uniform" in t, "log_uniform", uniform in log s, or "log_normal": log s from the
    normal distribution of the given mean and deviation, restricted to the process's range (which
    is not clamped: what would lie outside is drawn inside instead).
    """

    process: Process
    kind: str
    mean: float
    std: float
    low: float  # log s at t_eps
    high: float  # log s at t_max

    @classmethod
    def of(cls, fn: str, process: Process, kind: str, mean: float, std: float) -> Times:
        """Checked; the constants are numbers of the host's, asked of the process once."""
        other = "" if kind != "stratified" else " (stratified=True is an option of its own)"
        if other:
            fail(fn, "times", f"one of {', '.join(map(repr, TIMES))}{other}", repr(kind))
        check_choice(fn, "times", kind, TIMES)
        mean = check_number(fn, "log_mean", mean)
        std = check_number(fn, "log_std", std, positive=True)
        ends = (float(process.noise_level(t).log()) for t in (process.t_eps, process.t_max))
        low, high = ends
        if not math.isfinite(low) or not math.isfinite(high) or low >= high:
            expected = "a process whose noise level rises from t_eps to t_max, finite and positive"
            fail(fn, "sde", expected, f"levels from {math.exp(low):.4g} to {math.exp(high):.4g}")
        own = cls(process, kind, mean, std, low, high)
        if kind == "log_normal" and own._mass < LEAST_MASS:
            expected = f"within the process's range of log s, {low:.3g} to {high:.3g}"
            fail(fn, "log_mean", expected, f"{mean}, with log_std = {std}")
        return own

    @property
    def length(self) -> float:
        """Of the interval of times."""
        return self.process.t_max - self.process.t_eps

    @property
    def _below(self) -> float:
        """The part of the normal distribution below the process's range."""
        return _normal_cdf((self.low - self.mean) / self.std)

    @property
    def _mass(self) -> float:
        """That inside of it."""
        return _normal_cdf((self.high - self.mean) / self.std) - self._below

    def of_uniform(self, u: Tensor) -> Tensor:
        """The times of uniform numbers, float64."""
        process = self.process
        if self.kind == "uniform":
            return process.t_eps + self.length * u
        if self.kind == "log_uniform":
            log_level = self.low + (self.high - self.low) * u
        else:
            log_level = torch.special.ndtri(self._below + self._mass * u) * self.std + self.mean
            log_level = log_level.clamp(self.low, self.high)
        return process.time_of(log_level.exp()).clamp(process.t_eps, process.t_max)

    def importance(self, t: Tensor, s: Tensor) -> Tensor | None:
        """(uniform density of t)/(that of these times), over d log s/dt; None where they are alike.

        With it a mean over these times is the mean over uniform ones:
        E_uniform[f d log s/dt] = E[f importance].
        """
        if self.kind == "uniform":
            return None
        if self.kind == "log_uniform":
            return torch.full_like(s, (self.high - self.low) / self.length)
        deviation = (s.log() - self.mean) / self.std
        scale = self.std * self._mass * math.sqrt(2 * math.pi) / self.length
        return (deviation.square() / 2).exp() * scale


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
