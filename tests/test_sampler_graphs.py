"""Sampling under CUDA graphs: the same bytes, and a warning where there can be no graph."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes
from samplers import SIGMAS, Sampler, every_sampler, gaussian_score, run_annealed
from torch import Tensor, nn

from fastscore import annealed_langevin, reverse_sde
from fastscore.guidance import InBasis
from fastscore.sde import VE

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

WARNING = "can't be captured in a CUDA graph"


class Counted:
    """Counts the calls of a model: Python runs while a graph is captured, not at replay."""

    def __init__(self, model: Any = gaussian_score) -> None:
        self.model = model
        self.calls = 0

    def __call__(self, x: Tensor, *condition: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x, *condition)


class Ncsn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Embedding(len(SIGMAS), 8)
        self.head = nn.Sequential(nn.Linear(2 + 8, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.level(labels)], dim=1))


def long_run(model: Any, cuda_graph: bool | str, **options: Any) -> Tensor:
    return annealed_langevin(
        model,
        SIGMAS,
        shape=(6, 2),
        steps_per_sigma=20,
        step_size=0.1,
        seed=0,
        device="cuda",
        cuda_graph=cuda_graph,
        **options,
    )


@every_sampler
def test_graphs_give_the_same_bytes(sampler: Sampler, steps: int) -> None:
    options: dict[str, Any] = {
        "shape": (5, 3),
        "seed": 3,
        "device": "cuda",
        "sample_offset": 2,
        "known": torch.ones(3, device="cuda"),
        "mask": torch.tensor([True, False, False], device="cuda"),
        "clamp": (-7.0, 7.0),
        "trajectory": [1, 3],
    }
    for chosen in (options, {"shape": (5, 3), "seed": 3, "device": "cuda", "trajectory": [2]}):
        want = sampler(**chosen)
        counted = Counted()
        got = sampler(model=counted, cuda_graph=True, **chosen)
        assert counted.calls < 6 < steps
        for graphed, plain in zip(got, want, strict=True):
            assert_same_bytes(graphed, plain)


@every_sampler
def test_a_graphed_run_stops_and_resumes(sampler: Sampler, steps: int) -> None:
    want = sampler(shape=(5, 3), seed=3, device="cuda")
    for stop in (1, 6, steps):
        seen = []

        def watch(step: int, x: Tensor, seen: list[int] = seen, stop: int = stop) -> bool:
            seen.append(step)
            return step == stop

        state = sampler(shape=(5, 3), seed=3, device="cuda", callback=watch, cuda_graph=True)
        assert seen == list(range(1, stop + 1))
        assert_same_bytes(sampler(state, start_step=stop, seed=3, cuda_graph=True), want)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_network_with_labels(autocast: torch.dtype | None) -> None:
    torch.manual_seed(0)
    model = Ncsn().cuda()
    options: dict[str, Any] = {"conditioning": "index", "autocast": autocast}
    assert_same_bytes(long_run(model, True, **options), long_run(model, False, **options))
    before = long_run(model, True, **options)
    with torch.no_grad():
        model.head[2].bias.add_(1)
    assert not torch.equal(long_run(model, True, **options), before)


def test_an_energy_in_a_graph() -> None:
    def score(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            energy = (y.square().sum(dim=1) / (1 + sigma**2)).sum() / 2
            return -torch.autograd.grad(energy, y)[0]

    assert_same_bytes(long_run(score, True), long_run(score, False))


def test_another_stream() -> None:
    want = long_run(gaussian_score, False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graphed, plain = long_run(gaussian_score, True), long_run(gaussian_score, False)
        assert torch.cuda.current_stream() == stream
    stream.synchronize()
    assert_same_bytes(graphed, want)
    assert_same_bytes(plain, want)


def test_auto_captures_long_runs_only() -> None:
    for steps, graphed in ((16, True), (12, False)):
        counted = Counted()
        x = annealed_langevin(
            counted,
            SIGMAS,
            shape=(6, 2),
            steps_per_sigma=steps // 4,
            step_size=0.1,
            device="cuda",
            cuda_graph="auto",
        )
        assert x.shape == (6, 2)
        assert (counted.calls < steps) == graphed


def waits_by_item(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian_score(x, sigma) * (1.0 if float(sigma[0]) > 0 else 0.0)


def waits_by_copy(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian_score(x, sigma) * torch.ones(1).to(x.device)


def refuses_capture(x: Tensor, sigma: Tensor) -> Tensor:
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("not in a graph")
    return gaussian_score(x, sigma)


def synchronises(x: Tensor, sigma: Tensor) -> Tensor:
    torch.cuda.synchronize()
    return gaussian_score(x, sigma)


@pytest.mark.parametrize("cuda_graph", [True, "auto"])
@pytest.mark.parametrize("model", [waits_by_item, waits_by_copy, refuses_capture, synchronises])
def test_a_model_that_cannot_be_captured_runs_without(model: Any, cuda_graph: bool | str) -> None:
    want = long_run(model, False)
    before = torch.cuda.get_sync_debug_mode()
    with pytest.warns(UserWarning, match=WARNING) as caught:
        got = long_run(model, cuda_graph)
    assert len([w for w in caught if WARNING in str(w.message)]) == 1
    assert_same_bytes(got, want)
    assert torch.cuda.get_sync_debug_mode() == before
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.manual_seed(1)
    first = torch.randn(4, device="cuda")  # the generator is not left in capture
    torch.cuda.manual_seed(1)
    assert torch.equal(torch.randn(4, device="cuda"), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bytes(long_run(gaussian_score, cuda_graph), long_run(gaussian_score, False))


def test_errors_of_the_model_are_raised() -> None:
    with pytest.raises(ValueError, match="model must be a model whose output"):
        long_run(lambda x, sigma: x[:, :1], True)

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        long_run(broken, True)


def test_empty_batches() -> None:
    x = run_annealed(torch.empty(0, 3, device="cuda"), cuda_graph=True)
    assert x.shape == (0, 3)


def test_no_step_waits_for_the_device() -> None:
    """Between the first step and the last, no wait: an error here would be a model's or ours."""

    def watch(step: int, x: Tensor) -> None:
        if step == 1:
            torch.cuda.set_sync_debug_mode("error")
        if step == 70:
            torch.cuda.set_sync_debug_mode("default")

    for cuda_graph in (True, False):
        try:
            long_run(
                gaussian_score,
                cuda_graph,
                callback=watch,
                known=torch.ones(2, device="cuda"),
                mask=torch.tensor([True, False], device="cuda"),
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")


class First:
    """The first coordinate, measured."""

    def A(self, x: Tensor) -> Tensor:
        return x[:, :1]

    def A_dagger(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.zeros_like(y)], dim=1)


def test_a_projected_and_resampled_run_in_a_graph() -> None:
    """The same bytes, and no step waits for the device."""

    def run(cuda_graph: bool) -> Tensor:
        def watch(step: int, x: Tensor) -> None:
            torch.cuda.set_sync_debug_mode("error" if step < 20 else "default")

        try:
            return reverse_sde(
                gaussian_score, VE(0.05, 5.0), shape=(6, 2), steps=20, seed=0, device="cuda",
                corrector="annealed", resamplings=3, operator=First(), projection=0.7,
                measurement=torch.ones(1, 1, device="cuda"), callback=watch, cuda_graph=cuda_graph,
            )  # fmt: skip
        finally:
            torch.cuda.set_sync_debug_mode("default")

    assert_same_bytes(run(True), run(False))


def test_a_score_in_another_basis_in_a_graph() -> None:
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)))[0].cuda()

    class Turned:
        def A(self, x: Tensor) -> Tensor:
            return x @ turn.mT

        def A_adjoint(self, z: Tensor) -> Tensor:
            return z @ turn

    def run(cuda_graph: bool) -> Tensor:
        return long_run(InBasis(gaussian_score, Turned()), cuda_graph)

    torch.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-5)
