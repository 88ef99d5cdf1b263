"""Adapters from what other libraries' networks predict to the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastscore._support.buffers import ExactBuffers
from fastscore._support.checks import (
    check_choice,
    check_floating,
    check_sigmas,
    fail,
    fail_type,
    per_sample,
)
from fastscore.conditioning import CONDITIONINGS, as_sigma, call_model, condition


class Adapter(ExactBuffers):
    """A score made of another model, and how that one is told the noise level."""

    sigmas: Tensor | None

    def __init__(
        self,
        arg: str,
        model: Callable[..., Tensor],
        conditioning: str,
        sigmas: Tensor | Sequence[float] | None,
    ) -> None:
        """See the class."""
        super().__init__()
        name = type(self).__name__
        if not callable(model):
            fail_type(name, arg, "callable", model)
        self.conditioning = check_choice(name, "conditioning", conditioning, CONDITIONINGS)
        if (sigmas is None) != (conditioning != "index"):
            fail(name, "sigmas", 'given with conditioning="index", and only then', sigmas)
        levels = None if sigmas is None else check_sigmas(name, sigmas).detach().double()
        self.register_buffer("sigmas", levels, persistent=False)
        self.data_shape: tuple[int, ...] | None = getattr(model, "data_shape", None)

    def extra_repr(self) -> str:
        """How the model is called, and the model where it is no module, for ``repr``."""
        parts = [f"conditioning={self.conditioning!r}"]
        if self.sigmas is not None:
            parts.append(f"levels={len(self.sigmas)}")
        plain = [n for n in ("net", "energy") if n in vars(self)]  # functions: modules show below
        parts += [f"{n}={getattr(vars(self)[n], '__name__', vars(self)[n])}" for n in plain]
        return ", ".join(parts)

    def _conditioned(self, level: Tensor) -> tuple[Tensor, ...]:
        """What the model is given beside x for noise levels (batch,)."""
        return condition(self.conditioning, level, self._labels(level))

    def _labels(self, level: Tensor) -> Tensor:
        """The index of the sigma that is nearest to each level; without sigmas nobody asks."""
        if self.sigmas is None:
            return level
        if self.sigmas.device != level.device:
            self.sigmas = self.sigmas.to(level.device)  # once, not in each step of a sampler
        return (level.unsqueeze(-1) - self.sigmas).abs().argmin(dim=-1)


class _NetworkAdapter(Adapter):
    """A score made of what a network predicts at (x, sigma)."""

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        conditioning: str = "sigma",
        sigmas: Tensor | Sequence[float] | None = None,
    ) -> None:
        """See the class."""
        super().__init__("net", net, conditioning, sigmas)
        self.net = net

    def _predict(
        self, x: Tensor, sigma: Tensor | float, model_kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The network's output and sigma, shaped to broadcast against it."""
        name = type(self).__name__
        check_floating(name, "x", x, min_dim=1)
        level = as_sigma(name, x, sigma)
        labels = self._labels(level)
        output = call_model(name, self.net, x, level, labels, self.conditioning, model_kwargs)
        return output, per_sample(level, x)


class EpsScore(_NetworkAdapter):
    """The score of a network that predicts the noise: s(x, sigma) = -eps(x, sigma) / sigma.

    Here x = x_0 + sigma z and eps predicts z, of unit variance (Ho et al. 2020, "Denoising
    Diffusion Probabilistic Models", https://arxiv.org/abs/2006.11239, in the variance-exploding
    scaling of Song et al. 2021).

    Args:
        net: eps network, a module or function ``net(x, sigma)``, sigma of shape (batch,).
        conditioning: what ``net`` is given beside x: ``"sigma"``, ``"log_sigma"``, ``"none"`` or
            ``"index"``. The adapter itself is always called ``model(x, sigma)``.
        sigmas: for ``conditioning="index"``, the noise levels (L,) that the labels count; a sigma
            between two of them gets the label of the nearer one.

    Attributes:
        data_shape: that of ``net``, None if it has none.

    Raises:
        ValueError: an unknown ``conditioning``, ``sigmas`` without "index" or the reverse; on
            call, an output that has not the shape of x, or a sigma of a wrong shape.
        TypeError: ``net`` can't be called.

    Example:
        >>> import torch
        >>> model = EpsScore(lambda x, sigma: torch.ones_like(x))
        >>> model(torch.zeros(2, 1), torch.tensor([1.0, 4.0]))
        tensor([[-1.0000],
                [-0.2500]])
    """

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor:
        """The score at ``x``, shape (batch, ...), of noise level ``sigma``, shape (batch,).

        What else is given by name goes to the network.
        """
        eps, level = self._predict(x, sigma, model_kwargs)
        return (-eps / level).to(x.dtype)


class DenoiserScore(_NetworkAdapter):
    """The score of a denoiser: s(x, sigma) = (D(x, sigma) - x) / sigma^2.

    Tweedie's formula: D(x, sigma) predicts the clean sample behind x = x_0 + sigma z (Vincent
    2011; the parametrisation of Karras et al. 2022, https://arxiv.org/abs/2206.00364).

    Args:
        net: denoiser, a module or function ``net(x, sigma)``, sigma of shape (batch,).
        conditioning: what ``net`` is given beside x: ``"sigma"``, ``"log_sigma"``, ``"none"`` or
            ``"index"``. The adapter itself is always called ``model(x, sigma)``.
        sigmas: for ``conditioning="index"``, the noise levels (L,) that the labels count; a sigma
            between two of them gets the label of the nearer one.

    Attributes:
        data_shape: that of ``net``, None if it has none.

    Raises:
        ValueError: an unknown ``conditioning``, ``sigmas`` without "index" or the reverse; on
            call, an output that has not the shape of x, or a sigma of a wrong shape.
        TypeError: ``net`` can't be called.

    Example:
        >>> import torch
        >>> model = DenoiserScore(lambda x, sigma: torch.zeros_like(x))
        >>> model(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
        tensor([[-1.0000],
                [-0.2500]])
    """

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor:
        """The score at ``x``, shape (batch, ...), of noise level ``sigma``, shape (batch,).

        What else is given by name goes to the network.
        """
        clean, level = self._predict(x, sigma, model_kwargs)
        return ((clean - x) / level.square()).to(x.dtype)
