"""The demo's data: the 1,797 handwritten digits that ship with scikit-learn.

Their pixels have 17 levels. A density of such data is one of spikes, as high as one likes; so the
network learns them dequantised, each level spread over a box of 1/17, and what is drawn is brought
back to the levels before it is shown or judged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._support.extras import require
from fastscore.evaluation.bits import quantize

HELD_OUT = 297
LEVELS = 17


def load_digits() -> tuple[Tensor, Tensor]:
    """(training, held-out) digits, float32 of shape (n, 1, 8, 8) in [0, 1], split at random.

    Raises:
        ImportError: scikit-learn is missing.
    """
    datasets = require("demo", "sklearn.datasets", "scikit-learn")
    images = torch.from_numpy(datasets.load_digits().images).float().div_(16).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[HELD_OUT:]], images[order[:HELD_OUT]]


def dequantised_mean(data: Tensor) -> Tensor:
    """The mean of dequantised data: (16 x + 1/2)/17 of that of x, without a draw."""
    return ((LEVELS - 1) * data.mean(0) + 0.5) / LEVELS


def dequantised_std(data: Tensor) -> Tensor:
    """The standard deviation of each pixel of dequantised data, with that of a box of 1/17."""
    variance = ((LEVELS - 1) / LEVELS) ** 2 * data.var(0, correction=0)
    return (variance + 1 / (12 * LEVELS**2)).sqrt()


def as_digits(drawn: Tensor) -> Tensor:
    """What a sampler drew, at the levels that digits have."""
    return quantize(drawn, LEVELS)
