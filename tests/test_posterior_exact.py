"""PiGDM and MMPS where they are exact: of Gaussians, the score, and where samplers lead by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import randn
from posteriors import (
    F64,
    Gaussian,
    Matrix,
    Solvable,
    affine,
    some_gaussian,
    some_matrix,
)
from torch import Tensor

import fastscore
from fastscore.guidance import MMPS, PiGDM
from fastscore.sde import VE, VP

SIZE, ROWS = 6, 3
LEVELS = torch.tensor([0.03, 0.3, 1.0, 5.0, 20.0], dtype=F64)
MATRIX = some_matrix(ROWS, SIZE)
WHITE = Gaussian(torch.linspace(-1, 1, SIZE), 1.7 * torch.eye(SIZE, dtype=F64))
ANY = some_gaussian(SIZE)

Kind = Callable[..., Any]


def pigdm(operator: Any, y: Any = None, **options: Any) -> Any:
    return PiGDM(WHITE, operator, y, data_variance=1.7, **options)


def mmps(operator: Any, y: Any = None, **options: Any) -> Any:
    return MMPS(ANY, operator, y, iterations=ROWS, **options)


both = pytest.mark.parametrize(
    ("kind", "prior"), [(pigdm, WHITE), (mmps, ANY)], ids=["pigdm", "mmps"]
)


@both
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("operator", [Matrix, Solvable])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
def test_the_score_given_a_measurement_is_exact(
    kind: Kind,
    prior: Gaussian,
    noise: float,
    operator: Any,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    x = randn(len(LEVELS), SIZE, dtype=F64) * (1 + LEVELS.unsqueeze(1) ** 2).sqrt()
    y = randn(len(LEVELS), ROWS, dtype=F64, seed=1)
    model = kind(operator(MATRIX), noise=noise)
    with torch.no_grad():
        got = model(x.to(dtype), LEVELS.to(dtype), measurement=y.to(dtype)).total().double()
    for i in range(len(x)):
        want = prior.given(MATRIX, y[i], noise)(x[i : i + 1], LEVELS[i : i + 1])[0]
        assert float((got[i] - want).norm() / want.norm()) < tolerance


def test_it_is_exact_of_every_variance_that_is_told() -> None:
    x, y = randn(4, SIZE, dtype=F64), randn(4, ROWS, dtype=F64, seed=1)
    told = PiGDM(WHITE, Solvable(MATRIX), data_variance=1.7)
    other = PiGDM(WHITE, Solvable(MATRIX))
    want = torch.cat([WHITE.given(MATRIX, y[i], 0.0)(x[i : i + 1], LEVELS[2:3]) for i in range(4)])
    for model, exact in ((told, True), (other, False)):
        got = model(x, 1.0, measurement=y).total()
        assert (float((got - want).abs().max()) < 1e-10) is exact


# ---- where samplers lead: the posterior's mean and covariance, at first order in the steps -------


def flow_moments(model: Any, mean: Tensor, root: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance after the flow, of N(mean, root root'): it is affine, so exactly."""
    points = torch.cat([mean.unsqueeze(0), mean + root.T])
    process = VE(0.01, 10.0)
    ends = fastscore.probability_flow(
        model, process, points, solver="euler", steps=steps, grid="log", denoise=False
    )
    out = (ends[1:] - ends[0]).T
    return ends[0], out @ out.T


def at_level(model: Any, told: Tensor, x: Tensor) -> Tensor:
    total: Tensor = model(x, told).total()
    return total


def reverse_moments(model: Any, mean: Tensor, root: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The same of reverse diffusion, x + d S + sqrt(d) z, d the difference of squared levels."""
    covariance = root @ root.T
    levels = torch.logspace(1, -2, steps + 1, dtype=F64)
    eye = torch.eye(SIZE, dtype=F64)
    for k in range(steps):
        drop = levels[k] ** 2 - levels[k + 1] ** 2
        told = levels[k].expand(SIZE + 1)
        matrix, offset = affine(partial(at_level, model, told), SIZE)
        mean = mean + drop * (matrix @ mean + offset)
        step = eye + drop * matrix
        covariance = step @ covariance @ step.T + drop * eye
    return mean, covariance


@both
@pytest.mark.parametrize(("moments", "power"), [(flow_moments, 0.5), (reverse_moments, 1.0)])
def test_moments_converge_at_first_order(
    kind: Kind, prior: Gaussian, moments: Any, power: float
) -> None:
    """At N = 250, 500 and 1000 the errors halve, of a start that is off the mean by a shift."""
    noise, y = 0.2, torch.tensor([1.0, -0.5, 0.3], dtype=F64)
    model, truth = kind(Solvable(MATRIX), y, noise=noise), prior.given(MATRIX, y, noise)
    eye, errors = torch.eye(SIZE, dtype=F64), []
    root = torch.linalg.cholesky(truth.covariance + 10.0**2 * eye)
    # Along an eigenvector the flow keeps (x - m)/sd, and the reverse process (x - m)/variance.
    kept = ((truth.values + 0.01**2) / (truth.values + 10.0**2)) ** power
    shift = 50 * torch.ones(SIZE, dtype=F64)
    end = truth.mean + truth.vectors @ (kept * (truth.vectors.T @ shift))
    with torch.no_grad():
        for steps in (250, 500, 1000):
            mean, covariance = moments(model, truth.mean + shift, root, steps)
            off = covariance - truth.covariance - 0.01**2 * eye
            errors.append((float((mean - end).norm()), float(off.norm())))
    coarse, middle, fine = errors
    exact_mean = moments is reverse_moments  # 1 - d/(C + s^2) is (C + s'^2)/(C + s^2)
    assert exact_mean == (coarse[0] < 1e-9)
    for i in (1,) if exact_mean else (0, 1):
        assert 1.8 < coarse[i] / middle[i] < 2.2
        assert 1.8 < middle[i] / fine[i] < 2.2
        assert fine[i] < 0.03


@both
def test_reverse_sde_draws_from_the_posterior(kind: Kind, prior: Gaussian) -> None:
    noise, y, count = 0.3, torch.tensor([1.0, -0.5, 0.3]), 8000
    model = kind(Solvable(MATRIX), y, noise=noise)
    truth = prior.given(MATRIX, y, noise)
    x = fastscore.reverse_sde(
        model, VE(0.01, 30.0), shape=(count, SIZE), steps=300, grid="log", seed=0
    ).double()
    spread = truth.covariance.diagonal().max().sqrt()
    assert float((x.mean(0) - truth.mean).abs().max()) < 5 * spread / math.sqrt(count) + 0.02
    off = (torch.cov(x.T) - truth.covariance).norm() / truth.covariance.norm()
    assert float(off) < 0.08


@pytest.mark.parametrize("solver", ["heun", "rk45", "dpmpp_2m", "rk4"])
@both
def test_every_solver_of_the_flow_leads_there(kind: Kind, prior: Gaussian, solver: str) -> None:
    """The flow of the guided score is that of the exact posterior."""
    noise, y = 0.3, torch.tensor([1.0, -0.5, 0.3], dtype=F64)
    model, truth = kind(Solvable(MATRIX), y, noise=noise), prior.given(MATRIX, y, noise)
    x = 20 * randn(5, SIZE, dtype=F64)
    options: dict[str, Any] = {"solver": solver, "denoise": False}
    options |= {} if solver == "rk45" else {"steps": 40}
    got = fastscore.probability_flow(model, VE(0.01, 20.0), x, **options)
    want = fastscore.probability_flow(truth, VE(0.01, 20.0), x, **options)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("process", [VE(0.01, 20.0), VP()], ids=["VE", "VP"])
@both
def test_a_likelihood_is_that_of_the_posterior(kind: Kind, prior: Gaussian, process: Any) -> None:
    """Which takes the derivative of the guided score, and so the score's second one."""
    noise, y = 0.3, torch.tensor([1.0, -0.5, 0.3], dtype=F64)
    model, truth = kind(Solvable(MATRIX), y, noise=noise), prior.given(MATRIX, y, noise)
    model.sigma_range = truth.sigma_range = process.sigma_range  # type: ignore[attr-defined]
    x = truth.mean + 0.3 * randn(3, SIZE, dtype=F64)
    own = (float(truth.mean.mean()), 1.0)
    options: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "prior": own, "divergence": "exact"}
    got = fastscore.log_likelihood(model, x, process, conditioning="sigma", **options)
    want = fastscore.log_likelihood(truth, x, process, conditioning="sigma", **options)
    torch.testing.assert_close(got.log_prob, want.log_prob, rtol=1e-4, atol=1e-4)


SAMPLERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "annealed_langevin": lambda model, x: fastscore.annealed_langevin(
        model, fastscore.geometric_sigmas(5.0, 0.1, 8), x, steps_per_sigma=5, seed=0
    ),
    "langevin": lambda model, x: fastscore.langevin(
        model, x, steps=40, step_size=0.01, sigma=0.3, seed=0
    ),
    "reverse_sde": lambda model, x: fastscore.reverse_sde(
        model, VE(0.01, 20.0), x, steps=40, corrector="annealed", seed=0
    ),
    "ancestral": lambda model, x: fastscore.reverse_sde(
        model, VP(), x, steps=40, predictor="ancestral", conditioning="sigma", seed=0
    ),
    "churned": lambda model, x: fastscore.probability_flow(
        model, VE(0.01, 20.0), x, solver="heun", steps=20, churn=5.0, seed=0
    ),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@both
def test_every_sampler_draws_what_it_draws_by_the_posteriors_own_score(
    kind: Kind, prior: Gaussian, sampler: str
) -> None:
    noise, y = 0.3, torch.tensor([1.0, -0.5, 0.3], dtype=F64)
    model, truth = kind(Solvable(MATRIX), y, noise=noise), prior.given(MATRIX, y, noise)
    x = randn(5, SIZE, dtype=F64)
    got, want = (SAMPLERS[sampler](score, x) for score in (model, truth))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
