"""The processes of the literature: small immutable objects, known by their constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_number, describe, fail, fail_type
from fastscore.ops._library import traced
from fastscore.sde._process import Process


def _keep(process: Process, **values: Any) -> None:
    """Set the checked constants of a frozen object that is being made."""
    for name, value in values.items():
        object.__setattr__(process, name, value)


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t.

    Args:
        sigma_min: sigma at t = 0, positive.
        sigma_max: sigma at t = 1, larger.

    Raises:
        ValueError, TypeError: constants that are not so.

    Song et al. 2021, https://arxiv.org/abs/2011.13456; for SMLD, Song & Ermon 2019.

    Example:
        >>> VE().sigma(1.0)
        tensor(50., dtype=torch.float64)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min = 0.0
    t_eps = 0.0
    conditioning = "sigma"

    def __post_init__(self) -> None:
        """Check the constants."""
        low = check_number("VE", "sigma_min", self.sigma_min, positive=True)
        high = check_number("VE", "sigma_max", self.sigma_max, positive=True)
        if high <= low:
            fail("VE", "sigma_max", f"larger than sigma_min = {low}", high)
        _keep(self, sigma_min=low, sigma_max=high)

    @property
    def _rate(self) -> float:
        """D log sigma/dt."""
        return math.log(self.sigma_max / self.sigma_min)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def _noise_level(self, t: Tensor) -> Tensor:
        return self._sigma(t)

    def _drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_rate(self, t: Tensor) -> Tensor:
        return self._sigma(t) * self._rate

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return self._sigma(t).square() * (2 * self._rate)

    def _time_of(self, s: Tensor) -> Tensor:
        return (s / self.sigma_min).log() / self._rate


@dataclass(frozen=True)
class _Betas(Process):
    """A drift -beta/2 with beta = beta_min + t (beta_max - beta_min)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Check the constants."""
        name = type(self).__name__
        low = check_number(name, "beta_min", self.beta_min, minimum=0.0)
        high = check_number(name, "beta_max", self.beta_max, positive=True)
        if high < low:
            fail(name, "beta_max", f"at least beta_min = {low}", high)
        _keep(self, beta_min=low, beta_max=high)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _decay(self, t: Tensor) -> Tensor:
        """-L, where alpha = e^L: half the integral of beta."""
        return t * (t * ((self.beta_max - self.beta_min) / 4) + self.beta_min / 2)

    def _time_of_decay(self, decay: Tensor) -> Tensor:
        """The root of that parabola, in the form that does not cancel."""
        linear, quadratic = self.beta_min / 2, (self.beta_max - self.beta_min) / 4
        root = (linear * linear + 4 * quadratic * decay).sqrt() + linear
        return torch.where(decay == 0, decay, 2 * decay / root)

    def _alpha(self, t: Tensor) -> Tensor:
        return (-self._decay(t)).exp()

    def _drift(self, t: Tensor) -> Tensor:
        return self._beta(t) / -2


@dataclass(frozen=True)
class VP(_Betas):
    """Variance preserving: alpha^2 + sigma^2 = 1, beta rising linearly.

    Args:
        beta_min: beta at t = 0, at least 0.
        beta_max: beta at t = 1, at least beta_min.

    Raises:
        ValueError, TypeError: constants that are not so.

    Song et al. 2021, https://arxiv.org/abs/2011.13456; the limit of Ho et al. 2020.

    Example:
        >>> VP()
        VP(beta_min=0.1, beta_max=20.0)
        >>> VP().diffusion_squared(1.0)
        tensor(20., dtype=torch.float64)
    """

    def _sigma(self, t: Tensor) -> Tensor:
        return (-(-2 * self._decay(t)).expm1()).sqrt()

    def _noise_level(self, t: Tensor) -> Tensor:
        return (2 * self._decay(t)).expm1().sqrt()

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return self._beta(t)

    def _sigma_rate(self, t: Tensor) -> Tensor:
        return self._beta(t) * self._alpha(t).square() / (2 * self._sigma(t))

    def _time_of(self, s: Tensor) -> Tensor:
        return self._time_of_decay(s.square().log1p() / 2)


@dataclass(frozen=True)
class SubVP(_Betas):
    """Sub-VP: the drift of VP and less noise, sigma = 1 - alpha^2.

    Args:
        beta_min: beta at t = 0, at least 0.
        beta_max: beta at t = 1, at least beta_min.

    Raises:
        ValueError, TypeError: constants that are not so.

    Song et al. 2021, https://arxiv.org/abs/2011.13456.

    Example:
        >>> process = SubVP()
        >>> process.time_of(process.noise_level(0.25))
        tensor(0.2500, dtype=torch.float64)
    """

    def _sigma(self, t: Tensor) -> Tensor:
        return -(-2 * self._decay(t)).expm1()

    def _noise_level(self, t: Tensor) -> Tensor:
        return 2 * self._decay(t).sinh()

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return -self._beta(t) * (-4 * self._decay(t)).expm1()

    def _sigma_rate(self, t: Tensor) -> Tensor:
        return self._beta(t) * self._alpha(t).square()

    def _time_of(self, s: Tensor) -> Tensor:
        return self._time_of_decay((s / 2).asinh())


@dataclass(frozen=True)
class Cosine(Process):
    """The cosine schedule, variance preserving: alpha = cos(theta(t)) / cos(theta(0)).

    theta(t) = (t + offset)/(1 + offset) pi/2. As alpha is 0 at t = 1, t_max is 1 - 1e-3.

    Args:
        offset: at least 0.

    Raises:
        ValueError, TypeError: an offset that is not so.

    Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672.

    Example:
        >>> Cosine().alpha(0.0)
        tensor(1., dtype=torch.float64)
    """

    offset: float = 0.008
    t_max = 1 - 1e-3

    def __post_init__(self) -> None:
        """Check the constant."""
        _keep(self, offset=check_number("Cosine", "offset", self.offset, minimum=0.0))

    @property
    def _speed(self) -> float:
        """Theta's derivative."""
        return math.pi / 2 / (1 + self.offset)

    @property
    def _first(self) -> float:
        """Theta at t = 0."""
        return self.offset * self._speed

    def _cos(self, t: Tensor) -> Tensor:
        """The cosine of theta, to full precision near t = 1 as well."""
        return ((1 - t) * self._speed).sin()

    def _tan(self, t: Tensor) -> Tensor:
        return ((t + self.offset) * self._speed).sin() / self._cos(t)

    def _sines(self, t: Tensor) -> Tensor:
        """cos^2(theta(0)) - cos^2(theta), without the cancellation."""
        return (t * self._speed).sin() * ((t + 2 * self.offset) * self._speed).sin()

    def _alpha(self, t: Tensor) -> Tensor:
        return self._cos(t) / math.cos(self._first)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._sines(t).sqrt() / math.cos(self._first)

    def _noise_level(self, t: Tensor) -> Tensor:
        return self._sines(t).sqrt() / self._cos(t)

    def _drift(self, t: Tensor) -> Tensor:
        return self._tan(t) * -self._speed

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return self._tan(t) * (2 * self._speed)

    def _alpha_rate(self, t: Tensor) -> Tensor:
        sin = ((t + self.offset) * self._speed).sin()
        return sin * (-self._speed / math.cos(self._first))

    def _sigma_rate(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._alpha_rate(t) / self._sigma(t)

    def _time_of(self, s: Tensor) -> Tensor:
        sin, cos = math.sin(self._first), math.cos(self._first)
        root = torch.hypot(s, torch.full_like(s, sin))  # cos(theta(0)) tan(theta)
        above = torch.where(s == 0, s, s * (s / (root + sin))) * cos  # less tan(theta(0))
        return torch.atan2(above, cos * cos + root * sin) / self._speed


def check_betas(fn: str, betas: Any) -> Tensor:
    """At least two numbers between 0 and 1, float64 on the CPU."""
    expected = "a tensor or a sequence of at least 2 numbers between 0 and 1"
    try:
        values = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        fail_type(fn, "betas", expected, betas)
    if values.dim() != 1 or len(values) < 2 or not bool(((values > 0) & (values < 1)).all()):
        fail(fn, "betas", expected, f"{values.reshape(-1)[:8].tolist()}, {describe(values)}")
    return values


def levels_of_betas(betas: Tensor) -> Tensor:
    """The noise levels s of a chain, (N,), rising: s^2 = 1/alpha^2 - 1."""
    return torch.expm1(-torch.cumsum(torch.log1p(-betas), 0)).sqrt()


@dataclass(frozen=True, repr=False)
class DDPM(Process):
    """The chain of a discrete network: level i of N at t = i/(N - 1), log s linear between.

    alpha_i^2 is the product of 1 - beta_j, j = 0 to i, and alpha^2 + sigma^2 = 1 everywhere.

    Args:
        betas: (N,) of at least 2 numbers between 0 and 1.

    Attributes:
        betas: the same, a tuple of floats.

    Raises:
        ValueError, TypeError: betas that are not so.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239.

    Example:
        >>> process = DDPM(torch.linspace(1e-4, 0.02, 1000))
        >>> process
        DDPM(betas=1000 from 0.0001 to 0.02)
        >>> round(float(process.alpha(0.0)) ** 2, 6)
        0.9999
    """

    betas: Sequence[float]
    t_min = 0.0
    t_eps = 0.0

    def __post_init__(self) -> None:
        """Check the betas."""
        values = check_betas("DDPM", self.betas)
        _keep(self, betas=tuple(values.tolist()), _log_levels=levels_of_betas(values).log())

    def __repr__(self) -> str:
        """The betas in short."""
        return f"DDPM(betas={len(self.betas)} from {self.betas[0]:.6g} to {self.betas[-1]:.6g})"

    def _levels(self, device: torch.device) -> Tensor:
        """Log s of the levels; kept on each device, for a copy would make the host wait."""
        levels: Tensor = self._log_levels  # type: ignore[attr-defined]
        if levels.device == device or traced():
            return levels.to(device)
        kept: dict[torch.device, Tensor] = vars(self).setdefault("_kept", {})
        if device not in kept:
            with torch.inference_mode(False):
                kept[device] = levels.to(device)
        return kept[device]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have the levels on the CPU alone."""
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log s where the segment of t begins, its length, and the part of it that is passed."""
        levels = self._levels(t.device)
        last = len(levels) - 1
        # A time that is a level's but for rounding (of float32) begins the segment after it.
        left = (t.detach() * last + 1e-4).floor().clamp(0, last - 1)
        index = left.long()
        return levels[index], levels[index + 1] - levels[index], t * last - left

    def _noise_level(self, t: Tensor) -> Tensor:
        start, length, part = self._segment(t)
        return (start + length * part).exp()

    def _alpha(self, t: Tensor) -> Tensor:
        return (self._noise_level(t).square() + 1).rsqrt()

    def _sigma(self, t: Tensor) -> Tensor:
        level = self._noise_level(t)
        return level * (level.square() + 1).rsqrt()

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        slope = self._segment(t)[1] * (len(self.betas) - 1)
        return 2 * self._sigma(t).square() * slope

    def _drift(self, t: Tensor) -> Tensor:
        return self._diffusion_squared(t) / -2

    def _sigma_rate(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._alpha_rate(t) / self._sigma(t)

    def _time_of(self, s: Tensor) -> Tensor:
        levels, log = self._levels(s.device), s.log()
        last = len(levels) - 1
        index = (torch.searchsorted(levels, log.detach(), right=True) - 1).clamp(0, last - 1)
        start, end = levels[index], levels[index + 1]
        return (index + (log - start) / (end - start)) / last


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """The straight path from data to noise: alpha = 1 - t, sigma = t, velocity z - x_0.

    As alpha is 0 at t = 1, t_max is 1 - 1e-3.

    Liu et al. 2022, https://arxiv.org/abs/2209.03003; Lipman et al. 2022, flow matching.

    Example:
        >>> RectifiedFlow().noise_level(0.5)
        tensor(1., dtype=torch.float64)
    """

    t_max = 1 - 1e-3

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _drift(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return 2 * t / (1 - t)

    def _alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time_of(self, s: Tensor) -> Tensor:
        return s / (1 + s)
