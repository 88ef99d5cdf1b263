"""Without a GPU: the step that a CUDA graph would capture is the step of the loop."""

from __future__ import annotations

from typing import Any

import fake_graphs
import pytest
import torch
from helpers import assert_same_bytes
from samplers import Sampler, every_sampler, gaussian_score
from torch import Tensor


def shifts(x: Tensor, sigma: Tensor, *, shift: Tensor) -> Tensor:
    out = (shift - x) / (1 + sigma[:, None])
    sigma *= 3.0
    shift += 1.0
    return out


@pytest.mark.parametrize("model", ["plain", "writes", "keeps", "kwargs"])
@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"seed": [1, 2, 3]}, {"seed": 1, "samples": torch.tensor([4, 0, 2])}]
)
@every_sampler
def test_the_captured_step_is_the_step_of_the_loop(
    sampler: Sampler,
    steps: int,
    options: dict[str, Any],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = []

    def writes(x: Tensor, sigma: Tensor) -> Tensor:
        sigma.mul_(2)
        return x.neg_()

    def keeps(x: Tensor, sigma: Tensor) -> Tensor:
        kept.append(sigma)
        return gaussian_score(x, sigma)

    models = {"plain": gaussian_score, "writes": writes, "keeps": keeps, "kwargs": shifts}
    extra = {"model_kwargs": {"shift": torch.ones(2)}} if model == "kwargs" else {}
    x0 = torch.linspace(-1, 1, 6).reshape(3, 2)
    want = sampler(x0, models[model], **options, **extra)
    cuda, _ = fake_graphs.install(monkeypatch)
    got = sampler(x0, models[model], **options, **extra)
    assert_same_bytes(got, want)
    assert cuda.captures[0].replays == steps - 2
