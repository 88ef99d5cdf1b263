"""What the samplers promise besides their formulas: models, inpainting, watching, cost."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_bytes, randn
from memory import peak_bytes
from samplers import (
    SIGMAS,
    Sampler,
    every_sampler,
    gaussian_score,
    run_annealed,
    run_consistent,
    run_langevin,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastscore
from fastscore import annealed_langevin, langevin

# ---- the model ---------------------------------------------------------------------------------


class Spy:
    """A model that notes what it is conditioned on."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, *condition: Tensor) -> Tensor:
        self.seen += [value.clone() for value in condition]
        return -x


@pytest.mark.parametrize("start", [0, 3])
def test_every_step_sees_the_sigma_of_its_level(device: torch.device, start: int) -> None:
    index = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])[start:]
    expected = {
        "sigma": SIGMAS.float()[index],
        "log_sigma": SIGMAS.float().log()[index],
        "index": index,
    }
    for conditioning, values in expected.items():
        spy = Spy()
        annealed_langevin(
            spy,
            SIGMAS,
            torch.zeros(2, 3, device=device),
            steps_per_sigma=2,
            conditioning=conditioning,
            start_step=start,
            seed=0,
        )
        seen = torch.stack(spy.seen)
        assert seen.device == device
        torch.testing.assert_close(seen.cpu(), values[:, None].expand(-1, 2))
    spy = Spy()
    annealed_langevin(spy, SIGMAS, torch.zeros(2, 3, device=device), conditioning="none")
    assert spy.seen == []


def test_an_ncsn_style_network_plugs_in_by_index(device: torch.device) -> None:
    class Ncsn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Embedding(len(SIGMAS), 8)
            self.head = nn.Linear(2 + 8, 2)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.head(torch.cat([x, self.level(labels)], dim=1))

    model = Ncsn().to(device)
    x = annealed_langevin(model, SIGMAS, shape=(6, 2), conditioning="index", seed=0)
    assert x.shape == (6, 2)
    assert x.device == device
    assert not x.requires_grad


def test_a_model_with_data_shape_needs_no_other_argument() -> None:
    class Net(nn.Module):
        data_shape = (3, 4, 4)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return gaussian_score(x, sigma)

    assert annealed_langevin(Net(), SIGMAS).shape == (64, 3, 4, 4)
    assert annealed_langevin(Net(), SIGMAS, num_samples=5).shape == (5, 3, 4, 4)
    with pytest.raises(ValueError, match="annealed_langevin: shape must be given"):
        annealed_langevin(gaussian_score, SIGMAS)
    with pytest.raises(ValueError, match="num_samples must be None when shape is given"):
        annealed_langevin(Net(), SIGMAS, shape=(5, 3, 4, 4), num_samples=5)


def test_an_energy_may_take_gradients_inside(device: torch.device) -> None:
    def score(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            energy = (y.square().sum(dim=1) / (1 + sigma**2)).sum() / 2
            return -torch.autograd.grad(energy, y)[0]

    def score_with_a_graph(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            return gaussian_score(x.detach().requires_grad_(), sigma)

    x0 = randn(4, 2).to(device)
    want = run_annealed(x0, seed=0)
    torch.testing.assert_close(run_annealed(x0, score, seed=0), want)
    assert_same_bytes(run_annealed(x0, score_with_a_graph, seed=0), want)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_state_in_float32(device: torch.device, half: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).to(device)
    dtypes = set()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        out = layer(x)
        dtypes.add((x.dtype, out.dtype))
        return out

    x0 = randn(4, 3).to(device)
    exact = run_annealed(x0, model, seed=0)
    x = run_annealed(x0, model, seed=0, autocast=half)
    assert dtypes == {(torch.float32, torch.float32), (torch.float32, half)}
    assert x.dtype == torch.float32
    assert not torch.equal(x, exact)
    torch.testing.assert_close(x, exact, rtol=0.1, atol=0.1)
    assert not torch.is_autocast_enabled(device.type)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_start_goes_on_in_float32(dtype: torch.dtype) -> None:
    x0 = randn(4, 3, dtype=dtype)
    assert_same_bytes(run_annealed(x0, seed=0), run_annealed(x0.float(), seed=0))


def test_a_score_of_another_dtype_is_converted() -> None:
    def double_score(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian_score(x.double(), sigma.double())

    def float_score(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian_score(x.float(), sigma.float())

    x0 = randn(4, 3)
    want = run_annealed(x0.double(), seed=0)
    assert run_annealed(x0, double_score, seed=0).dtype == torch.float32
    torch.testing.assert_close(run_annealed(x0, double_score, seed=0), want.float())
    torch.testing.assert_close(
        run_annealed(x0.double(), float_score, seed=0), want, rtol=1e-4, atol=1e-4
    )


@every_sampler
def test_inputs_are_never_changed(sampler: Sampler, steps: int) -> None:
    x0, known = randn(4, 3).requires_grad_(), randn(4, 3)
    mask = torch.tensor([True, False, False])
    copies = x0.detach().clone(), known.clone(), mask.clone()
    x = sampler(x0, seed=0, known=known, mask=mask, clamp=(-1, 1))
    assert not x.requires_grad
    assert x0.requires_grad
    assert x0.grad is None
    for now, before in zip((x0.detach(), known, mask), copies, strict=True):
        assert_same_bytes(now, before)


@every_sampler
def test_empty_batches(device: torch.device, sampler: Sampler, steps: int) -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("nothing to do")

    assert sampler(shape=(0, 3), model=model, device=device).shape == (0, 3)
    x, states = sampler(torch.empty(2, 0, device=device), model, trajectory=[1])
    assert x.shape == (2, 0)
    assert states.shape == (0, 2, 0)


# ---- inpainting, clamp -------------------------------------------------------------------------


def test_known_elements_carry_the_noise_of_the_level_and_end_exact(device: torch.device) -> None:
    known = torch.full((4000, 2), 3.0, device=device)
    known[:, 1] = torch.nan  # nothing is known there
    mask = torch.tensor([True, False], device=device)
    spreads, draws = [], []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        assert bool(torch.isfinite(x).all())
        draws.append((x[:, 0] - 3) / sigma)
        spreads.append(float(draws[-1].square().mean()))
        return gaussian_score(x, sigma)

    options: dict[str, Any] = {"known": known, "mask": mask, "seed": 0}
    for sampler in (run_annealed, run_langevin, run_consistent):
        spreads.clear()
        draws.clear()
        x = sampler(shape=(4000, 2), model=model, device=device, **options)
        assert all(abs(spread - 1) < 5 * math.sqrt(2 / 4000) for spread in spreads), spreads
        correlation = float((draws[0] * draws[1]).mean())
        assert abs(correlation) < 5 / math.sqrt(4000)  # fresh noise in each step
        assert bool((x[:, 0] == 3.0).all())
        assert bool(torch.isfinite(x).all())
    x = run_annealed(
        shape=(40, 2), device=device, denoise=False, **{**options, "known": known[:40]}
    )
    assert bool((x[:, 0] == 3.0).all())
    x = run_annealed(torch.zeros(40, 2, device=device), clamp=(-1, 1), known=known[:40], mask=mask)
    assert bool((x[:, 0] == 3.0).all())
    assert float(x[:, 1].abs().max()) <= 1


def test_inpainting_fills_in_from_what_is_known() -> None:
    """Two coordinates of correlation 0.9: given x_0 = 2, x_1 has mean 1.8 and variance 0.19.

    Annealing freezes x_1 while its noise is still of the order of its spread: hence the tolerance.
    """
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return -(x @ vectors) / (values + sigma[:, None] ** 2) @ vectors.mT

    x = annealed_langevin(
        score,
        fastscore.geometric_sigmas(10.0, 0.03, 60),
        shape=(4000, 2),
        steps_per_sigma=10,
        dtype=torch.float64,
        known=torch.tensor([2.0, 0.0], dtype=torch.float64),
        mask=torch.tensor([True, False]),
        seed=0,
    )
    assert bool((x[:, 0] == 2.0).all())
    assert abs(float(x[:, 1].mean()) - 1.8) < 0.1
    assert abs(float(x[:, 1].var()) - 0.19) < 0.1


def test_langevin_without_sigma_holds_known_elements_fixed() -> None:
    x = []
    langevin(
        lambda x: -x,
        shape=(5, 2),
        steps=3,
        step_size=0.1,
        known=torch.tensor([2.0, 0.0]),
        mask=torch.tensor([True, False]),
        callback=lambda step, state: x.append(state.clone()),
    )
    assert all(bool((state[:, 0] == 2.0).all()) for state in x)


@every_sampler
def test_clamp_holds_after_every_step(device: torch.device, sampler: Sampler, steps: int) -> None:
    for lo, hi in ((-0.5, 0.25), (None, 0.25), (-0.5, None)):
        seen: list[tuple[float, float]] = []

        def watch(step: int, x: Tensor, seen: list[tuple[float, float]] = seen) -> None:
            seen.append((float(x.min()), float(x.max())))

        sampler(shape=(50, 3), seed=0, clamp=(lo, hi), callback=watch, device=device)
        if lo is not None:
            assert min(low for low, _ in seen) == lo
        if hi is not None:
            assert max(high for _, high in seen) == hi


# ---- watching ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, np.bool_(True), torch.tensor(True)])
def test_a_callback_stops_by_any_kind_of_true(stop: Any) -> None:
    calls: list[int] = []

    def callback(step: int, x: Tensor) -> Any:
        calls.append(step)
        return stop

    run_annealed(shape=(2, 3), callback=callback)
    assert calls == [1]


@pytest.mark.parametrize("answer", [None, False, 1, "stop", torch.ones(2, 3, dtype=torch.bool)])
def test_a_callback_may_return_anything_else(answer: Any) -> None:
    calls: list[int] = []

    def callback(step: int, x: Tensor) -> Any:
        calls.append(step)
        return answer

    run_annealed(shape=(2, 3), callback=callback)
    assert len(calls) == 17


def test_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_annealed(shape=(2, 3), progress=True)
    assert "17/17" in capsys.readouterr().err
    run_annealed(torch.zeros(2, 3), start_step=16, seed=0, progress=True)
    assert "17/17" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="annealed_langevin: progress=True needs tqdm"):
        run_annealed(shape=(2, 3), progress=True)


# ---- cost --------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts the ops that make the host wait for a device."""

    waiting = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.waiting
        return func(*args, **(kwargs or {}))


def reads(steps_per_sigma: int) -> int:
    with Reads() as mode:
        annealed_langevin(
            gaussian_score,
            SIGMAS,
            randn(4, 3),
            steps_per_sigma=steps_per_sigma,
            known=torch.ones(4, 3),
            mask=torch.tensor([True, False, False]),
            clamp=(-9, 9),
            trajectory=[0, 2],
            callback=lambda step, x: None,
            step_size=0.1,
            seed=0,
        )
    return mode.count


def test_no_step_reads_a_value_from_the_device() -> None:
    assert reads(3) == reads(30)


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    def work(steps: int) -> Callable[[], object]:
        return lambda: langevin(lambda x: -x, torch.ones(1000, 8), steps=steps, step_size=1e-4)

    work(2)()
    few, many = peak_bytes(work(4)), peak_bytes(work(200))
    assert few == many
    assert many < 3.5 * 32_000  # the start, the state, the score; none of the library's own


def test_auto_graph_is_no_graph_on_the_cpu() -> None:
    assert_same_bytes(
        run_annealed(shape=(2, 3), seed=0, cuda_graph="auto"), run_annealed(shape=(2, 3), seed=0)
    )


def test_a_model_that_asks_for_gradients_leaves_no_mark() -> None:
    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(-x.requires_grad_().square().sum() / 2, x)
        return gradient

    x = fastscore.langevin(score, shape=(3, 2), steps=4, step_size=0.1, seed=0)
    assert not x.requires_grad
    x += 1


def test_the_state_is_float64_for_a_model_that_is() -> None:
    sigmas = torch.tensor([2.0, 1.0])
    for dtype in (torch.float32, torch.float64):
        model = fastscore.nn.ScoreMLP(2, hidden=(8,)).to(dtype)
        x = fastscore.annealed_langevin(model, sigmas, num_samples=3, seed=0)
        assert x.dtype == dtype
