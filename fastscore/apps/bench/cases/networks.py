"""The networks of the whole jobs, and the sizes at which they run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastscore.nn import ScoreConvNet, ScoreMLP


@dataclass(frozen=True)
class Network:
    """A network's constructor and the batch that it runs on."""

    name: str
    batch: int
    shape: tuple[int, ...]
    config: dict[str, Any]

    def make(self, device: str) -> ScoreMLP | ScoreConvNet:
        """The network, always the same: no layer of it zero, as the last ones are at first."""
        kind: type[ScoreMLP | ScoreConvNet] = ScoreMLP if self.name == "mlp" else ScoreConvNet
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = kind(**self.config)
            for parameter in network.parameters():
                if parameter.dim() > 1 and not bool(parameter.any()):
                    nn.init.normal_(parameter, std=0.02)
        return network.to(device)


def mlp(batch: int, dim: int, *hidden: int, activation: str = "softplus") -> Network:
    config = {"dim": dim, "hidden": hidden, "activation": activation}
    return Network("mlp", batch, (dim,), config)


def conv(batch: int, channels: int, size: int, width: int = 32) -> Network:
    config = {"channels": channels, "image_size": size, "base_channels": width}
    return Network("conv", batch, (channels, size, size), config)


def copy_of(network: nn.Module) -> nn.Module:
    """For a side that trains it."""
    return copy.deepcopy(network)


# The first convolutional one is the demo's.
SAMPLED = [
    mlp(128, 2, 128, 128),
    mlp(256, 64, 256, 256),
    mlp(128, 784, 512, 512),
    conv(256, 1, 8),
    conv(16, 3, 16),
    conv(8, 3, 32),
]
TRAINED = [
    mlp(128, 2, 128, 128),
    mlp(512, 128, 512, 512),
    mlp(512, 784, 512, 512),
    conv(128, 1, 8),
    conv(16, 3, 16),
    conv(8, 3, 32),
]
SLICED = [
    (mlp(512, 784, 512, 512, activation="silu"), 1),
    (mlp(512, 128, 512, 512, activation="silu"), 8),
    (mlp(512, 128, 512, activation="silu"), 1),
    (conv(64, 1, 8), 1),
    (conv(8, 3, 16), 1),
    (conv(4, 3, 32), 1),
]
EXACT = mlp(1024, 128, 512, 512, activation="silu")
QUICK = [mlp(32, 8, 32, 32), conv(16, 1, 8, width=8)]
