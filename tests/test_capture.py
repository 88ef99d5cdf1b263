"""What the host does about CUDA graphs and streams, with emulated kernels in place of a device's.

``test_sampler_graphs`` asks the same of a device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import fake_graphs
import pytest
import torch
from continuous import InTime, gaussian
from emulator import Launch, configured, emulated, launches
from fake_graphs import OWN_STREAM, Cuda, FakeGenerator
from helpers import assert_same_bytes
from samplers import SIGMAS, Sampler, every_sampler, gaussian_score, run_langevin
from torch import Tensor

from fastscore import annealed_langevin, probability_flow, reverse_sde
from fastscore.sde import VP

pytestmark = pytest.mark.emulated

CONTINUOUS: list[dict[str, Any]] = [
    {"solver": "heun"},
    {"solver": "dpmpp_2m"},
    {"solver": "dpmpp_2m_sde"},
    {"corrector": "annealed"},
    {"corrector": "langevin", "clip_denoised": (0.0, 1.0)},
]

WARNING = "can't be captured in a CUDA graph"


@pytest.fixture
def emulation() -> Iterator[None]:
    with emulated(), configured(stream=OWN_STREAM):
        yield


@pytest.fixture
def faked(emulation: None, monkeypatch: pytest.MonkeyPatch) -> tuple[Cuda, FakeGenerator]:
    return fake_graphs.install(monkeypatch)


def seen_by(sampler: Callable[..., Any], **options: Any) -> tuple[Any, list[Tensor], list[Launch]]:
    """The end, the state after each step, and the launches."""
    states: list[Tensor] = []
    with launches() as record:
        end = sampler(callback=lambda step, x: states.append(x.clone()), **options)
    return end, states, record


def steps_of(record: list[Launch]) -> list[Launch]:
    return [launch for launch in record if launch.op == "langevin_step_"]


@pytest.mark.parametrize("conditioning", ["sigma", "log_sigma", "index"])
@pytest.mark.parametrize("seed", [1, [1, 2, 3]])
@every_sampler
def test_each_replay_is_a_step_of_the_loop(
    sampler: Sampler,
    steps: int,
    seed: Any,
    conditioning: str,
    emulation: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def model(x: Tensor, condition: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return x * -0.5 if condition is None else x * (-0.1 / (2 + condition.abs()))[:, None]

    options: dict[str, Any] = {
        "x": torch.linspace(-1, 1, 6).reshape(3, 2), "model": model, "seed": seed,
    }  # fmt: skip
    if sampler is run_langevin and conditioning == "index":
        pytest.skip("langevin has one level, and no numbers of levels")
    options["conditioning"] = conditioning
    want, looped, of_loop = seen_by(sampler, **options)
    assert calls == steps
    cuda, _ = fake_graphs.install(monkeypatch)
    calls = 0
    got, replayed, of_graph = seen_by(sampler, **options)
    assert calls == 3  # to warm up, to look for waiting, to capture
    (graph,) = cuda.captures
    assert (graph.replays, len(replayed)) == (steps - 2, steps)
    for ours, theirs in zip(replayed, looped, strict=True):
        assert_same_bytes(ours, theirs)
    assert_same_bytes(got, want)

    # The same kernels with the same grids, on a stream of its own until the graph is there.
    assert {launch.stream for launch in of_loop} == {OWN_STREAM}
    before, replays = steps_of(of_graph)[:3], steps_of(of_graph)[3:]
    assert {launch.stream for launch in before} == {graph.captured_on}
    assert graph.captured_on != OWN_STREAM
    assert replays == steps_of(of_loop)[2:]
    side = graph.captured_on
    assert cuda.waits == 3 * [(side, OWN_STREAM), (OWN_STREAM, side)]
    assert cuda.current.number == OWN_STREAM
    assert cuda.mode == "default"


def run(model: Callable[..., Tensor], **options: Any) -> Tensor:
    return annealed_langevin(
        model, SIGMAS, shape=(4, 2), steps_per_sigma=2, step_size=0.1, seed=0, **options
    )


def test_a_model_that_writes_to_what_it_gets(
    emulation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes(x: Tensor, sigma: Tensor) -> Tensor:
        sigma.mul_(2)
        return x.neg_() / (1 + sigma[:, None])

    want = run(writes)
    fake_graphs.install(monkeypatch)
    assert_same_bytes(run(writes), want)


def test_a_model_that_waits_is_not_captured(faked: tuple[Cuda, FakeGenerator]) -> None:
    cuda, _ = faked

    def waits(x: Tensor, sigma: Tensor) -> Tensor:
        fake_graphs.waits(cuda)
        return gaussian_score(x, sigma)

    with pytest.warns(UserWarning, match=WARNING):
        got = run(waits)
    assert not cuda.captures
    assert cuda.mode == "default"
    assert_same_bytes(got, run(gaussian_score))


def test_a_capture_that_fails_leaves_everything_as_it_was(
    faked: tuple[Cuda, FakeGenerator],
) -> None:
    cuda, generator = faked
    cuda.fail_capture = "operation not permitted when stream is capturing"
    with pytest.warns(UserWarning, match=f"{WARNING}.*not permitted"):
        got = run(gaussian_score)
    assert generator.restored
    assert not cuda.capturing
    assert cuda.current.number == OWN_STREAM
    cuda.fail_capture = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bytes(run(gaussian_score), got)


def test_an_error_of_the_model_is_the_users(faked: tuple[Cuda, FakeGenerator]) -> None:
    def fails(x: Tensor, sigma: Tensor) -> Tensor:
        raise ZeroDivisionError("of the model")

    cuda, _ = faked
    with pytest.raises(ZeroDivisionError, match="of the model"):
        run(fails)
    assert cuda.current.number == OWN_STREAM


def test_a_run_that_is_resumed_in_the_middle_of_a_level(
    emulation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, states, _ = seen_by(run, model=gaussian_score)
    cuda, _ = fake_graphs.install(monkeypatch)
    for stop in (1, 2, 5):
        rest = annealed_langevin(
            gaussian_score, SIGMAS, states[stop - 1], steps_per_sigma=2, step_size=0.1, seed=0,
            start_step=stop,
        )  # fmt: skip
        assert_same_bytes(rest, whole)
        assert cuda.captures[-1].replays == len(states) - stop - 2


@pytest.mark.parametrize("conditioning", ["sigma", "time"])
@pytest.mark.parametrize("options", CONTINUOUS, ids=lambda o: "-".join(map(str, o.values())))
def test_steps_of_several_rows_are_replayed_row_by_row(
    options: dict[str, Any], conditioning: str, emulation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = reverse_sde if "corrector" in options else probability_flow
    model: Any = gaussian if conditioning == "sigma" else InTime(VP(), "v")
    how = {**options, "conditioning": conditioning, "shape": (3, 2), "steps": 5, "seed": 4}
    known = {"known": 2.0, "mask": torch.tensor([True, False])}
    state = sampler(model, VP(), return_state=True, **known, **how)
    cuda, _ = fake_graphs.install(monkeypatch)
    replayed = sampler(model, VP(), return_state=True, **known, **how)
    (graph,) = cuda.captures
    assert graph.replays == state.evaluations - 2
    assert_same_bytes(replayed.x, state.x)


def test_norms_of_a_batch_are_taken_without_a_graph(faked: tuple[Cuda, FakeGenerator]) -> None:
    cuda, _ = faked
    how: dict[str, Any] = {"corrector": "langevin", "norms": "batch", "shape": (3, 2), "steps": 4}
    reverse_sde(InTime(VP()), VP(), **how)
    assert not cuda.captures
