"""Without a GPU: the step that a CUDA graph would capture is the step of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes
from samplers import Sampler, every_sampler, gaussian_score
from torch import Tensor


class Replayed:
    """In place of a CUDA graph: runs the step anew, and looks whether its memory stays in place."""

    def __init__(self, body: Callable[[], None], state: Sequence[Tensor]) -> None:
        self.body, self.state = body, state
        self.replays = 0

        saved = [tensor.clone() for tensor in state]  # a call to warm up, as before a capture
        body()
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)

    def addresses(self) -> list[int]:
        return [tensor.untyped_storage().data_ptr() for tensor in self.state]

    def replay(self) -> None:
        before = self.addresses() if self.replays else None
        self.body()
        self.replays += 1
        assert before is None or self.addresses() == before


def shifts(x: Tensor, sigma: Tensor, *, shift: Tensor) -> Tensor:
    out = (shift - x) / (1 + sigma[:, None])
    sigma *= 3.0
    shift += 1.0
    return out


@pytest.mark.parametrize("model", ["plain", "writes", "keeps", "kwargs"])
@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"seed": [1, 2, 3]}, {"seed": 1, "samples": torch.tensor([4, 0, 4])}]
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
    graphs = []

    def capture(fn: str, body: Any, state: Sequence[Tensor], wanted: bool) -> Replayed:
        assert wanted
        graphs.append(Replayed(body, state))
        return graphs[-1]

    monkeypatch.setattr("fastscore.samplers._loop.capture", capture)
    monkeypatch.setattr("fastscore.samplers._inputs.wants_graph", lambda *_: True)
    got = sampler(x0, models[model], **options, **extra)
    assert_same_bytes(got, want)
    assert graphs[0].replays == steps
