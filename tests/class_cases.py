"""Data of two classes whose scores and posteriors are known, at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from helpers import randn
from torch import Tensor, nn

import fastscore
from fastscore import annealed_langevin, probability_flow, reverse_sde, sde
from fastscore.scores import GaussianMixture

NONE = 2  # the label of no class
OF_COMPONENT = torch.tensor([0, 1, 1])
PRIOR = (0.4, 0.6)


def mixtures(dtype: torch.dtype = torch.float32) -> tuple[GaussianMixture, list[GaussianMixture]]:
    """All data, (4,), and those of each class."""
    weights = torch.tensor([0.4, 0.36, 0.24], dtype=dtype)
    means, variances = 2 * randn(3, 4, dtype=dtype, seed=5), torch.tensor([0.5, 1.0, 0.2]).to(dtype)
    whole = GaussianMixture(weights, means, variances)
    parts = [
        GaussianMixture(weights[own], means[own], variances[own])
        for own in (OF_COMPONENT == 0, OF_COMPONENT == 1)
    ]
    return whole, parts


class Posterior(nn.Module):
    """The exact logits of the classes at x_0 + sigma z, and how often it was asked."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mixtures(dtype)[1])
        self.calls = 0

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        pairs = zip(self.parts, PRIOR, strict=True)
        logits: list[Any] = [p.log_prob(x, sigma) + math.log(w) for p, w in pairs]  # type: ignore[operator]
        return torch.stack(logits, dim=1)


class Conditional(nn.Module):
    """The exact scores of the classes and, of label 2, that of all data."""

    conditioning = "sigma"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        whole, parts = mixtures(dtype)
        self.scores = nn.ModuleList([*parts, whole])
        self.calls: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        self.calls.append(len(x))
        scores = torch.stack([score(x, sigma) for score in self.scores])
        return scores[label, torch.arange(len(x))]


def draw_normals(layers: nn.Module, std: float = 1.0) -> None:
    """Weights of layers that start at 0, or near it."""
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=std)


class InTime:
    """A model of (x, sigma) as one of (x_t, time_scale t) that returns the same, of a process."""

    def __init__(self, model: Callable[..., Tensor], process: sde.Process, scale: float = 1.0):
        self.model, self.process, self.scale = model, process, scale

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha = self.process.alpha(t / self.scale)
        level = self.process.noise_level(t / self.scale)
        return self.model((x / alpha[:, None]).to(x.dtype), level.to(x.dtype))


def points(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Points, levels and labels: far and near, high and low."""
    count = 64
    sigma = torch.logspace(-1.5, 1.5, count, dtype=dtype)
    return 3 * randn(count, 4, dtype=dtype, seed=1), sigma, torch.arange(count) % 2


VE = sde.VE(0.05, 20.0)


def annealed(model: Any, **options: Any) -> Tensor:
    sigmas = fastscore.geometric_sigmas(20.0, 0.05, 12)
    return annealed_langevin(model, sigmas, shape=(6, 4), seed=3, **options)


def reverse(model: Any, **options: Any) -> Tensor:
    return reverse_sde(model, VE, shape=(6, 4), steps=12, seed=3, **options)


def flow(model: Any, **options: Any) -> Tensor:
    return probability_flow(model, VE, shape=(6, 4), seed=3, **{"steps": 12, **options})


def adaptive(model: Any, **options: Any) -> Tensor:
    return flow(model, solver="rk45", steps=None, **options)


SAMPLERS = {"annealed": annealed, "reverse": reverse, "flow": flow, "adaptive": adaptive}
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def each_score(scores: list[Any]) -> Callable[..., Tensor]:
    """Of each sample that of its label; what guidance is to give."""

    def score(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return torch.stack([s(x, sigma) for s in scores])[label, torch.arange(len(x))]

    return score
