"""A network that was trained for one process as a score for every other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastscore._support.alike import alike_everywhere
from fastscore._support.checks import check_floating, per_sample
from fastscore.conditioning import as_sigma, call_model
from fastscore.derivatives.known import Keeping, Known
from fastscore.scores.adapters import Wrapper
from fastscore.sde._frame import Frame, Y, index_levels
from fastscore.sde._given import as_process
from fastscore.sde._levels import nearest_level
from fastscore.sde._process import Process


class ProcessScore(Wrapper):
    """The score of (x, sigma) of a network that was trained for a process.

    In y = x/alpha the data are perturbed by s = sigma/alpha alone, so score(y, s) = alpha(t)
    score_t(alpha(t) y) at the time t of s is a model of this library: it samples with every other
    process, with :func:`fastscore.annealed_langevin`, and goes wherever a score goes. (With its own
    process ``sde_loss``, ``reverse_sde`` and ``probability_flow`` take the network itself.) Song et
    al. 2021, https://arxiv.org/abs/2011.13456; Karras et al. 2022, section 2.

    Args:
        net: a module or function, called ``net(x, time_scale * t)`` with a time of shape (batch,),
            or otherwise: see ``conditioning``.
        process: what it was trained for: of :mod:`fastscore.sde`, or any object with ``alpha(t)``
            and ``sigma(t)``.
        conditioning: what it is given beside x: "time", or "index", an index of its own levels; or
            "sigma" or "log_sigma", with which it is called in y. By default what its own attribute
            says, else the process's ``conditioning``: "sigma" of VE, "time" of the others.
        prediction: what it returns: "score", "eps", "x0", "v" (which sees x/sqrt(alpha^2 +
            sigma^2)) or "velocity". By default what its own attribute says, else "score", of x.
        time_scale: by what the time is multiplied; its own attribute, or 1. score_sde's: 999.
        sigmas: for "index", the noise levels that the index counts, falling or rising,
        betas: or the betas of its chain. Those of a :class:`DDPM` by default. The nearest level in
            log s is taken.

    Attributes:
        conditioning, prediction: "sigma" and "score": how the adapter is called, what it returns.
        net_conditioning, net_prediction: those of ``net``.
        data_shape: that of ``net``, None if it has none.
        sigma_range: the noise levels (lowest, highest) that ``net`` says it knows; else its
            levels', or those of the process from ``t_eps`` to ``t_max``; or as set.

    Raises:
        ValueError: a convention that is unknown, or another than the network's own; "index" without
            levels or the reverse; on call, an output that has not the shape of x.
        TypeError: a network that can't be called, or what is no process.

    Example:
        A network of (x, t) that knows data at 0, called at y = 1 and s = 1 and 2:

        >>> from fastscore.sde import VP
        >>> vp = VP()
        >>> net = lambda x, t: -x / vp.sigma(t)[:, None].square()
        >>> model = ProcessScore(net, vp)
        >>> model(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
        tensor([[-1.0000],
                [-0.2500]])
    """

    net_conditioning: str
    levels: Tensor | None

    def __init__(
        self,
        net: Callable[..., Tensor],
        process: Process | Any,
        *,
        conditioning: str | None = None,
        prediction: str | None = None,
        time_scale: float | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        betas: Tensor | Sequence[float] | None = None,
    ) -> None:
        """See the class."""
        super().__init__("net", net)
        name = type(self).__name__
        self.process = as_process(name, process, "process")
        frame = Frame.of(
            name,
            net,
            self.process,
            conditioning=conditioning,
            prediction=prediction,
            time_scale=time_scale,
            levels=index_levels(name, sigmas, betas),
        )
        self.net_conditioning, self.net_prediction = frame.conditioning, frame.prediction
        self.time_scale, levels = frame.time_scale, frame.levels
        self._frame = replace(frame, levels=None)  # which are a buffer
        self.register_buffer("levels", levels, persistent=False)
        self._levels = levels if levels is None else (float(levels.min()), float(levels.max()))
        self.net = net

    def extra_repr(self) -> str:
        """The process and how the network is called, for ``repr``."""
        parts = [repr(self.process), f"conditioning={self.net_conditioning!r}"]
        parts.append(f"prediction={self.net_prediction!r}")
        if self.time_scale != 1:
            parts.append(f"time_scale={self.time_scale}")
        if "net" in vars(self):  # a function: modules show below
            parts.append(f"net={getattr(self.net, '__name__', self.net)}")
        return ", ".join(parts)

    def convention(self) -> dict[str, Any]:
        """How the network is called and what it returns, in plain values."""
        return {
            "conditioning": self.net_conditioning,
            "prediction": self.net_prediction,
            "time_scale": self.time_scale,
            "levels": None if self.levels is None else self.levels.tolist(),
            **{name: _plain(value) for name, value in self.process.constants().items()},
        }

    def _own_range(self) -> tuple[float, float]:
        return self.process.sigma_range if self._levels is None else self._levels

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor:
        """The score at ``x``, shape (batch, ...), of noise level ``sigma``, shape (batch,).

        What else is given by name goes to the network.
        """
        return self._score(self.net, x, sigma, model_kwargs)[0]

    def _score(
        self,
        net: Callable[..., Tensor],
        x: Tensor,
        sigma: Tensor | float,
        model_kwargs: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The score, and the numbers of which it is: alpha, A and B of A output + B w, w = alpha x.

        For the score of w, that of y being alpha times it; in float64.
        """
        name = type(self).__name__
        check_floating(name, "x", x, min_dim=1)
        level = as_sigma(name, x, sigma)
        how, frame = self.net_conditioning, self._frame

        def numbers(s: Tensor) -> tuple[Tensor, ...]:
            time = self.process.time_of(s)
            alpha = frame.alpha(time, s)
            return time, alpha, *frame.score_coefficients(time, alpha, alpha * s)

        time, alpha, of_output, of_w = alike_everywhere(numbers, level.double())
        seen = _times(x, alpha).to(x.dtype)  # w = alpha_w y
        index = level if self.levels is None else self._index(level)
        told = (time * self.time_scale).to(level.dtype)
        output = call_model(name, net, seen, level, index, how, model_kwargs, time=told)
        of_what = alpha, of_output, of_w
        if frame.kind == Y and self.net_prediction == "score":
            return output.to(x.dtype), of_what  # of y already
        score = _times(output, alpha * of_output) + _times(x, alpha.square() * of_w)
        return score.to(x.dtype), of_what

    def _with_divergence(
        self, method: Known, x: Tensor, sigma: Tensor | float, **model_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The score and its divergence, of a network's ``output_and_divergence``."""
        net = Keeping(method)
        score, (alpha, of_output, of_w) = self._score(net, x, sigma, model_kwargs)
        found = net.checked(type(self).__name__, x).double()
        return score, alpha.square() * (of_output * found + of_w * math.prod(x.shape[1:]))

    def _index(self, level: Tensor) -> Tensor:
        """Of the network's level that is nearest."""
        assert self.levels is not None
        if self.levels.device != level.device:
            self.levels = self.levels.to(level.device)  # once, not in each step of a sampler
        return nearest_level(self.levels, level)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """x times a number of each sample, in 32 bits at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype) * per_sample(factor.to(dtype), x)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
