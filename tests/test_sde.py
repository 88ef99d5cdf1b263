"""Processes in continuous time: design's formulas against derivatives, and known numbers."""

import copy
import pickle

import pytest
import torch

from fastscore import sde

LINEAR = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESSES = [
    sde.VE(),
    sde.VP(),
    sde.SubVP(),
    sde.Cosine(),
    sde.Cosine(offset=0.0),
    sde.DDPM(LINEAR),
    sde.RectifiedFlow(),
    sde.VP(1.0, 1.0),
    sde.VP(0.0, 20.0),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def times(process: sde.Process) -> torch.Tensor:
    middle = torch.linspace(0.01, 0.99, 57, dtype=torch.float64)
    ends = torch.tensor([1e-5, 1e-4, 1e-3, process.t_max], dtype=torch.float64)
    return torch.cat([ends[:3], middle, ends[3:]])


def derivative(function, t: torch.Tensor) -> torch.Tensor:
    t = t.clone().requires_grad_()
    return torch.autograd.grad(function(t).sum(), t, allow_unused=True)[0].detach()


@every_process
def test_rates_are_the_derivatives(process):
    t = times(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    close = {"rtol": 1e-9, "atol": 1e-12}
    d_alpha = torch.zeros_like(t) if isinstance(process, sde.VE) else derivative(process.alpha, t)
    torch.testing.assert_close(process.alpha_rate(t), d_alpha, **close)
    torch.testing.assert_close(process.sigma_rate(t), derivative(process.sigma, t), **close)
    torch.testing.assert_close(process.drift(t), d_alpha / alpha, **close)
    torch.testing.assert_close(process.noise_level(t), sigma / alpha, rtol=1e-11, atol=0)
    d_level = derivative(lambda t: process.noise_level(t).square(), t)
    torch.testing.assert_close(process.diffusion_squared(t), alpha**2 * d_level, **close)
    d_log = derivative(lambda t: 2 * process.noise_level(t).log(), t)
    torch.testing.assert_close(process.diffusion_squared(t) / sigma**2, d_log, **close)


@every_process
def test_time_of_is_the_inverse(process):
    t = times(process)
    torch.testing.assert_close(process.time_of(process.noise_level(t)), t, rtol=1e-12, atol=1e-15)


@every_process
def test_copies_and_pickles_are_equal(process):
    for other in (copy.copy(process), copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        assert other == process
        assert hash(other) == hash(process)
        assert torch.equal(other.sigma(times(process)), process.sigma(times(process)))


def test_known_ranges():
    def of(process, t):
        return float(process.noise_level(t))

    assert of(sde.VE(), 0.0) == 0.01
    assert of(sde.VE(), 1.0) == pytest.approx(50, rel=1e-14)
    assert of(sde.VP(), 1e-3) == pytest.approx(0.0105, rel=0.01)
    assert of(sde.VP(), 1.0) == pytest.approx(152, rel=0.003)
    assert of(sde.SubVP(), 1e-3) == pytest.approx(1.1e-4, rel=0.01)
    assert of(sde.SubVP(), 1.0) == pytest.approx(152, rel=0.003)


def test_scores_from_every_prediction():
    torch.manual_seed(0)
    x0, z = torch.randn(2, 200, dtype=torch.float64)
    for process in PROCESSES:
        t = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)
        alpha, sigma = process.alpha(t), process.sigma(t)
        d_alpha, d_sigma = process.alpha_rate(t), process.sigma_rate(t)
        x = alpha * x0 + sigma * z
        output = {
            "score": -z / sigma,
            "eps": z,
            "x0": x0,
            "v": (alpha * z - sigma * x0) / (alpha**2 + sigma**2).sqrt(),
            "velocity": d_alpha * x0 + d_sigma * z,
        }
        for name, value in output.items():
            a, b = sde.conversions.score_coefficients(name, alpha, sigma, d_alpha, d_sigma)
            torch.testing.assert_close(a * value + b * x, -z / sigma, rtol=1e-8, atol=1e-8)
