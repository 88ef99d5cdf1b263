"""Log-likelihoods by the probability flow, with the ODE solvers of other packages.

All of them integrate one field: along the flow of a process the log density of a sample changes by
the divergence of the slope (Chen et al. 2018, https://arxiv.org/abs/1806.07366; Song et al. 2021,
https://arxiv.org/abs/2011.13456, appendix D.2). The state of a sample is its elements and, last,
that change. ``score(y, sigma)`` is that of the data with noise of level sigma, of shape (batch,),
added, and where its divergence comes from is said by :func:`by_probes` or by the caller.

The prior is N(0, sigma(t_max)^2), as score_sde's for VE and, to 5 digits, its N(0, I) for VP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from fastscore.sde import Process

Score = Callable[[Tensor, Tensor], Tensor]
# Of (y, sigma): the score, and its divergence (batch,).
ScoreAndDivergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SCORE_SDE_EPS = 1e-5  # where score_sde begins to integrate, whatever the process
SCORE_SDE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class LogLikelihoods:
    """What a solver found.

    ``log_prob`` is (batch,), float64, in nats; ``evaluations`` (batch,), int64, how many
    evaluations of the slope each sample's own steps took, the same for all where the steps are;
    ``passes`` how often the slope of the whole batch was computed.
    """

    log_prob: Tensor
    evaluations: Tensor
    passes: int


# ---- where the divergence comes from -----------------------------------------------------------


def by_probes(score: Score, probes: Tensor, *, again: bool = False) -> ScoreAndDivergence:
    """Hutchinson's estimate by reverse mode: the mean of v' J v over ``probes``, (M, *y.shape).

    Score and estimate come from one pass of the network, which each probe goes back through. With
    ``again`` the network is called once more for the score alone, as score_sde does.
    """

    def evaluate(y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = y.detach().requires_grad_()
            output = score(point, sigma)
            total = torch.zeros(len(y), dtype=output.dtype, device=y.device)
            for i, v in enumerate(probes):
                keep = i + 1 < len(probes)
                (product,) = torch.autograd.grad((output * v).sum(), point, retain_graph=keep)
                total += (product * v).flatten(1).sum(1)
        if again:
            with torch.no_grad():
                output = score(y, sigma)
        return output.detach(), total / len(probes)

    return evaluate


# ---- the field ---------------------------------------------------------------------------------


class InTime:
    """The flow in t from ``start`` on: dx/dt = f x - g^2/2 score_t(x), and its divergence.

    States are (batch, elements + 1). ``passes`` counts the calls of :meth:`slope`.
    """

    def __init__(
        self, field: ScoreAndDivergence, process: Process, shape: torch.Size, start: float
    ) -> None:
        self.field, self.process, self.shape = field, process, shape
        self.elements = math.prod(shape[1:])
        self.span = (start, process.t_max)
        self.passes = 0

    def begin(self, x: Tensor) -> Tensor:
        """The state of the data."""
        return torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)

    @torch.no_grad()
    def slope(self, t: Tensor, state: Tensor) -> Tensor:
        """At one time or at each sample's own, (batch,)."""
        self.passes += 1
        process, t = self.process, t.double().reshape(-1)
        alpha, s = process.alpha(t), process.noise_level(t)
        drift, half = process.drift(t), process.diffusion_squared(t) / 2
        x, rate = self._split(state), half / alpha
        score, divergence = self._field(x * self._wide(1 / alpha, state), s)
        dx = self._wide(drift, state) * x - self._wide(rate, state) * score
        change = self.elements * drift - rate / alpha * divergence
        return torch.cat([dx, change.expand(len(x))[:, None].to(state.dtype)], dim=1)

    def log_prob(self, end: Tensor) -> Tensor:
        """Of the data, from the last state."""
        std = float(self.process.sigma(self.process.t_max))
        return self._prior(self._split(end).double(), std) + end[:, -1].double()

    def _split(self, state: Tensor) -> Tensor:
        return state[:, :-1]

    def _wide(self, factor: Tensor, like: Tensor) -> Tensor:
        return factor.to(like.dtype)[:, None]

    def _field(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        level = s.expand(len(y)).to(y.dtype)
        score, divergence = self.field(y.reshape(self.shape), level)
        return score.flatten(1), divergence

    def _prior(self, z: Tensor, std: float) -> Tensor:
        constant = self.elements * math.log(2 * math.pi * std**2)
        return -((z / std).square().sum(1) + constant) / 2


class Scaled(InTime):
    """The same flow in u = y/sqrt(spread^2 + s^2), y = x/alpha, over log s.

    For data N(0, spread^2 I) u stands still: a solver has only what differs from that to follow.
    """

    def __init__(
        self,
        field: ScoreAndDivergence,
        process: Process,
        shape: torch.Size,
        start: float,
        *,
        spread: float,
    ) -> None:
        super().__init__(field, process, shape, start)
        self.spread, self.start, self.levels = spread, start, process.noise_level
        low, high = (float(self.levels(t).log()) for t in self.span)
        self.span = (low, high)

    def _width(self, log_s: float) -> float:
        return math.hypot(self.spread, math.exp(log_s))

    def begin(self, x: Tensor) -> Tensor:
        scale = float(self.process.alpha(self.start)) * self._width(self.span[0])
        return super().begin(x / scale)

    @torch.no_grad()
    def slope(self, t: Tensor, state: Tensor) -> Tensor:
        self.passes += 1
        s = t.double().reshape(-1).exp()
        width = (s.square() + self.spread**2).sqrt()
        u, gain = self._split(state), -s.square()
        score, divergence = self._field(u * self._wide(width, state), s)
        du = self._wide(gain / width, state) * (score + u / self._wide(width, state))
        change = gain * (divergence + self.elements / width.square())
        return torch.cat([du, change.expand(len(u))[:, None].to(state.dtype)], dim=1)

    def log_prob(self, end: Tensor) -> Tensor:
        """The known part of the change is log(width_end alpha_end / (width_0 alpha_0)) each."""
        (low, high), t_max = self.span, self.process.t_max
        last = float(self.process.alpha(t_max)) * self._width(high)
        first = float(self.process.alpha(self.start)) * self._width(low)
        known = self.elements * math.log(last / first)
        z = self._split(end).double() * last
        return self._prior(z, float(self.process.sigma(t_max))) + end[:, -1].double() + known


# ---- the solvers -------------------------------------------------------------------------------


def solve_scipy(
    flow: InTime, x: Tensor, *, rtol: float, atol: float, method: str = "RK45"
) -> LogLikelihoods:
    """scipy's, by default RK45, as score_sde does: float64 on the host, the batch as one state."""
    from scipy.integrate import solve_ivp

    first = flow.begin(x)

    def slope(t: float, flat: numpy.ndarray) -> numpy.ndarray:
        state = torch.from_numpy(flat).reshape(first.shape).to(x.device, x.dtype)
        found = flow.slope(torch.tensor([t], device=x.device), state)
        return found.flatten().double().cpu().numpy()

    start = first.flatten().double().cpu().numpy()
    found = solve_ivp(slope, flow.span, start, method=method, rtol=rtol, atol=atol)
    end = torch.from_numpy(found.y[:, -1].copy()).reshape(first.shape)
    return _shared(flow, end)


@torch.no_grad()
def solve_torchdiffeq(flow: InTime, x: Tensor, *, rtol: float, atol: float) -> LogLikelihoods:
    """torchdiffeq's dopri5: one step size for the batch, by the mean error over all of it."""
    from torchdiffeq import odeint

    span = torch.tensor(flow.span, dtype=torch.float64, device=x.device)
    path = odeint(flow.slope, flow.begin(x), span, rtol=rtol, atol=atol, method="dopri5")
    return _shared(flow, path[-1])


@torch.no_grad()
def solve_torchode(flow: InTime, x: Tensor, *, rtol: float, atol: float) -> LogLikelihoods:
    """torchode's dopri5: a step size of each sample's own; all go on until the last is done."""
    import torchode

    term = torchode.ODETerm(flow.slope)
    controller = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    ends = torch.tensor(flow.span, dtype=x.dtype, device=x.device).expand(len(x), 2)
    problem: Any = torchode.InitialValueProblem(y0=flow.begin(x), t_eval=ends)
    found = solver.solve(problem)
    evaluations = 6 * found.stats["n_steps"].cpu() + 2  # two find the first step size
    return LogLikelihoods(flow.log_prob(found.ys[:, -1]), evaluations, flow.passes)


@torch.no_grad()
def solve_zuko(flow: InTime, x: Tensor, *, rtol: float, atol: float) -> LogLikelihoods:
    """zuko's Dormand-Prince: one step size for the batch, by the largest error in it."""
    from zuko.utils import odeint

    end = odeint(flow.slope, flow.begin(x), *flow.span, rtol=rtol, atol=atol)
    return _shared(flow, end)


def _shared(flow: InTime, end: Tensor) -> LogLikelihoods:
    evaluations = torch.full((len(end),), flow.passes)
    return LogLikelihoods(flow.log_prob(end), evaluations, flow.passes)


def log_likelihood_score_sde(
    score: Score, x: Tensor, process: Process, *, probe: Tensor
) -> LogLikelihoods:
    """As score_sde's ``likelihood.py``: one probe, RK45 at 1e-5 in t from 1e-5 to 1.

    The network is called twice for each evaluation, once for the slope and once for its divergence.
    """
    field = by_probes(score, probe[None], again=True)
    flow = InTime(field, process, x.shape, SCORE_SDE_EPS)
    return solve_scipy(flow, x, rtol=SCORE_SDE_TOLERANCE, atol=SCORE_SDE_TOLERANCE)


def reference(
    field: ScoreAndDivergence, process: Process, x: Tensor, *, spread: float, tolerance: float
) -> LogLikelihoods:
    """By scipy's method of order 8, in float64, from ``process.t_eps`` on."""
    flow = Scaled(field, process, x.shape, process.t_eps, spread=spread)
    return solve_scipy(flow, x.double(), rtol=tolerance, atol=tolerance, method="DOP853")


SOLVERS = {
    "scipy": solve_scipy,
    "torchdiffeq": solve_torchdiffeq,
    "torchode": solve_torchode,
    "zuko": solve_zuko,
}
