"""The denoiser that EDM makes of a raw network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastscore._support.alike import hypot_everywhere
from fastscore._support.checks import check_floating, check_number, fail, per_sample
from fastscore._support.wrappers import said_by
from fastscore.conditioning import as_sigma, call_model
from fastscore.derivatives.known import Keeping, Known
from fastscore.scores.adapters import Wrapper


class EDMDenoiser(Wrapper):
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) of a raw network F.

    With sd the standard deviation of the data and n^2 = sigma^2 + sd^2: c_skip = sd^2/n^2,
    c_out = sigma sd/n, c_in = 1/n, c_noise = log(sigma)/4. What F is given and what it has to
    return are then of variance 1 at every noise level. Karras et al. 2022, table 1,
    https://arxiv.org/abs/2206.00364.

    It is a model of (x, sigma) that predicts the data, and says so: the samplers and losses take
    it as it is, and so does :class:`NetworkScore`, which makes a score of it.

    Args:
        net: a module or function, called ``net(c_in x, c_noise)`` with c_noise of shape (batch,).
        sigma_data: standard deviation of the data, positive.

    Attributes:
        data_shape, sigma_range: those of ``net``, None where it has none.
        conditioning, prediction: "sigma" and "x0".

    Raises:
        ValueError: a ``sigma_data`` that is not positive; a network that says of itself that it is
            called or predicts otherwise; on call, an output that has not the shape of x.
        TypeError: ``net`` can't be called.

    Example:
        A raw network that returns 0 leaves the best guess from x alone, for data of N(0, sd^2):

        >>> import torch
        >>> denoiser = EDMDenoiser(lambda x, noise: torch.zeros_like(x))
        >>> denoiser(torch.ones(2, 1), torch.tensor([0.5, 1.0]))
        tensor([[0.5000],
                [0.2000]])
    """

    prediction = "x0"

    def __init__(self, net: Callable[..., Tensor], *, sigma_data: float = 0.5) -> None:
        """See the class."""
        super().__init__("net", net)
        name = type(self).__name__
        for attribute in ("conditioning", "prediction"):
            if isinstance(own := said_by(net, attribute), str):
                expected = "a raw network of (c_in x, c_noise)"
                fail(name, "net", expected, f"one of {attribute}={own!r}")
        self.sigma_data = check_number(name, "sigma_data", sigma_data, positive=True)
        self.net = net

    def extra_repr(self) -> str:
        """The constant, for ``repr``."""
        return f"sigma_data={self.sigma_data}"

    def convention(self) -> dict[str, Any]:
        """How the network is called, in plain values."""
        return {"preconditioning": "edm", "sigma_data": self.sigma_data}

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor:
        """The posterior mean of the data at ``x``, (batch, ...), and ``sigma``, (batch,), positive.

        Differences are taken in 32 bits at least; the result has x's dtype. What else is given by
        name goes to the network.
        """
        return self._data(self.net, x, sigma, model_kwargs)

    def _data(
        self,
        net: Callable[..., Tensor],
        x: Tensor,
        sigma: Tensor | float,
        model_kwargs: dict[str, Any],
    ) -> Tensor:
        name = type(self).__name__
        check_floating(name, "x", x, min_dim=1)
        level = as_sigma(name, x, sigma)
        norm = hypot_everywhere(level, self.sigma_data)
        seen = (x / per_sample(norm, x)).to(x.dtype)
        noise = level.log() / 4
        output = call_model(name, net, seen, noise, noise, "sigma", model_kwargs)
        skip = per_sample((self.sigma_data / norm).square(), x)
        out = per_sample(level * (self.sigma_data / norm), x)
        return (skip * x + out * output).to(x.dtype)

    def _with_divergence(
        self, method: Known, x: Tensor, sigma: Tensor | float, **model_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """D and its divergence, of the raw network's ``output_and_divergence``."""
        name, net = type(self).__name__, Keeping(method)
        data = self._data(net, x, sigma, model_kwargs)
        level, elements = as_sigma(name, x, sigma).double(), math.prod(x.shape[1:])
        variance = level.square() + self.sigma_data**2
        found = level * self.sigma_data * net.checked(name, x).double()  # c_out c_in = sigma sd/n^2
        return data, (self.sigma_data**2 * elements + found) / variance
