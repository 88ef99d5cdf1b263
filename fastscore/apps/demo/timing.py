"""What the library's own part of the demo costs, against the same part in eager PyTorch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore import ops, random
from fastscore.losses.dsm import dsm_tables
from fastscore.samplers.annealed import annealed_table


def interleaved(*sides: Callable[[], object], repeats: int = 60) -> list[float]:
    """Median seconds of each side, the sides taking turns; the first turns only warm up."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 5):
        for side, record in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            if turn >= 5:
                record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


def dsm_seconds(x: Tensor, sigmas: Tensor) -> tuple[float, float]:
    """(fused, eager) seconds of perturbation, loss and gradient for one batch, no network."""
    exact = sigmas.double()
    perturb_table, residual_table = dsm_tables("dsm_seconds", exact, "sigma2", "score")
    out = torch.randn_like(x, requires_grad=True)
    key = random.key(0)

    def fused() -> None:
        _, labels = ops.perturb(x, perturb_table, key)
        ops.dsm_residual(out, residual_table, labels, key).mean().backward()
        out.grad = None

    def eager() -> None:
        labels = torch.randint(len(sigmas), (x.shape[0],))
        sigma = sigmas[labels].reshape(-1, 1, 1, 1)
        z = torch.randn_like(x)
        _ = x + sigma * z
        (0.5 * (sigma * out + z).square().flatten(1).sum(1)).mean().backward()
        out.grad = None

    ours, plain = interleaved(fused, eager)
    return ours, plain


def langevin_seconds(x: Tensor, sigmas: Tensor, steps_per_sigma: int) -> tuple[float, float]:
    """(fused, eager) seconds of one Langevin update of a batch, no network."""
    table = annealed_table(sigmas.double(), steps_per_sigma, 1e-5, "half", denoise=False)
    state, score, key = torch.randn_like(x), torch.randn_like(x), random.key(0)

    def fused() -> None:
        ops.langevin_step_(state, score, table, key)

    def eager() -> None:
        state.add_(score, alpha=1e-3).add_(torch.randn_like(state), alpha=1e-2)

    ours, plain = interleaved(fused, eager)
    return ours, plain
