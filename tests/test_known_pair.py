"""How near each way of holding known values comes to the conditional distribution.

Two coordinates of variance 1 and correlation 0.9, the first known to be 1: the second has mean 0.9
and variance 0.19. Where the known element has fresh noise in each row, the moments of the other
one follow from the table of the sampler, with no samples.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import reverse_sde, sde
from fastscore.samplers import probability_flow

COVARIANCE = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)
KNOWN: dict[str, Any] = {"known": 1.0, "mask": torch.tensor([True, False])}
SAMPLES = 8000
TRUTH = MEAN, VARIANCE = 0.9, 0.19
each_process = pytest.mark.parametrize(
    "process", [sde.VE(0.01, 10.0), sde.VP()], ids=lambda p: type(p).__name__
)


class First:
    def A(self, x: Tensor) -> Tensor:
        return x[:, :1]

    def A_dagger(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.zeros_like(y)], dim=1)


PROJECTED: dict[str, Any] = {"operator": First(), "measurement": torch.ones(1, 1)}


def score(x: Tensor, sigma: Tensor) -> Tensor:
    vectors = VECTORS.to(x.dtype)
    return -(x @ vectors) / (VALUES.to(x.dtype) + sigma[:, None] ** 2) @ vectors.mT


def computed(plan: Any) -> tuple[float, float]:
    """The second coordinate's mean and variance, row by row."""
    a, b, c, k = plan.table[:, :4].unbind(1)
    level = torch.arange(len(a)) // plan.steps_per_level
    s = plan.sigmas[level.clamp(max=len(plan.sigmas) - 1)]
    precision = torch.linalg.inv(COVARIANCE + s[:, None, None] ** 2 * torch.eye(2).double())
    seen = torch.cat([s[:1], k[:-1]])
    pull = b * precision[:, 1, 0]
    columns = (a - b * precision[:, 1, 1], -pull, (pull * seen).square() + c.square())
    mean, variance = 0.0, float(s[0]) ** 2
    for factor, moved, fresh in zip(*(column.tolist() for column in columns), strict=True):
        mean, variance = factor * mean + moved, factor**2 * variance + fresh
    return mean, variance


def of_reverse(process: Any, **options: Any) -> tuple[float, float]:
    return computed(reverse_sde.plan(score, process, None, conditioning="sigma", **options))


def drawn(process: Any, **options: Any) -> Tensor:
    how = {"shape": (SAMPLES, 2), "seed": 0, "conditioning": "sigma", **options}
    return reverse_sde(score, process, **how)[:, 1].double()


def assert_moments(x: Tensor, mean: float, variance: float) -> None:
    """Within five standard errors."""
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(variance / len(x))
    assert abs(float(x.var()) / variance - 1) < 5 * math.sqrt(2 / len(x))


@each_process
def test_replacement_alone_is_not_exact_however_many_steps(process: Any) -> None:
    found = [of_reverse(process, steps=n) for n in (100, 1000, 10_000)]
    for mean, variance in found:
        assert 0.60 < mean < 0.63
        assert 0.31 < variance < 0.35
    assert found[-1] == pytest.approx((0.6267, 0.3109), abs=5e-4)  # where they converge
    for values in (KNOWN, PROJECTED):
        assert_moments(drawn(process, steps=100, **values), *found[0])


@each_process
def test_correctors_lead_to_the_conditional_distribution(process: Any) -> None:
    small = [
        of_reverse(process, steps=100, corrector="annealed", corrector_steps=n) for n in (1, 5)
    ]
    assert found_nearer(*small)
    how: dict[str, Any] = {"corrector": "annealed", "snr": 0.5}
    assert found_nearer(of_reverse(process, steps=100), of_reverse(process, steps=100, **how))
    how |= {"corrector_steps": 10, "steps": 400, "grid": "karras"}
    assert of_reverse(process, **how) == pytest.approx((MEAN, VARIANCE), abs=3e-3)
    assert_moments(drawn(process, **KNOWN, **how), MEAN, VARIANCE)
    assert_moments(drawn(process, **PROJECTED, **how), MEAN, VARIANCE)


@each_process
def test_resampling_leads_to_the_conditional_distribution(process: Any) -> None:
    found = [of_reverse(process, steps=100, resamplings=n) for n in (1, 2, 5, 10, 20)]
    assert all(found_nearer(*pair) for pair in itertools.pairwise(found))
    how: dict[str, Any] = {"steps": 100, "resamplings": 40, "grid": "karras"}
    assert of_reverse(process, **how) == pytest.approx((MEAN, VARIANCE), abs=8e-3)
    assert_moments(drawn(process, **KNOWN, **how), MEAN, VARIANCE)
    assert_moments(drawn(process, **PROJECTED, **how), MEAN, VARIANCE)


def found_nearer(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether the second pair of moments is nearer to the truth in both."""
    return all(abs(b - t) < abs(a - t) for a, b, t in zip(first, second, TRUTH, strict=True))


def test_the_samplers_of_levels() -> None:
    few = fastscore.geometric_sigmas(10.0, 0.01, 60)
    how: dict[str, Any] = {"shape": (SAMPLES, 2), "seed": 0, **KNOWN}
    found = []
    for each in (1, 5, 20):
        found.append(computed(fastscore.annealed_langevin.plan(score, few, steps_per_sigma=each)))
        x = fastscore.annealed_langevin(score, few, steps_per_sigma=each, **how)[:, 1]
        assert_moments(x.double(), *found[-1])
    assert found_nearer(*found[:2])
    assert found_nearer(*found[1:])
    of_one_step = fastscore.consistent_annealed_langevin
    x = of_one_step(score, few, eta=0.3, **how)[:, 1]
    assert_moments(x.double(), *computed(of_one_step.plan(score, few, eta=0.3)))
    x = fastscore.langevin(score, sigma=0.01, steps=400, step_size=0.01, **how)[:, 1]
    assert abs(float(x.mean()) - MEAN) < 0.03
    assert abs(float(x.var()) - VARIANCE) < 0.02


def of_flow(highest: float, lowest: float, steps: int = 4000) -> tuple[float, float]:
    """Of y = p z + q z_known + m, moved by dy/ds = -s S in log s, by the midpoint rule."""
    p, q, m = highest, 0.0, 0.0
    ratio = (lowest / highest) ** (1 / steps)
    for step in range(steps):
        s = highest * ratio ** (step + 0.5)
        determinant = (1 + s**2) ** 2 - 0.81
        own, other = (1 + s**2) / determinant, -0.9 / determinant
        change = s**2 * math.log(ratio)
        kept = (1 + change * own / 2) / (1 - change * own / 2)
        pull = change * other / (1 - change * own / 2)
        p, q, m = kept * p, kept * q + pull * s, kept * m + pull
    return m, p**2 + q**2


@pytest.mark.parametrize("solver", ["heun", "rk4", "dpmpp_2m", "rk45"])
def test_the_flow_with_one_noise_is_further_off(solver: str) -> None:
    how: dict[str, Any] = {"shape": (SAMPLES, 2), "seed": 0, "solver": solver, **KNOWN}
    how |= {"rtol": 1e-4, "atol": 1e-4} if solver == "rk45" else {"steps": 60}
    x = probability_flow(score, sde.VE(0.01, 10.0), **how)[:, 1].double()
    mean, variance = of_flow(10.0, 0.01)
    assert (mean, variance) == pytest.approx((0.45, 0.53), abs=0.02)
    assert_moments(x, mean, variance)
