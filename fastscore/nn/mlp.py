"""A multilayer perceptron that returns a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastscore._checks import check_choice, check_int, check_number, fail

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """A number for each sample, (batch,), shaped to broadcast against ``like``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


class ScoreMLP(nn.Module):
    """Score network of fully connected layers for data of shape (batch, dim).

    With noise levels, ``model(x, sigma)`` is f(x / sqrt(data_std^2 + sigma^2), log sigma) / sigma:
    the division by sigma is Technique 3 of Song and Ermon 2020, the scaling of the input keeps it
    of order one at every level. Without (``noise_conditional=False``), ``model(x)`` is f(x).

    Args:
        dim: number of dimensions of a sample.
        hidden: widths of the hidden layers, at least one.
        activation: "softplus" (default), "silu", "tanh", "elu", "gelu", "relu" or "sigmoid".
        noise_conditional: whether the network takes sigma.
        data_std: standard deviation of the data about their mean.

    Attributes:
        layers: the ``nn.Sequential`` of linear layers and activations. Its input is the scaled x,
            followed by log sigma when noise-conditional.
        data_shape: (dim,), from which samplers know what to draw.

    Raises:
        TypeError, ValueError: sizes below 1, no hidden layer, an unknown activation.

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
        super().__init__()
        fn = "ScoreMLP"
        check_int(fn, "dim", dim, minimum=1)
        check_choice(fn, "activation", activation, tuple(ACTIVATIONS))
        check_number(fn, "data_std", data_std, positive=True)
        widths = [check_int(fn, "hidden", width, minimum=1) for width in hidden]
        if not widths:
            fail(fn, "hidden", "at least one width", tuple(hidden))
        self.config: dict[str, Any] = {
            "dim": dim,
            "hidden": widths,
            "activation": activation,
            "noise_conditional": noise_conditional,
            "data_std": data_std,
        }
        self.data_shape = (dim,)
        self.data_std = data_std
        self.noise_conditional = noise_conditional
        layers: list[nn.Module] = []
        width = dim + int(noise_conditional)
        for next_width in widths:
            layers += [nn.Linear(width, next_width), ACTIVATIONS[activation]()]
            width = next_width
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """The score at x (batch, dim) and noise levels sigma (batch,)."""
        if not self.noise_conditional:
            return self.layers(x)
        if sigma is None:
            fail("ScoreMLP", "sigma", "given to a noise-conditional network", None)
        sigma = per_sample(sigma.to(x.dtype), x)
        scaled = x / (sigma * sigma + self.data_std**2).sqrt()
        return self.layers(torch.cat([scaled, sigma.log()], dim=1)) / sigma
