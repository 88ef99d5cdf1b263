"""The fourth order on a fixed grid: exact flows, one stage a row, and all that samplers can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_graphs
import pytest
import torch
from continuous import PREDICTIONS, PROCESSES, InTime, every_process, flow_of, gaussian
from helpers import assert_same_bytes, randn
from torch import Tensor

from fastscore import sde
from fastscore._support.terms import Terms
from fastscore.samplers import SamplerState, probability_flow
from fastscore.sde import Process

VE = PROCESSES[0]


def flow(model: Callable[..., Tensor], process: Any, *args: Any, **options: Any) -> Any:
    return probability_flow(model, process, *args, **{"solver": "rk4", **options})


def noise(process: Process, batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return randn(batch, 2, dtype=dtype) * float(process.sigma(process.t_max))


@every_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_error_falls_with_the_fourth_power(process: Process, prediction: str) -> None:
    x, model = noise(process), InTime(process, prediction)
    want = flow_of(process, x, process.t_max, process.t_min)
    options: dict[str, Any] = {"conditioning": "time", "prediction": prediction, "denoise": False}
    coarse, fine = (
        float((flow(model, process, x, steps=n, **options) - want).abs().max()) for n in (20, 40)
    )
    assert 12 < coarse / fine < 20
    assert fine < 3e-4
    assert model.calls == 4 * 60


@every_process
def test_encoding_comes_back(process: Process) -> None:
    x = randn(3, 2, dtype=torch.float64)
    model = InTime(process)
    options: dict[str, Any] = {"conditioning": "time", "steps": 60}
    there = flow(model, process, x, encode=True, **options)
    assert float((flow(model, process, there, denoise=False, **options) - x).abs().max()) < 1e-4


def test_the_last_step_is_the_expected_data() -> None:
    x = noise(VE)
    state = flow(gaussian, VE, x, steps=9, return_state=True)
    assert state.evaluations == 4 * 8 + 1
    before = flow(gaussian, VE, x, steps=8, denoise=False)
    level = torch.full((3,), float(VE.sigma(0.0)), dtype=torch.float64)
    want = before + level[:, None] ** 2 * gaussian(before, level)
    assert torch.allclose(state.x, want, rtol=0, atol=1e-12)


def test_one_step_is_the_expected_data() -> None:
    state = flow(gaussian, VE, noise(VE), steps=1, return_state=True)
    assert state.evaluations == 1


@pytest.mark.parametrize("process", [VE, sde.VP()], ids=repr)
@pytest.mark.parametrize("known", [False, True])
def test_resumed_at_any_step(process: Process, known: bool) -> None:
    options: dict[str, Any] = {"steps": 6, "shape": (3, 2), "seed": 5, "conditioning": "sigma"}
    if known:
        options |= {"known": 0.5, "mask": torch.tensor([True, False])}
    want = flow(gaussian, process, **options)
    for stop in range(1, 6):
        options["callback"] = lambda step, x, stop=stop: step == stop
        state = flow(gaussian, process, return_state=True, **options)
        assert isinstance(state, SamplerState)
        assert state.step == stop
        options.pop("callback")
        rest = {name: v for name, v in options.items() if name not in ("shape", "seed")}
        assert_same_bytes(flow(gaussian, process, state, **rest), want)


def test_trajectory_is_what_callbacks_see() -> None:
    process, seen = sde.VP(), []
    options: dict[str, Any] = {"steps": 5, "shape": (2, 2), "seed": 0, "conditioning": "sigma"}
    got, states = flow(
        gaussian, process, trajectory=range(1, 6),
        callback=lambda step, x: seen.append(x.clone()), **options,
    )  # fmt: skip
    for ours, theirs in zip(states, seen, strict=True):
        assert_same_bytes(ours, theirs)
    assert_same_bytes(states[-1], got)


def test_known_elements_keep_one_noise() -> None:
    seen: list[Tensor] = []
    options: dict[str, Any] = {"steps": 8, "shape": (3, 2), "seed": 0, "dtype": torch.float64}
    options |= {"denoise": False, "grid": "log"}
    out = flow(
        gaussian, VE, known=0.25, mask=torch.tensor([True, False]),
        callback=lambda step, x: seen.append(x.clone()), **options,
    )  # fmt: skip
    z = [(x[:, 0] - 0.25) / (10 * 1e-3 ** (k / 8)) for k, x in enumerate(seen[:-1], 1)]
    assert float(z[0].abs().max()) > 0.1
    assert all(torch.allclose(other, z[0], rtol=1e-9) for other in z)
    assert_same_bytes(out[:, 0], torch.full((3,), 0.25, dtype=torch.float64))
    free = flow(gaussian, VE, **options)
    assert torch.allclose(out[:, 1], free[:, 1], rtol=0, atol=1e-12)  # elements do not meet


def test_predicted_data_are_clipped() -> None:
    """A model whose data are at 3, clipped to at most 1: the samples end there."""

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return (3 - x) / sigma[:, None] ** 2

    options: dict[str, Any] = {"steps": 10, "shape": (3, 2), "seed": 0, "dtype": torch.float64}
    got = flow(model, VE, clip_denoised=(None, 1.0), **options)
    assert torch.allclose(got, torch.ones_like(got), rtol=0, atol=1e-9)
    wide = flow(model, VE, clip_denoised=(-9.0, 9.0), **options)
    assert torch.allclose(wide, flow(model, VE, **options), rtol=0, atol=1e-9)


def test_state_is_clamped() -> None:
    process = sde.VP()
    seen: list[Tensor] = []
    flow(
        gaussian, process, steps=6, shape=(8, 2), seed=0, conditioning="sigma", clamp=(-0.5, 1.0),
        callback=lambda step, x: seen.append(x.clone()),
    )  # fmt: skip
    for x in seen:
        assert float(x.min()) >= -0.5 - 1e-6
        assert float(x.max()) <= 1 + 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"known": 0.5, "mask": torch.tensor([True, False])},
        {"clip_denoised": (-1.0, 1.0)},
        {"clamp": (-1.0, 2.0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("conditioning", ["sigma", "log_sigma", "index"])
def test_a_graph_of_a_whole_step(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], conditioning: str
) -> None:
    sigmas = torch.logspace(1, -2, 50)
    calls = 0

    def model(x: Tensor, level: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        s = {"sigma": lambda: level, "log_sigma": level.exp, "index": lambda: sigmas[level]}
        return gaussian(x, s[conditioning]())

    given = {"steps": 5, "shape": (3, 2), "seed": 1, "conditioning": conditioning, **options}
    given |= {"sigmas": sigmas} if conditioning == "index" else {}
    want = flow(model, VE, **given)
    cuda, _ = fake_graphs.install(monkeypatch)
    calls = 0
    assert_same_bytes(flow(model, VE, **given), want)
    assert calls == 4 * 3 + 1  # two steps, the capture; the last step
    assert cuda.captures[0].replays == 4 - 2


class OwnMemory:
    """A network that returns the same memory each time, as a captured one does."""

    def __init__(self, buffers: int = 1) -> None:
        self.buffers: list[Tensor | None] = [None] * buffers
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        place = self.calls % len(self.buffers)
        self.calls += 1
        score = gaussian(x, sigma)
        if self.buffers[place] is None:
            self.buffers[place] = score
        return self.buffers[place].copy_(score)  # type: ignore[union-attr]


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_a_model_that_uses_its_memory_again(buffers: int) -> None:
    options: dict[str, Any] = {"steps": 4, "shape": (3, 2), "seed": 1}
    want = flow(gaussian, VE, **options)
    assert_same_bytes(flow(OwnMemory(buffers), VE, **options), want)


@pytest.mark.parametrize("how", [{"steps": 4}, {"solver": "rk45"}], ids=["rk4", "rk45"])
def test_a_model_that_writes_to_what_it_returned_last(how: dict[str, Any]) -> None:
    """And returns other memory."""
    last: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        for score in last:
            score.zero_()
        last[:] = [gaussian(x, sigma)]
        return last[0]

    options: dict[str, Any] = {"shape": (3, 2), "seed": 1, **how}
    assert_same_bytes(flow(model, VE, **options), flow(gaussian, VE, **options))


def test_models_that_return_or_change_what_they_get() -> None:
    options: dict[str, Any] = {"steps": 4, "x": noise(VE), "denoise": False, "prediction": "x0"}
    want = flow(lambda x, sigma: x.clone(), VE, **options)
    assert_same_bytes(flow(lambda x, sigma: x, VE, **options), want)
    assert torch.allclose(want, noise(VE), rtol=1e-12)  # where the data are x, nothing moves

    def writes(x: Tensor, sigma: Tensor) -> Tensor:
        sigma.mul_(2)
        return x.neg_().div_(1 + sigma[:, None] ** 2)

    def pure(x: Tensor, sigma: Tensor) -> Tensor:
        return -x / (1 + (2 * sigma[:, None]) ** 2)

    options["prediction"] = "score"
    assert torch.allclose(flow(writes, VE, **options), flow(pure, VE, **options))


def test_terms_are_added() -> None:
    def guided(x: Tensor, sigma: Tensor) -> Terms:
        return Terms([(gaussian(x, sigma), 0.25), (gaussian(x, sigma), sigma.new_full((3,), 0.75))])

    options: dict[str, Any] = {"steps": 5, "x": noise(VE)}
    assert torch.allclose(flow(guided, VE, **options), flow(gaussian, VE, **options), atol=1e-12)


@pytest.mark.parametrize("size", [2, 5])
def test_in_batches(size: int) -> None:
    options: dict[str, Any] = {"steps": 5, "x": noise(VE, batch=5)}
    assert_same_bytes(flow(gaussian, VE, batch_size=size, **options), flow(gaussian, VE, **options))


def test_half_precision() -> None:
    def half(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(x, sigma).bfloat16()

    x = noise(VE, dtype=torch.float32)
    got = flow(half, VE, x, steps=10)
    assert got.dtype == torch.float32
    assert torch.allclose(got, flow(gaussian, VE, x, steps=10), rtol=0.02, atol=0.02)
