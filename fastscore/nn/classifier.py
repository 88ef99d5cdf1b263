"""A multilayer perceptron that tells the class of noisy data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastscore._support.checks import (
    check_floating,
    check_int,
    check_number,
    check_shape,
    fail_type,
)
from fastscore._support.spread import standard_deviation, warn_if_far_off
from fastscore.conditioning import as_sigma
from fastscore.nn._perceptron import ACTIVATION, HIDDEN, check_widths, draw_weights, perceptron


class NoisyClassifier(nn.Module):
    """Classifier of fully connected layers for noisy data of any shape, for classifier guidance.

    ``model(x, sigma)``, with x = x_0 + sigma z, is f(x / sqrt(data_std^2 + sigma^2), log sigma):
    logits (batch, classes). Samples are flattened; the noise level is told, and the weights drawn,
    as by :class:`fastscore.nn.ScoreMLP`, so that training starts from classes that are all
    about as likely. :func:`fastscore.classifier_loss` trains it,
    :class:`fastscore.guidance.ClassifierGuidance` guides a score by it.

    Args:
        data_shape: of a sample, or its number of dimensions.
        classes: how many, at least 1.
        hidden: widths of the hidden layers, at least one.
        activation: "silu" (default), "softplus", "tanh", "elu", "gelu", "relu" or "sigmoid".
        data_std: standard deviation of the data about their mean; :meth:`for_data` takes it from
            them.

    Attributes:
        layers: the ``nn.Sequential`` of linear layers and activations.
        data_shape: of a sample, a tuple.
        classes: how many.
        sigma_range: the noise levels (lowest, highest) that it was trained on; None until it is
            set.
        config: the arguments that make this network again.

    Raises:
        TypeError, ValueError: sizes below 1, no hidden layer, an unknown activation; on call, an x
            that is not (batch, *data_shape), a sigma that is not (batch,).

    >>> model = NoisyClassifier((1, 8, 8), classes=10)
    >>> model(torch.zeros(5, 1, 8, 8), torch.ones(5)).shape
    torch.Size([5, 10])
    """

    sigma_range: tuple[float, float] | None = None

    def __init__(
        self,
        data_shape: int | Sequence[int],
        classes: int,
        hidden: Sequence[int] = HIDDEN,
        *,
        activation: str = ACTIVATION,
        data_std: float = 1.0,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "NoisyClassifier"
        if isinstance(data_shape, str) or not isinstance(data_shape, (int, Sequence)):
            fail_type(fn, "data_shape", "a shape, or a number of dimensions", data_shape)
        sizes = [data_shape] if isinstance(data_shape, int) else list(data_shape)
        shape = [check_int(fn, "data_shape", size, minimum=1) for size in sizes]
        self.classes = check_int(fn, "classes", classes, minimum=1)
        check_number(fn, "data_std", data_std, positive=True)
        widths = check_widths(fn, hidden, activation)
        self.config: dict[str, Any] = {
            "data_shape": shape,
            "classes": int(classes),
            "hidden": widths,
            "activation": activation,
            "data_std": float(data_std),
        }
        self.data_shape = tuple(shape)
        self.data_std = data_std
        self.conditioning = "sigma"
        self.layers = perceptron(math.prod(shape) + 1, widths, int(classes), activation)
        self.reset_parameters()

    @classmethod
    def for_data(
        cls,
        x: Tensor,
        classes: int,
        hidden: Sequence[int] = HIDDEN,
        *,
        activation: str = ACTIVATION,
    ) -> Self:
        """The network for a data set: ``data_shape`` and ``data_std`` are taken from it.

        Data whose mean is more than 3 standard deviations from 0 get a warning.

        Args:
            x: the data, or a large part of them, (n, ...), floating point.
            classes, hidden, activation: as for the class.

        Raises:
            TypeError, ValueError: as the class; an ``x`` with fewer than two samples that differ,
                or that is not finite.

        >>> model = NoisyClassifier.for_data(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), classes=2)
        >>> model.data_shape, round(model.data_std, 3)
        ((2,), 0.707)
        """
        fn = "NoisyClassifier.for_data"
        spread = standard_deviation(fn, x)
        warn_if_far_off(fn, x, spread)
        return cls(tuple(x.shape[1:]), classes, hidden, activation=activation, data_std=spread)

    def reset_parameters(self) -> None:
        """Draw the weights anew from torch's default generator."""
        draw_weights(self.layers)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The logits at x (batch, *data_shape) and noise levels sigma (batch,)."""
        check_floating("NoisyClassifier", "x", x, min_dim=1)
        check_shape("NoisyClassifier", "x", x, (len(x), *self.data_shape), "batch and data_shape")
        level = as_sigma("NoisyClassifier", x, sigma).unsqueeze(1)
        scaled = x.reshape(len(x), -1) / (level.square() + self.data_std**2).sqrt()
        return self.layers(torch.cat([scaled, level.log()], dim=1).to(x.dtype))

    def extra_repr(self) -> str:
        """What the layers don't say, for ``repr``."""
        return f"data_shape={self.data_shape}, classes={self.classes}, data_std={self.data_std}"
