"""Adapters from what other libraries' networks predict to the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fastscore._support.alike import hypot_everywhere
from fastscore._support.buffers import ExactBuffers
from fastscore._support.checks import (
    check_callable,
    check_floating,
    check_sigmas,
    fail,
    per_sample,
)
from fastscore._support.wrappers import said_by
from fastscore.conditioning import (
    as_score,
    as_sigma,
    call_model,
    condition,
    conditioning_of,
    prediction_of,
    sigma_range_of,
)
from fastscore.derivatives.known import METHOD, OF_ADAPTERS, Keeping, Known, known_divergence


class Wrapper(ExactBuffers):
    """A model of (x, sigma) made of another one."""

    conditioning = "sigma"  # how it is called itself
    prediction = "score"  # what it returns
    net_conditioning: str | None = None  # how the other is called, where there is a choice

    def __init__(self, arg: str, model: Callable[..., Tensor]) -> None:
        """See the class."""
        super().__init__()
        check_callable(type(self).__name__, arg, model)
        self.data_shape: tuple[int, ...] | None = said_by(model, "data_shape")
        self._said_range: tuple[float, float] | None = None

    @property
    def sigma_range(self) -> tuple[float, float] | None:
        """The noise levels (lowest, highest) that it knows: as set, or its network's, or None."""
        if self._said_range is not None:
            return self._said_range
        own = sigma_range_of(self.inner, fn=type(self).__name__)
        return self._own_range() if own is None else own

    @sigma_range.setter
    def sigma_range(self, value: tuple[float, float] | None) -> None:
        self._said_range = value

    @property
    def inner(self) -> Any:
        """What it is made around."""
        return getattr(self, "net", None)

    def _own_range(self) -> tuple[float, float] | None:
        """The range that it knows of where its network says none."""
        return None

    @property
    def output_and_divergence(self) -> Known:
        """As ``forward``, with the divergence of the output in float64, (batch,), beside it.

        There where the network that this is made around knows its own
        (:mod:`fastscore.derivatives.known`), and not otherwise.

        Example:
            >>> import torch, fastscore
            >>> hasattr(NetworkScore(fastscore.nn.ScoreMLP(2)), "output_and_divergence")
            False
            >>> mixture = fastscore.scores.GaussianMixture([1.0], [[0.0, 0.0]], 3.0)
            >>> score, divergence = NetworkScore(mixture).output_and_divergence(torch.ones(1, 2), 1)
            >>> divergence
            tensor([-0.5000], dtype=torch.float64)
        """
        method, of_adapter = known_divergence(self.inner), getattr(self, OF_ADAPTERS, None)
        if method is None or of_adapter is None:
            raise AttributeError(METHOD)  # nn.Module says which one has none
        found: Known = partial(of_adapter, method)
        return found

    def convention(self) -> dict[str, Any]:
        """How the model is called and what it returns, in plain values."""
        raise NotImplementedError


class Adapter(Wrapper):
    """A score of (x, sigma) made of another model, and how that one is told the noise level."""

    net_conditioning: str
    sigmas: Tensor | None

    def __init__(
        self,
        arg: str,
        model: Callable[..., Tensor],
        conditioning: str | None,
        sigmas: Tensor | Sequence[float] | None,
    ) -> None:
        """See the class."""
        super().__init__(arg, model)
        name = type(self).__name__
        self.net_conditioning = conditioning_of(name, model, conditioning, "sigma")
        if (sigmas is None) != (self.net_conditioning != "index"):
            fail(name, "sigmas", 'given with conditioning="index", and only then', sigmas)
        levels = None if sigmas is None else check_sigmas(name, sigmas).detach().double()
        self.register_buffer("sigmas", levels, persistent=False)
        self._levels = None if levels is None else (float(levels[-1]), float(levels[0]))

    def _own_range(self) -> tuple[float, float] | None:
        return self._levels

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
    denoiser D of Karras et al. 2022, https://arxiv.org/abs/2206.00364). One of v = (z - sigma
    x_0)/n, n^2 = 1 + sigma^2 (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512), is given x/n,
    as in every process, and its score is -v/(sigma n) - x/n^2.

    The samplers and losses take such networks as they are, with ``conditioning=`` and
    ``prediction=``; the adapter is for everything else that asks for a score, and for levels
    between those that the network was trained with.

    Args:
        net: a module or function, called ``net(x, sigma)`` with sigma of shape (batch,).
        prediction: what it returns: "score", "eps", "x0" or "v"; by default what its own attribute
            ``prediction`` says, else "score".
        conditioning: what it is given beside x: "sigma", "log_sigma", "none" or "index"; by
            default what its own attribute ``conditioning`` says, else "sigma". (One that is told
            the time: :class:`fastscore.sde.ProcessScore`.)
        sigmas: for ``conditioning="index"``, the noise levels (L,) that the index counts; a sigma
            between two of them gets the index of the nearer one.

    Attributes:
        data_shape: that of ``net``, None if it has none.
        sigma_range: the noise levels (lowest, highest) that ``net`` says it knows, else those of
            ``sigmas``; or as set.
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
        self.net_prediction = _prediction(type(self).__name__, net, prediction)
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor:
        """The score at ``x``, shape (batch, ...), of noise level ``sigma``, shape (batch,).

        What else is given by name goes to the network.
        """
        return self._score(self.net, x, sigma, model_kwargs)

    def _score(
        self,
        net: Callable[..., Tensor],
        x: Tensor,
        sigma: Tensor | float,
        model_kwargs: dict[str, Any],
    ) -> Tensor:
        name = type(self).__name__
        check_floating(name, "x", x, min_dim=1)
        level = as_sigma(name, x, sigma)
        index = self._index(level)
        seen = _scaled(x, level) if self.net_prediction == "v" else x
        output = call_model(name, net, seen, level, index, self.net_conditioning, model_kwargs)
        return as_score(self.net_prediction, output, x, level).to(x.dtype)

    def _with_divergence(
        self, method: Known, x: Tensor, sigma: Tensor | float, **model_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The score and its divergence, of a network's ``output_and_divergence``."""
        name, net = type(self).__name__, Keeping(method)
        score = self._score(net, x, sigma, model_kwargs)
        found = net.checked(name, x).double()
        level, elements = as_sigma(name, x, sigma).double(), math.prod(x.shape[1:])
        if self.net_prediction == "eps":
            return score, -found / level
        if self.net_prediction == "x0":
            return score, (found - elements) / level.square()
        if self.net_prediction == "v":  # of what it sees, x/n
            return score, -(found / level + elements) / (level.square() + 1)
        return score, found


def _scaled(x: Tensor, level: Tensor) -> Tensor:
    """x/sqrt(1 + sigma^2), which a network of v sees: as in every process."""
    return (x / per_sample(hypot_everywhere(level, 1.0), x)).to(x.dtype)


def _prediction(fn: str, net: Any, given: str | None) -> str:
    """A network's prediction, of those that need no time."""
    found = prediction_of(fn, net, given, in_time=True)
    if found == "velocity":
        expected = "one of 'score', 'eps', 'x0', 'v'"
        fail(fn, "prediction", expected, "'velocity' (fastscore.sde.ProcessScore takes it)")
    return found


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
