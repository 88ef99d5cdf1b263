"""A multilayer perceptron that returns a score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastscore._support.checks import (
    check_choice,
    check_floating,
    check_int,
    check_number,
    check_shape,
    fail,
    fail_type,
)
from fastscore.conditioning import as_sigma

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


class ScoreMLP(nn.Module):
    """Score network of fully connected layers for data of shape (batch, dim).

    With noise levels, ``model(x, sigma)`` is f(x / sqrt(data_std^2 + sigma^2), log sigma) / sigma:
    the division by sigma is Technique 3 of Song and Ermon 2020, the scaling of the input keeps it
    of order one at every level. Without (``noise_conditional=False``) f knows x alone: ``model(x)``
    is f(x), for one level or sliced score matching, and ``model(x, sigma)`` is f(x) / sigma. That
    is Technique 3 to the letter, and for many dimensions, where |x| itself tells the level.

    Weights are Xavier-uniform and biases 0, with the last layer scaled by 0.01, so that training
    starts from a score near 0.

    Args:
        dim: number of dimensions of a sample.
        hidden: widths of the hidden layers, at least one.
        activation: "softplus" (default), "silu", "tanh", "elu", "gelu", "relu" or "sigmoid".
        noise_conditional: whether f is told sigma.
        data_std: standard deviation of the data about their mean.

    Attributes:
        layers: the ``nn.Sequential`` of linear layers and activations. Its input is the scaled x,
            followed by log sigma when noise-conditional.
        data_shape: (dim,), from which samplers know what to draw.
        config: the arguments that make this network again.

    Raises:
        TypeError, ValueError: sizes below 1, no hidden layer, an unknown activation; on call, an x
            that is not (batch, dim), a sigma that is not (batch,), or none where f is told it.

    >>> model = ScoreMLP(2, hidden=(64, 64))
    >>> model(torch.zeros(5, 2), torch.ones(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: str = "softplus",
        noise_conditional: bool = True,
        data_std: float = 1.0,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "ScoreMLP"
        check_int(fn, "dim", dim, minimum=1)
        check_choice(fn, "activation", activation, tuple(ACTIVATIONS))
        check_number(fn, "data_std", data_std, positive=True)
        if isinstance(hidden, str) or not isinstance(hidden, Iterable):
            fail_type(fn, "hidden", "a sequence of widths", hidden)
        widths = [check_int(fn, "hidden", width, minimum=1) for width in hidden]
        if not widths:
            fail(fn, "hidden", "at least one width", tuple(hidden))
        self.config: dict[str, Any] = {
            "dim": int(dim),
            "hidden": widths,
            "activation": activation,
            "noise_conditional": bool(noise_conditional),
            "data_std": float(data_std),
        }
        self.data_shape = (int(dim),)
        self.data_std = data_std
        self.noise_conditional = noise_conditional
        self.conditioning, self.sigma_optional = "sigma", not noise_conditional
        layers: list[nn.Module] = []
        width = dim + int(noise_conditional)
        for next_width in widths:
            layers += [nn.Linear(width, next_width), ACTIVATIONS[activation]()]
            width = next_width
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew from torch's default generator."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for layer in linear:
            nn.init.xavier_uniform_(layer.weight, gain=0.01 if layer is linear[-1] else 1.0)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The score at x (batch, dim) and noise levels sigma (batch,)."""
        check_floating("ScoreMLP", "x", x, min_dim=1)
        check_shape("ScoreMLP", "x", x, (len(x), *self.data_shape), "batch and dim")
        if sigma is None:
            if self.noise_conditional:
                fail("ScoreMLP", "sigma", "given to a noise-conditional network", None)
            return self.layers(x)
        level = as_sigma("ScoreMLP", x, sigma).unsqueeze(1)
        features = x
        if self.noise_conditional:
            scaled = x / (level.square() + self.data_std**2).sqrt()
            features = torch.cat([scaled, level.log()], dim=1).to(x.dtype)
        return (self.layers(features) / level).to(x.dtype)

    def extra_repr(self) -> str:
        """What the layers don't say, for ``repr``."""
        return f"noise_conditional={self.noise_conditional}, data_std={self.data_std}"
