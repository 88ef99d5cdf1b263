"""On a GPU a training step and the steps of a sampler do not wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore import DSMLoss, ScoreMatchingLoss, SDELoss, SSMLoss, sde
from fastscore.nn import ScoreMLP

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SIGMAS = [2.0, 1.0, 0.5]
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "dsm": lambda: DSMLoss(SIGMAS),
    "dsm, eps": lambda: DSMLoss(SIGMAS, prediction="eps"),
    "sde": lambda: SDELoss(sde.VP(), conditioning="sigma"),
    "sde, EDM": lambda: SDELoss(sde.VE(), times="log_normal", weighting="edm"),
    "sde, DDPM": lambda: SDELoss(sde.DDPM([0.1, 0.2]), conditioning="sigma"),
    "ssm": lambda: SSMLoss(SIGMAS),
    "ssm, forward": lambda: SSMLoss(SIGMAS, method="forward"),
    "ssm, reverse": lambda: SSMLoss(SIGMAS, method="reverse"),
    "ssm, finite differences": lambda: SSMLoss(SIGMAS, method="finite_difference"),
    "score matching": lambda: ScoreMatchingLoss(SIGMAS),
}


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("draws", [{}, {"seed": 3}, {"seed": [1, 2, 3, 4]}, {"samples": True}])
@pytest.mark.parametrize("name", LOSSES)
def test_training_steps(name: str, draws: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = ScoreMLP(dim=3).cuda(), torch.randn(4, 3, device="cuda")
    loss_fn = LOSSES[name]().cuda()
    if "samples" in draws:
        draws = {"samples": torch.arange(4, device="cuda")}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss_fn(model, x, **draws).backward()
        optimiser.step()

    step()  # what is asked of a model once may wait
    with no_waiting():
        for _ in range(3):
            step()


def test_a_number_in_a_network() -> None:
    """``torch.where`` with a number, whose tangent is 0."""
    weight = torch.ones(3, device="cuda", requires_grad=True)
    loss_fn, x = SSMLoss(SIGMAS, method="forward").cuda(), torch.randn(4, 3, device="cuda")

    def step() -> None:
        loss_fn(lambda x, sigma: torch.where(x > 0, x * weight, 0.5), x).backward()

    step()
    with no_waiting():
        step()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_steps_of_a_sampler(cuda_graph: bool) -> None:
    model = ScoreMLP(dim=3).cuda()
    before = torch.cuda.get_sync_debug_mode()

    def watch(step: int, x: Tensor) -> None:
        torch.cuda.set_sync_debug_mode("error" if step < 11 else "default")

    try:
        x = fastscore.annealed_langevin(
            model, SIGMAS, shape=(4, 3), steps_per_sigma=4, step_size=0.01, device="cuda",
            callback=watch, cuda_graph=cuda_graph,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert x.shape == (4, 3)
