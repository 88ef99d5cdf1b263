"""Whether an energy and the flow of its gradient are one density."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import fail, fail_type
from fastscore._support.model_kwargs import check_model_kwargs, per_batch
from fastscore._support.options import declared, hands_on_to
from fastscore._support.wrappers import unwrapped
from fastscore.evaluation.likelihood import LikelihoodOptions, log_likelihood
from fastscore.samplers._continuous import times_for
from fastscore.samplers._frame import Frame
from fastscore.scores import EnergyScore
from fastscore.sde import Process, as_process


@dataclass(frozen=True, eq=False, repr=False)
class EnergySpread:
    """What :func:`energy_spread` returns.

    Attributes:
        differences: -E - log p of each sample, (batch,), float64, nats; NaN where the flow failed.
        log_normaliser: their mean, an estimate of log Z, where p = exp(-E)/Z.
        spread: their standard deviation over the samples: 0 where both are one density.
        evaluations: of the model, (batch,), int64.

    Example:
        >>> EnergySpread(torch.tensor([1.0, 1.0, 1.3]).double(), torch.zeros(3).long())
        EnergySpread(3 samples, log_normaliser=1.1, spread=0.1732)
    """

    differences: Tensor
    evaluations: Tensor

    @property
    def log_normaliser(self) -> float:
        """The mean of the differences."""
        return float(self._there().mean())

    @property
    def spread(self) -> float:
        """The standard deviation of the differences."""
        found = self._there()
        if len(found) < 2:
            fail("EnergySpread", "spread", "asked of at least two samples", len(found))
        return float(found.std())

    def _there(self) -> Tensor:
        """Of samples that have not failed."""
        return self.differences[~self.differences.isnan()]

    def __repr__(self) -> str:
        parts = [f"{len(self.differences)} samples"]
        if len(self._there()) > 1:
            parts.append(f"log_normaliser={self.log_normaliser:.4g}, spread={self.spread:.4g}")
        return f"EnergySpread({', '.join(parts)})"


@hands_on_to(log_likelihood)
def energy_spread(model: Any, x: Tensor, sde: Process | Any, **options: Any) -> EnergySpread:
    r"""How far an energy and the probability flow of its gradient are from one density.

    An energy says a log density up to a constant, -E(y, s) - log Z(s), and its gradient is a score,
    whose flow has a log density of its own, :func:`log_likelihood`. Both are taken at the noise
    level where the flow begins, ``t_eps``, as densities of y = x/alpha. Where they are the same,
    -E - log p is log Z at every sample. Those of a trained E(x, sigma) are not: its densities at
    the different noise levels do not come from one another by diffusion, for no loss asks them to,
    and what they disagree in gathers along the flow, so that the two differ by more than a
    constant. The spread over samples is a diagnostic: where it is small beside the differences of
    log densities that matter either may be used, else they are two models. For the exact scores of
    :mod:`fastscore.scores`, which obey the diffusion equation and have log Z = 0, it is the error
    that the solver, the probes and the prior leave.

    Args:
        model: an :class:`EnergyScore`, or an exact score with a method ``log_prob(x, sigma)``.
        x: data, (batch, ...), or what else energies are to be compared at.
        sde: the process.
        options: those of :func:`log_likelihood`.

    Returns:
        An :class:`EnergySpread`. Data of which ``log_normaliser`` is taken need not be from the
        model: where both are one density each single sample gives log Z.

    Raises:
        TypeError: a model that is neither.
        ValueError, RuntimeError: as :func:`log_likelihood`.

    Example:
        >>> import torch, fastscore
        >>> model = fastscore.scores.EnergyScore(
        ...     lambda x, sigma: x.square().sum(1) / (1 + sigma**2) / 2
        ... )
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> result = fastscore.evaluation.energy_spread(model, x, fastscore.sde.VE(0.01, 30.0))
        >>> round(result.log_normaliser, 2)  # 3/2 log 2 pi
        2.76
        >>> result.spread < 0.01
        True
    """
    fn = "energy_spread"
    process = as_process(fn, sde)
    energy = unwrapped(model)
    if not isinstance(energy, EnergyScore) and not callable(getattr(energy, "log_prob", None)):
        expected = "a fastscore.scores.EnergyScore, or a score with a method log_prob(x, sigma)"
        fail_type(fn, "model", expected, model)
    flow = log_likelihood(model, x, process, **options)
    t = _beginning(fn, model, process, x, options)
    alpha, level = float(process.alpha(t)), float(process.noise_level(t))
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    size = options.get("batch_size") or options.get("chunk_size") or len(x)
    named = check_model_kwargs(fn, options.get("model_kwargs"))
    minus_energy = torch.empty_like(flow.log_prob)
    with torch.no_grad():
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            y = (x[rows].double() / alpha).to(x.dtype)
            if isinstance(energy, EnergyScore):
                own = per_batch(named, len(x), operator.itemgetter(rows))
                minus_energy[rows] = -energy.values(y, level, **own)
            else:
                minus_energy[rows] = energy.log_prob(y, level)
    log_prob = flow.log_prob + math.prod(x.shape[1:]) * math.log(alpha)  # of y
    return EnergySpread(minus_energy - log_prob, flow.evaluations)


def _beginning(fn: str, model: Any, process: Process, x: Tensor, options: dict[str, Any]) -> float:
    """The time at which the flow's log density is taken."""
    asked = {**declared(LikelihoodOptions).defaults, **options}
    frame = Frame.asked(fn, model, process, asked)
    return float(times_for(fn, model, frame, x, "log", 2, 1.0, process.t_eps)[-1])
