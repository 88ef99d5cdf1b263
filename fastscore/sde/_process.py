"""What every process has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import (
    check_device,
    check_floating,
    check_number,
    check_shape,
    check_tensor,
    describe,
    fail,
)
from fastscore._support.common_options import KeyOptions
from fastscore._support.options import takes_options
from fastscore.ops import perturb
from fastscore.ops._library import traced
from fastscore.random import check_numbering, noise_key


class Process(ABC):
    """Data perturbed in continuous time: x_t = alpha(t) x_0 + sigma(t) z, t from 0 to 1.

    Its equation is dx = f(t) x dt + g(t) dw. Every method takes a time as a number in [0, 1] or as
    a tensor of any shape and real dtype, and returns a float64 tensor of that shape on its device,
    differentiable in t (not the rates of an object of one's own, which are derivatives already).
    float64 throughout: in float32 1 - exp loses its digits near t = 0.

    Attributes:
        t_min: where sampling stops.
        t_max: where it begins: 1, or just below where alpha is 0 at 1.
        t_eps: where training and likelihood begin.
        conditioning: how a model that does not say so itself is called: "sigma" or "time".
        sigma_range: s at t_eps and at t_max.

    Song et al. 2021, https://arxiv.org/abs/2011.13456.

    Example:
        >>> from fastscore.sde import VP
        >>> isinstance(VP(), Process), VP().t_eps
        (True, 1e-05)
        >>> t = torch.tensor([0.25, 0.5])
        >>> f, g2 = VP().drift(t), VP().diffusion_squared(t)
        >>> bool(torch.allclose(f, -g2 / 2))
        True
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    t_eps: float = 1e-5
    conditioning: str = "time"

    def alpha(self, t: Tensor | float) -> Tensor:
        """By what the data are multiplied at time t."""
        return self._alpha(self._time("alpha", t))

    def sigma(self, t: Tensor | float) -> Tensor:
        """Standard deviation of the noise at time t."""
        return self._sigma(self._time("sigma", t))

    def noise_level(self, t: Tensor | float) -> Tensor:
        """s = sigma/alpha, the noise level of y = x/alpha: what a model of (y, s) is given."""
        return self._noise_level(self._time("noise_level", t))

    def drift(self, t: Tensor | float) -> Tensor:
        """f = alpha'/alpha."""
        return self._drift(self._time("drift", t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        """g^2 = alpha^2 ds^2/dt."""
        return self._diffusion_squared(self._time("diffusion_squared", t))

    def alpha_rate(self, t: Tensor | float) -> Tensor:
        """The derivative of alpha in t."""
        return self._alpha_rate(self._time("alpha_rate", t))

    def sigma_rate(self, t: Tensor | float) -> Tensor:
        """The derivative of sigma in t; infinite where sigma starts like sqrt(t), at t = 0."""
        return self._sigma_rate(self._time("sigma_rate", t))

    def time_of(self, noise_level: Tensor | float) -> Tensor:
        """The time at which s = sigma/alpha is ``noise_level``: the inverse of noise_level(t).

        A level that the process does not reach gives a time outside of [0, 1], or (where alpha
        and sigma are not known there) the nearer end.
        """
        fn = f"{type(self).__name__}.time_of"
        if not isinstance(noise_level, Tensor):
            noise_level = check_number(fn, "noise_level", noise_level, minimum=0.0)
        return self._time_of(_float64(fn, "noise_level", noise_level))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels s at ``t_eps`` and at ``t_max``: what a network trained on it knows."""
        return float(self.noise_level(self.t_eps)), float(self.noise_level(self.t_max))

    @takes_options(KeyOptions)
    def perturb(self, x: Tensor, t: Tensor | float, **draws: Unpack[KeyOptions]) -> Tensor:
        """Perturbed data alpha(t) x + sigma(t) z, in one pass; z is never stored.

        Args:
            x: data (batch, ...), float32, float64, bfloat16 or float16. Not changed.
            t: one time, or one of each sample, (batch,), on x's device; in [0, 1].

        Returns:
            A tensor like x; differentiable in x.

        Raises:
            ValueError, TypeError: an argument does not fit; times that require a gradient, for
                none reaches them.

        >>> from fastscore.sde import VP
        >>> VP().perturb(torch.zeros(4, 3), 0.5, seed=0).shape
        torch.Size([4, 3])
        """
        fn = f"{type(self).__name__}.perturb"
        check_floating(fn, "x", x, min_dim=1)
        time = check_time(fn, x, t)
        key = noise_key(fn, x, draws["key"], draws["seed"], draws["generator"])
        samples, offset = draws["samples"], draws["sample_offset"]
        check_numbering(fn, key, samples, offset, len(x), x.device)
        if not len(time):  # of no samples; a table has a row
            time = time.new_zeros(1)
        table = torch.stack([self._alpha(time), self._sigma(time)], dim=-1)
        labels = torch.arange(len(x), device=x.device) % len(time)  # a row of each, or one for all
        noisy, _ = perturb(x, table, key, labels=labels, sample_offset=offset, samples=samples)
        return noisy

    def constants(self) -> dict[str, Any]:
        """What tells this process from another, in plain values."""
        names = getattr(type(self), "__dataclass_fields__", ())
        return {"process": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def _time(self, method: str, t: Tensor | float) -> Tensor:
        fn = f"{type(self).__name__}.{method}"
        if not isinstance(t, Tensor):
            t = _number_of_time(fn, t)
        return _float64(fn, "t", t)

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor:
        """The methods above of a float64 tensor."""

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _drift(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _diffusion_squared(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_of(self, s: Tensor) -> Tensor: ...

    def _noise_level(self, t: Tensor) -> Tensor:
        return self._sigma(t) / self._alpha(t)

    def _alpha_rate(self, t: Tensor) -> Tensor:
        return self._drift(t) * self._alpha(t)

    def _sigma_rate(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return self._drift(t) * sigma + self._diffusion_squared(t) / (2 * sigma)


def check_time(fn: str, x: Tensor, t: Any) -> Tensor:
    """One time, (1,), or one of each sample, (batch,): float64 on x's device.

    The values of a tensor are looked at where that costs no wait for the device.
    """
    if not isinstance(t, Tensor):
        return torch.full((1,), _number_of_time(fn, t), dtype=torch.float64, device=x.device)
    check_tensor(fn, "t", t)
    if t.requires_grad and torch.is_grad_enabled():
        fail(fn, "t", "times that need no gradient, for none reaches them", "one that does")
    time = _float64(fn, "t", t)
    if time.dim():
        check_shape(fn, "t", time, x.shape[:1], "one time for each sample")
        check_device(fn, "t", time, x.device, "as x is")
    else:
        time = time.to(x.device).reshape(1)
    if time.device.type == "cpu" and not traced():
        outside = ~((time >= 0) & (time <= 1))
        if bool(outside.any()):
            fail(fn, "t", "in [0, 1]", float(time[outside][0]))
    return time


def _number_of_time(fn: str, t: Any) -> float:
    number = check_number(fn, "t", t, minimum=0.0)
    if number > 1:
        fail(fn, "t", "in [0, 1]", number)
    return number


def _float64(fn: str, arg: str, value: Tensor | float) -> Tensor:
    """A number or a tensor of real numbers as a float64 tensor of its shape, on its device."""
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=torch.float64)
    if value.is_complex() or value.dtype == torch.bool:
        fail(fn, arg, "a number or a tensor of real numbers", describe(value))
    return value.double()
