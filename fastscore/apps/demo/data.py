"""The demo's data: the 1,797 handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._support.extras import require

HELD_OUT = 297


def load_digits() -> tuple[Tensor, Tensor]:
    """(training, held-out) digits, float32 of shape (n, 1, 8, 8) in [0, 1], split at random.

    Raises:
        ImportError: scikit-learn is missing.
    """
    datasets = require("demo", "sklearn.datasets", "scikit-learn")
    images = torch.from_numpy(datasets.load_digits().images).float().div_(16).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[HELD_OUT:]], images[order[:HELD_OUT]]
