"""What the tests of continuous time share: exact scores of a Gaussian, called in every way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore import reverse_sde, sde
from fastscore.sde import Process

MEAN, VARIANCE = 0.7, 0.25
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESSES: list[Process] = [
    sde.VE(0.01, 10.0),
    sde.VP(),
    sde.SubVP(),
    sde.Cosine(),
    sde.DDPM(BETAS),
    sde.RectifiedFlow(),
]
PREDICTIONS = ("score", "eps", "x0", "v", "velocity")

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def column(t: Tensor, x: Tensor) -> Tensor:
    return t.double().reshape(-1, *[1] * (x.dim() - 1))


def gaussian(x: Tensor, s: Tensor) -> Tensor:
    """The score of y, of data N(MEAN, VARIANCE) under noise s. Elementwise."""
    return ((MEAN - x.double()) / (VARIANCE + column(s, x) ** 2)).to(x.dtype)


class InTime:
    """The same data's network of (x, t), trained for a process, that predicts anything."""

    conditioning = "time"

    def __init__(self, process: Process, prediction: str = "score", scale: float = 1.0) -> None:
        self.process, self.prediction, self.time_scale = process, prediction, scale
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        p, t = self.process, column(t, x) / self.time_scale
        alpha, sigma = p.alpha(t), p.sigma(t)
        norm = torch.hypot(alpha, sigma)
        state = x.double() * (norm if self.prediction == "v" else 1.0)
        score = (alpha * MEAN - state) / (alpha**2 * VARIANCE + sigma**2)
        eps = -sigma * score
        x0 = (state - sigma * eps) / alpha
        answers: dict[str, Any] = {
            "score": lambda: score,
            "eps": lambda: eps,
            "x0": lambda: x0,
            "v": lambda: (alpha * eps - sigma * x0) / norm,
            "velocity": lambda: p.alpha_rate(t) * x0 + p.sigma_rate(t) * eps,
        }
        return answers[self.prediction]().to(x.dtype)


def flow_of(process: Process, x: Tensor, start: float, end: float) -> Tensor:
    """Where the probability flow of these data takes x from one time to another."""
    alpha, alpha0 = process.alpha(end), process.alpha(start)
    variance = alpha**2 * VARIANCE + process.sigma(end) ** 2
    variance0 = alpha0**2 * VARIANCE + process.sigma(start) ** 2
    return alpha * MEAN + (x - alpha0 * MEAN) * torch.sqrt(variance / variance0)


def run(x: Any = None, model: Any = None, process: Process | None = None, **options: Any) -> Any:
    process = sde.VP() if process is None else process
    defaults: dict[str, Any] = {"steps": 6, "corrector": "annealed", "seed": 3}
    return reverse_sde(model or InTime(process), process, x, **{**defaults, **options})


class Sees(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, y: Tensor, s: Tensor) -> Tensor:
        return 0 * self.net(y) + gaussian(y, s)
