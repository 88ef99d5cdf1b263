"""Adapters from what other libraries' networks predict to the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastscore._support.buffers import ExactBuffers
from fastscore._support.checks import (
    check_callable,
    check_floating,
    check_sigmas,
    fail,
)
from fastscore._support.wrappers import said_by
from fastscore.conditioning import (
    as_score,
    as_sigma,
    call_model,
    condition,
    conditioning_of,
    prediction_of,
)


class Adapter(ExactBuffers):
    """A score of (x, sigma) made of another model, and how that one is told the noise level."""

    conditioning = "sigma"  # how the adapter itself is called
    prediction = "score"  # what it returns
    sigmas: Tensor | None

    def __init__(
        self,
        arg: str,
        model: Callable[..., Tensor],
        conditioning: str | None,
        sigmas: Tensor | Sequence[float] | None,
    ) -> None:
        """See the class."""
        super().__init__()
        name = type(self).__name__
        check_callable(name, arg, model)
        self.net_conditioning = conditioning_of(name, model, conditioning, "sigma")
        if (sigmas is None) != (self.net_conditioning != "index"):
            fail(name, "sigmas", 'given with conditioning="index", and only then', sigmas)
        levels = None if sigmas is None else check_sigmas(name, sigmas).detach().double()
        self.register_buffer("sigmas", levels, persistent=False)
        self.data_shape: tuple[int, ...] | None = said_by(model, "data_shape")

    def extra_repr(self) -> str:
        """How the model is called, and the model where it is no module, for ``repr``."""
        parts = [f"conditioning={self.net_conditioning!r}"]
        if type(self) is NetworkScore:
            parts.insert(0, f"prediction={self.net_prediction!r}")
        if self.sigmas is not None:
            parts.append(f"levels={len(self.sigmas)}")
        plain = [n for n in ("net", "energy") if n in vars(self)]  # functions: modules show below
        parts += [f"{n}={getattr(vars(self)[n], '__name__', vars(self)[n])}" for n in plain]
        return ", ".join(parts)

    def convention(self) -> dict[str, Any]:
        """How the model is called and what it returns, in plain values."""
        return {
            "conditioning": self.net_conditioning,
            "prediction": getattr(self, "net_prediction", "energy"),
            "sigmas": None if self.sigmas is None else self.sigmas.tolist(),
        }

    def _conditioned(self, level: Tensor) -> tuple[Tensor, ...]:
        """What the model is given beside x for noise levels (batch,)."""
        return condition(self.net_conditioning, level, self._index(level))

    def _index(self, level: Tensor) -> Tensor:
        """The index of the sigma that is nearest to each level; without sigmas nobody asks."""
        if self.sigmas is None:
            return level
        if self.sigmas.device != level.device:
            self.sigmas = self.sigmas.to(level.device)  # once, not in each step of a sampler
        return (level.unsqueeze(-1) - self.sigmas).abs().argmin(dim=-1)


class NetworkScore(Adapter):
    """The score of (x, sigma) of a network called otherwise, or that predicts something else.

    At x = x_0 + sigma z the score is -eps/sigma of a network that predicts the noise z (Ho et al.
    2020, https://arxiv.org/abs/2006.11239, in the variance-exploding scaling of Song et al. 2021),
    and (D - x)/sigma^2, Tweedie's formula, of one that predicts the data x_0 (Vincent 2011; the
    denoiser D of Karras et al. 2022, https://arxiv.org/abs/2206.00364).

    The samplers and losses take such networks as they are, with ``conditioning=`` and
    ``prediction=``; the adapter is for everything else that asks for a score, and for levels
    between those that the network was trained with.

    Args:
        net: a module or function, called ``net(x, sigma)`` with sigma of shape (batch,).
        prediction: what it returns: "score", "eps" or "x0"; by default what its own attribute
            ``prediction`` says, else "score".
        conditioning: what it is given beside x: "sigma", "log_sigma", "none" or "index"; by
            default what its own attribute ``conditioning`` says, else "sigma".
        sigmas: for ``conditioning="index"``, the noise levels (L,) that the index counts; a sigma
            between two of them gets the index of the nearer one.

    Attributes:
        data_shape: that of ``net``, None if it has none.
        conditioning, prediction: "sigma" and "score": how the adapter is called, what it returns.
        net_conditioning, net_prediction: those of ``net``.

    Raises:
        ValueError: an unknown ``conditioning`` or ``prediction``, or another than the network's
            own; ``sigmas`` without "index" or the reverse; on call, an output that has not the
            shape of x, or a sigma of a wrong shape.
        TypeError: ``net`` can't be called.

    Example:
        >>> import torch
        >>> model = NetworkScore(lambda x, sigma: torch.ones_like(x), prediction="eps")
        >>> model(torch.zeros(2, 1), torch.tensor([1.0, 4.0]))
        tensor([[-1.0000],
                [-0.2500]])
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        prediction: str | None = None,
        conditioning: str | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
    ) -> None:
        """See the class."""
        super().__init__("net", net, conditioning, sigmas)
        self.net_prediction = prediction_of(type(self).__name__, net, prediction)
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor:
        """The score at ``x``, shape (batch, ...), of noise level ``sigma``, shape (batch,).

        What else is given by name goes to the network.
        """
        name = type(self).__name__
        check_floating(name, "x", x, min_dim=1)
        level = as_sigma(name, x, sigma)
        index = self._index(level)
        output = call_model(name, self.net, x, level, index, self.net_conditioning, model_kwargs)
        return as_score(self.net_prediction, output, x, level).to(x.dtype)


class _OnePrediction(NetworkScore):
    """A :class:`NetworkScore` whose prediction its own name says."""

    predicts: str

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        conditioning: str | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
    ) -> None:
        """See the class."""
        super().__init__(net, prediction=self.predicts, conditioning=conditioning, sigmas=sigmas)


class EpsScore(_OnePrediction):
    """The score of a network that predicts the noise: s(x, sigma) = -eps(x, sigma) / sigma.

    :class:`NetworkScore` with ``prediction="eps"``.

    Args:
        net: eps network, a module or function ``net(x, sigma)``, sigma of shape (batch,).
        conditioning, sigmas: how it is called; see :class:`NetworkScore`.

    Attributes, Raises: as :class:`NetworkScore`.

    Example:
        >>> import torch
        >>> model = EpsScore(lambda x, sigma: torch.ones_like(x))
        >>> model(torch.zeros(2, 1), torch.tensor([1.0, 4.0]))
        tensor([[-1.0000],
                [-0.2500]])
    """

    predicts = "eps"


class DenoiserScore(_OnePrediction):
    """The score of a denoiser: s(x, sigma) = (D(x, sigma) - x) / sigma^2.

    :class:`NetworkScore` with ``prediction="x0"``.

    Args:
        net: denoiser, a module or function ``net(x, sigma)``, sigma of shape (batch,).
        conditioning, sigmas: how it is called; see :class:`NetworkScore`.

    Attributes, Raises: as :class:`NetworkScore`.

    Example:
        >>> import torch
        >>> model = DenoiserScore(lambda x, sigma: torch.zeros_like(x))
        >>> model(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
        tensor([[-1.0000],
                [-0.2500]])
    """

    predicts = "x0"
