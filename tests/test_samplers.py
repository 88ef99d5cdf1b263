"""The samplers: their formulas, their oracles, and the same bytes however they are run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, make_key, randn
from samplers import (
    SIGMAS,
    Sampler,
    every_sampler,
    gaussian_score,
    mixture_score,
    point_score,
    run_annealed,
    run_consistent,
)
from torch import Tensor

import fastscore
from fastscore import annealed_langevin, consistent_annealed_langevin, langevin
from fastscore.random import Stream, normal

# ---- formulas ----------------------------------------------------------------------------------


def noise(seed: int, step: int, x: Tensor) -> Tensor:
    return normal(make_key(seed, step, x.device), x.shape, dtype=x.dtype, stream=Stream.LANGEVIN)


@pytest.mark.parametrize("convention", ["half", "full"])
def test_langevin_is_its_formula(device: torch.device, convention: str) -> None:
    x0 = randn(5, 3, dtype=torch.float64).to(device)
    got = langevin(lambda x: -x, x0, steps=4, step_size=0.3, convention=convention, seed=9)
    x = x0.clone()
    for step in range(4):
        drift, spread = (0.15, 0.3**0.5) if convention == "half" else (0.3, 0.6**0.5)
        x = x - drift * x + spread * noise(9, step, x)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_langevin_takes_one_step_size_per_step(device: torch.device) -> None:
    sizes = [0.3, 0.2, 0.1]
    x0 = randn(5, 3, dtype=torch.float64).to(device)
    got = langevin(
        lambda x: -x, x0, steps=3, step_size=torch.tensor(sizes, dtype=torch.float64), seed=9
    )
    x = x0.clone()
    for step, size in enumerate(sizes):
        x = x - size / 2 * x + size**0.5 * noise(9, step, x)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    assert_same_bytes(langevin(lambda x: -x, x0, steps=3, step_size=sizes, seed=9), got)


@pytest.mark.parametrize("convention", ["half", "full"])
@pytest.mark.parametrize("denoise", [True, False])
def test_annealed_langevin_is_its_formula(
    device: torch.device, convention: str, denoise: bool
) -> None:
    x0 = randn(5, 3, dtype=torch.float64).to(device)
    options = {"steps_per_sigma": 3, "step_size": 0.1, "seed": 9, "convention": convention}
    got = annealed_langevin(gaussian_score, SIGMAS, x0, denoise=denoise, **options)
    x, step = x0.clone(), 0
    for sigma in SIGMAS.to(device):
        alpha = 0.1 * sigma**2 / SIGMAS[-1] ** 2
        drift, spread = (alpha / 2, alpha) if convention == "half" else (alpha, 2 * alpha)
        for _ in range(3):
            z = noise(9, step, x)
            x = x + drift * gaussian_score(x, sigma.expand(5)) + spread.sqrt() * z
            step += 1
    if denoise:
        x = x + SIGMAS[-1] ** 2 * gaussian_score(x, SIGMAS[-1].to(device).expand(5))
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("denoise", [True, False])
def test_consistent_annealed_langevin_is_its_formula(device: torch.device, denoise: bool) -> None:
    x0 = randn(5, 3, dtype=torch.float64).to(device)
    got = consistent_annealed_langevin(gaussian_score, SIGMAS, x0, eta=0.7, denoise=denoise, seed=9)
    x = x0.clone()
    beta = math.sqrt(1 - (0.3 / 0.5) ** 2)
    for step in range(3):
        sigma, following = SIGMAS[step].to(device), SIGMAS[step + 1].to(device)
        score = gaussian_score(x, sigma.expand(5))
        x = x + 0.7 * sigma**2 * score + beta * following * noise(9, step, x)
    if denoise:
        x = x + SIGMAS[-1] ** 2 * gaussian_score(x, SIGMAS[-1].to(device).expand(5))
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


# ---- oracles -----------------------------------------------------------------------------------


def assert_variance(x: Tensor, expected: float) -> None:
    """Within five standard errors of the sample variance of normals of mean 0."""
    ratio = float(x.double().square().mean()) / expected
    assert abs(ratio - 1) < 5 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.5])
def test_langevin_settles_at_the_known_variance(device: torch.device, eta: float) -> None:
    x = langevin(
        lambda x: -x / 9.0,
        shape=(20_000, 2),
        steps=100,
        step_size=9.0 * eta,
        convention="full",
        seed=0,
        device=device,
    )
    assert_variance(x, 9.0 * 2 / (2 - eta))


@pytest.mark.parametrize("convention", ["half", "full"])
def test_annealed_langevin_on_one_point_ends_at_the_known_variance(
    device: torch.device, convention: str
) -> None:
    """1.1283 sigma_L^2 at the step size 6.2e-6 that Technique 4 gives for 3,072 dimensions."""
    sigmas = fastscore.geometric_sigmas(50.0, 0.01, 232, dtype=torch.float64)
    step_size = 6.2e-6 if convention == "full" else 12.4e-6
    options: dict[str, Any] = {"step_size": step_size, "convention": convention, "seed": 0}
    shape = (20_000, 2)
    x = annealed_langevin(point_score, sigmas, shape=shape, denoise=False, device=device, **options)
    assert_variance(x, 1.1283e-4)
    few = annealed_langevin(point_score, sigmas, shape=(8, 2), device=device, **options)
    torch.testing.assert_close(few, torch.zeros_like(few), rtol=0, atol=1e-8)


def test_auto_step_size_is_technique_4() -> None:
    sigmas = fastscore.geometric_sigmas(5.0, 0.1, 12)
    for convention in ("half", "full"):
        options: dict[str, Any] = {"shape": (3, 2), "seed": 1, "convention": convention}
        step_size = fastscore.langevin_step_size(sigmas, 5, convention=convention)
        auto = annealed_langevin(gaussian_score, sigmas, **options)
        given = annealed_langevin(gaussian_score, sigmas, step_size=step_size, **options)
        assert_same_bytes(auto, given)


@pytest.mark.parametrize("eta", [0.06, 0.5, 1.0, 1.9])
def test_consistent_sampling_keeps_the_variance_at_every_level(eta: float) -> None:
    sigmas = fastscore.geometric_sigmas(1.0, 0.01, 100, dtype=torch.float64)
    levels = [0, 10, 50, 98]
    shape = (20_000, 2)
    _, states = consistent_annealed_langevin(
        point_score, sigmas, eta=eta, shape=shape, seed=0, trajectory=levels
    )
    for state, level in zip(states, levels, strict=True):
        assert_variance(state, float(sigmas[level + 1]) ** 2)


def test_plain_langevin_gets_the_weights_wrong_and_annealed_gets_them_right(
    device: torch.device,
) -> None:
    start = 16 * fastscore.random.uniform(fastscore.random.key(0, device=device), (2000, 2)) - 8
    plain = langevin(mixture_score, start, steps=1000, step_size=0.1, seed=0)
    assert 0.4 < float((plain.sum(dim=1) > 0).float().mean()) < 0.6
    sigmas = fastscore.geometric_sigmas(20.0, 0.1, 30)
    x = annealed_langevin(
        mixture_score, sigmas, shape=(2000, 2), steps_per_sigma=20, seed=0, device=device
    )
    right = x.sum(dim=1) > 0
    assert abs(float(right.float().mean()) - 0.8) < 0.05  # five standard errors
    for mode, center in ((x[right], 5.0), (x[~right], -5.0)):
        assert float((mode.mean(dim=0) - center).abs().max()) < 0.3
        assert abs(float(mode.var(dim=0).mean()) - 1) < 0.3


# ---- the same bytes ----------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_any_batch_split_gives_the_same_bytes(
    device: torch.device, sampler: Sampler, steps: int, init: str
) -> None:
    options: dict[str, Any] = {
        "seed": 3,
        "init": init,
        "device": device,
        "known": torch.full((3, 5), 0.25, device=device),
        "mask": torch.tensor([True, False, False, True, False], device=device),
    }
    whole = sampler(shape=(7, 3, 5), **options)
    for cut in (1, 3):
        parts = [
            sampler(shape=(cut, 3, 5), **options),
            sampler(shape=(7 - cut, 3, 5), sample_offset=cut, **options),
        ]
        assert_same_bytes(torch.cat(parts), whole)


@every_sampler
def test_stopping_and_resuming_gives_the_same_bytes(
    device: torch.device, sampler: Sampler, steps: int
) -> None:
    options: dict[str, Any] = {
        "seed": 3,
        "sample_offset": 2,
        "known": torch.ones(7, device=device),
        "mask": torch.tensor([True, False, False, True, False, False, False], device=device),
    }
    whole = sampler(shape=(4, 7), device=device, **options)
    for stop in (1, 4, 5, steps - 1, steps):
        seen = []

        def watch(step: int, x: Tensor, stop: int = stop, seen: list[int] = seen) -> bool:
            seen.append(step)
            return step == stop

        state = sampler(shape=(4, 7), device=device, callback=watch, **options)
        assert seen == list(range(1, stop + 1))
        again = sampler(state, start_step=stop, **options)
        assert_same_bytes(again, whole)


@every_sampler
def test_trajectory_holds_what_a_callback_sees(sampler: Sampler, steps: int) -> None:
    states = {}

    def keep(step: int, x: Tensor) -> None:
        states[step] = x.clone()

    x = sampler(shape=(4, 7), seed=3, callback=keep)
    assert list(states) == list(range(1, steps + 1))
    assert_same_bytes(states[steps], x)
    chosen = [3, 1]
    after = {run_annealed: [8, 16], run_consistent: [2, 4]}.get(sampler, [1, 3])
    same, trajectory = sampler(shape=(4, 7), seed=3, trajectory=chosen)
    assert_same_bytes(same, x)
    assert_same_bytes(trajectory, torch.stack([states[step] for step in after]))
    same, rest = sampler(states[after[0]], seed=3, trajectory=chosen, start_step=after[0])
    assert_same_bytes(same, x)
    assert_same_bytes(rest, trajectory[1:])
    _, none = sampler(shape=(4, 7), seed=3, trajectory=[])
    assert none.shape == (0, 4, 7)


def test_trajectory_of_a_stopped_run_has_only_the_levels_that_ended() -> None:
    _, states = run_annealed(
        shape=(4, 7), seed=3, trajectory=range(-4, 0), callback=lambda step, x: step == 9
    )
    assert states.shape == (2, 4, 7)


def test_memory_layout_does_not_matter(device: torch.device) -> None:
    x0 = randn(2, 3, 4, 4).to(device)
    want = run_annealed(x0, seed=1)
    last = run_annealed(x0.to(memory_format=torch.channels_last), seed=1)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_same_bytes(last, want)
    expanded = randn(1, 3, 4, 4).to(device).expand(2, 3, 4, 4)
    assert_same_bytes(run_annealed(expanded, seed=1), run_annealed(expanded.clone(), seed=1))


# ---- seeds -------------------------------------------------------------------------------------


@every_sampler
def test_seeds(sampler: Sampler, steps: int) -> None:
    first = sampler(shape=(4, 3), seed=1)
    assert_same_bytes(sampler(shape=(4, 3), seed=1), first)
    assert not torch.equal(sampler(shape=(4, 3), seed=2), first)
    torch.manual_seed(5)
    a, b = sampler(shape=(4, 3)), sampler(shape=(4, 3))
    assert not torch.equal(a, b)
    torch.manual_seed(5)
    assert_same_bytes(sampler(shape=(4, 3)), a)
    generator = torch.Generator().manual_seed(5)
    c = sampler(shape=(4, 3), generator=generator)
    generator.manual_seed(5)
    assert_same_bytes(sampler(shape=(4, 3), generator=generator), c)


def test_float32_and_float64_runs_meet_the_same_noise() -> None:
    single = run_annealed(shape=(4, 3), seed=1)
    double = run_annealed(shape=(4, 3), seed=1, dtype=torch.float64)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
