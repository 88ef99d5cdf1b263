"""A multilayer perceptron that returns a score."""

from __future__ import annotations

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
    fail,
)
from fastscore._support.spread import standard_deviation, warn_if_far_off
from fastscore.conditioning import as_sigma
from fastscore.nn._classes import ClassEmbedding, check_classes, refuse_label
from fastscore.nn._perceptron import ACTIVATION, HIDDEN, check_widths, draw_weights, perceptron

CLASS_WIDTH = 32  # of the vector that stands for a class


class ScoreMLP(nn.Module):
    """Score network of fully connected layers for data of shape (batch, dim).

    With noise levels, ``model(x, sigma)`` is f(x / sqrt(data_std^2 + sigma^2), log sigma) / sigma:
    the division by sigma is Technique 3 of Song and Ermon 2020, the scaling of the input keeps it
    of order one at every level. Without (``noise_conditional=False``) f knows x alone: ``model(x)``
    is f(x), for one level or sliced score matching, and ``model(x, sigma)`` is f(x) / sigma. That
    is Technique 3 to the letter, and for many dimensions, where |x| itself tells the level.

    Weights are Xavier-uniform, with the last layer scaled by 0.01, so that training starts from a
    score near 0. The biases of the hidden layers are drawn from [-1, 1), those of the last are 0.

    The defaults come from a study, ``benchmarks/defaults.py``. Percent of samples off the data
    after 3,000 steps of Adam (2e-3, batches of 256), drawn from a moving average (0.999); fresh
    data 0.1, digits 1. The data are three sets in the plane, two in 8 dimensions and one in 64:

    ============================  =====  =====  =====  =========  =========  =========
    hidden and activation         moons  board  rings  mixture 8  surface 8  digits 64
    ============================  =====  =====  =====  =========  =========  =========
    128, 128 softplus, as before  47.6   43.4   63.0   23.6       91.2       93.8
    128, 128 silu, as before      32.2   40.4   61.9   6.6        36.6       82.3
    128, 128 silu                 14.7   43.7   49.5   9.8        10.0       34.5
    256, 256 silu                 14.6   42.5   43.0   7.8        1.4        6.7
    128, 128, 128 softplus        24.1   45.4   56.5   11.7       15.2       47.3
    128, 128, 128 gelu            2.9    25.1   4.9    3.0        3.9        53.4*
    128, 128, 128 silu            4.0    28.9   11.7   3.3        2.9        37.4*
      with data_std=1             5.7    24.6   54.0   1.8        2.8        75.8
      with biases of 0            6.7    35.2   28.1   2.6        1.8        32.6
    128, 128, 128, 128 silu       1.8    23.4   2.7    2.9        1.9        53.9
    256, 256, 256 silu            3.3    28.7   6.7    3.0        1.5        9.9
    ============================  =====  =====  =====  =========  =========  =========

    "As before" are the defaults of old, ``data_std=1`` with biases that start at 0; all else has
    the data's own ``data_std``. The first row, the last and "128, 128, 128 silu" are medians of
    three seeds, others are one. With a star some samples left all reason. A training step of the
    last row takes 2.8 times that of two layers of 128, and 2.3 times that of three (points in the
    plane, one core, the networks taking turns on a busy machine): where time counts and dimensions
    are few, ``hidden=(128, 128, 128)``. A step of 1e-3 is too small for so short a training; 4e-3
    is as good as 2e-3 in the plane, and worse in 64 dimensions.

    Args:
        dim: number of dimensions of a sample.
        hidden: widths of the hidden layers, at least one. Three of 256 by default. The exact trace
            in closed form, which score matching and :func:`fastscore.ssm_loss` take where it is
            cheap, is there for one or two: give ``hidden=(256, 256)`` for it.
        activation: "silu" (default), "softplus", "tanh", "elu", "gelu", "relu" or "sigmoid".
        noise_conditional: whether f is told sigma.
        data_std: standard deviation of the data about their mean; :meth:`for_data` takes it from
            them. Too large by a factor of 7, as 1 is for the rings, it costs most of the gain. The
            mean is not taken off: that makes no difference where it lies within one standard
            deviation of 0, a small one at 3, and a large one at 10.
        classes: how many classes f is told, as a vector that is learnt: ``model(x, sigma,
            label=label)`` with int64 labels (batch,) in [0, classes), or ``classes`` itself for
            none of them, which :class:`fastscore.guidance.ClassifierFreeGuidance` and ``drop=`` of
            the losses take as ``null={"label": classes}``. None for a network without classes.

    Attributes:
        layers: the ``nn.Sequential`` of linear layers and activations. Its input is the scaled x,
            followed by log sigma when noise-conditional, and the vector of its class.
        data_shape: (dim,), from which samplers know what to draw.
        sigma_range: the noise levels (lowest, highest) that it was trained on, for samplers in
            continuous time; None until it is set.
        config: the arguments that make this network again.

    Raises:
        TypeError, ValueError: sizes below 1, no hidden layer, an unknown activation; on call, an x
            that is not (batch, dim), a sigma that is not (batch,), or none where f is told it; a
            label likewise, or one that is no class.

    >>> model = ScoreMLP(2, hidden=(64, 64))
    >>> model(torch.zeros(5, 2), torch.ones(5)).shape
    torch.Size([5, 2])
    """

    sigma_range: tuple[float, float] | None = None

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = HIDDEN,
        *,
        activation: str = ACTIVATION,
        noise_conditional: bool = True,
        data_std: float = 1.0,
        classes: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "ScoreMLP"
        check_int(fn, "dim", dim, minimum=1)
        check_number(fn, "data_std", data_std, positive=True)
        classes = check_classes(fn, classes)
        widths = check_widths(fn, hidden, activation)
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
        told = 0 if classes is None else CLASS_WIDTH
        width = dim + int(noise_conditional) + told
        self.layers = perceptron(width, widths, dim, activation)
        self.classes, self.embed = classes, None
        if classes is not None:
            self.config["classes"] = classes
            self.embed = ClassEmbedding(fn, classes, CLASS_WIDTH)
        self.reset_parameters()

    @classmethod
    def for_data(
        cls,
        x: Tensor,
        hidden: Sequence[int] = HIDDEN,
        *,
        activation: str = ACTIVATION,
        noise_conditional: bool = True,
        classes: int | None = None,
    ) -> Self:
        """The network for a data set: ``dim`` and ``data_std`` are taken from it.

        Data whose mean is more than 3 standard deviations from 0 get a warning: take it off, train,
        sample, and put it back.

        Args:
            x: the data, or a large part of them, (n, dim), floating point.
            hidden, activation, noise_conditional, classes: as for the class.

        Raises:
            TypeError, ValueError: as the class; an ``x`` that is not (n, dim) with two samples at
                least that differ, or is not finite.

        >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> model = ScoreMLP.for_data(x)
        >>> model.data_shape, round(model.data_std, 3)
        ((2,), 0.707)
        """
        fn = "ScoreMLP.for_data"
        spread = standard_deviation(fn, x)
        if x.dim() != 2:
            fail(fn, "x", "of shape (n, dim) (x.flatten(1) is)", f"shape {tuple(x.shape)}")
        warn_if_far_off(fn, x, spread)
        return cls(
            x.shape[1],
            hidden,
            activation=activation,
            noise_conditional=noise_conditional,
            data_std=spread,
            classes=classes,
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew from torch's default generator."""
        draw_weights(self.layers)
        if self.embed is not None:
            self.embed.reset_parameters()

    @property
    def refused_names(self) -> tuple[str, ...]:
        """Arguments that this network does not take, made as it was."""
        return ("label",) if self.classes is None else ()

    def forward(
        self, x: Tensor, sigma: Tensor | float | None = None, label: Tensor | None = None
    ) -> Tensor:
        """The score at x (batch, dim), noise levels sigma and, with classes, label (batch,)."""
        check_floating("ScoreMLP", "x", x, min_dim=1)
        check_shape("ScoreMLP", "x", x, (len(x), *self.data_shape), "batch and dim")
        told = []
        if self.embed is None:
            refuse_label("ScoreMLP", label)
        else:
            told.append(self.embed.of(label, x))
        if sigma is None:
            if self.noise_conditional:
                fail("ScoreMLP", "sigma", "given to a noise-conditional network", None)
            return self.layers(torch.cat([x, *told], dim=1) if told else x)
        level = as_sigma("ScoreMLP", x, sigma).unsqueeze(1)
        features = x
        if self.noise_conditional:
            scaled = x / (level.square() + self.data_std**2).sqrt()
            features = torch.cat([scaled, level.log(), *told], dim=1).to(x.dtype)
        elif told:
            features = torch.cat([x, *told], dim=1).to(x.dtype)
        return (self.layers(features) / level).to(x.dtype)

    def extra_repr(self) -> str:
        """What the layers don't say, for ``repr``."""
        own = f"noise_conditional={self.noise_conditional}, data_std={self.data_std}"
        return own if self.classes is None else f"{own}, classes={self.classes}"
