"""What the tests of the samplers share: exact scores, and each sampler at a small size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import annealed_langevin, consistent_annealed_langevin, langevin
from fastscore.samplers import probability_flow, reverse_sde
from fastscore.sde import VE

SIGMAS = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)

Sampler = Callable[..., Any]


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (x.dim() - 1))


def gaussian_score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of N(0, 1) data under noise sigma. Elementwise, so the same bytes for any batch."""
    return -x / (1 + expand(sigma, x) ** 2)


def point_score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of a data set with the one point 0."""
    return -x / expand(sigma, x) ** 2


def mixture_score(x: Tensor, sigma: Tensor | None = None) -> Tensor:
    """0.8 N((5, 5), I) + 0.2 N((-5, -5), I) under noise sigma."""
    variance = 1.0 if sigma is None else 1 + sigma[:, None] ** 2
    mean = torch.full((2,), 5.0, dtype=x.dtype, device=x.device)
    log_odds = math.log(4.0) + 2 * (x @ mean)[:, None] / variance
    return (mean * (2 * torch.sigmoid(log_odds) - 1) - x) / variance


def run_langevin(x: Tensor | None = None, model: Any = gaussian_score, **options: Any) -> Any:
    return langevin(model, x, steps=17, step_size=0.3, sigma=1.0, **options)


def run_annealed(x: Tensor | None = None, model: Any = gaussian_score, **options: Any) -> Any:
    return annealed_langevin(model, SIGMAS, x, steps_per_sigma=4, step_size=0.1, **options)


def run_consistent(x: Tensor | None = None, model: Any = gaussian_score, **options: Any) -> Any:
    sigmas = fastscore.geometric_sigmas(4.0, 0.5, 18)
    return consistent_annealed_langevin(model, sigmas, x, eta=0.5, **options)


def run_reverse(x: Tensor | None = None, model: Any = gaussian_score, **options: Any) -> Any:
    options.setdefault("sigmas", SIGMAS if options.get("conditioning") == "index" else None)
    return reverse_sde(model, VE(0.5, 4.0), x, steps=16, **options)


def run_flow(x: Tensor | None = None, model: Any = gaussian_score, **options: Any) -> Any:
    options.setdefault("sigmas", SIGMAS if options.get("conditioning") == "index" else None)
    return probability_flow(model, VE(0.5, 4.0), x, solver="euler", steps=18, **options)


NAMES: dict[Sampler, str] = {
    run_langevin: "langevin",
    run_annealed: "annealed_langevin",
    run_consistent: "consistent_annealed_langevin",
    run_reverse: "reverse_sde",
    run_flow: "probability_flow",
}

every_sampler = pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (run_langevin, 17),
        (run_annealed, 17),
        (run_consistent, 18),
        (run_reverse, 17),
        (run_flow, 18),
    ],
)
