"""Samplers and likelihoods in continuous time against those of other packages, at the same noise.

What each package visits is said with its function in ``fastscore.apps.bench.peers.continuous``, how
the flow is integrated in that of ``likelihood`` there. A package that is not installed is skipped:
``pip install fastscore[peers]`` is all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from helpers import make_key
from torch import Tensor

import fastscore
from fastscore import ops, sde
from fastscore.apps.bench.peers import continuous, likelihood

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIGMA_MIN, SIGMA_MAX = 0.01, 20.0
VE = sde.VE(SIGMA_MIN, SIGMA_MAX)
MIXTURE = fastscore.scores.GaussianMixture([0.3, 0.7], [[2.0, 0.0], [-1.0, 1.0]], [0.2, 0.05])
SEED = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
BETAS = torch.linspace(1e-4, 0.05, 200).tolist()


def start(batch: int = 16, scale: float = SIGMA_MAX) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(batch, 2, generator=generator)


def drawn(like: Tensor) -> Callable[[int], Tensor]:
    """The noise of draw number k."""
    pure = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    nothing = torch.zeros_like(like)

    def noise(draw: int) -> Tensor:
        return ops.langevin_step(nothing, nothing, pure, make_key(SEED, draw))

    return noise


def noise_of_levels(x: Tensor, index: Tensor) -> Tensor:
    """The mixture as a network of DDPM's: the noise in x at a level of BETAS."""
    kept = torch.cumprod(1 - torch.tensor(BETAS, dtype=torch.float64), 0)[index]
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    score = MIXTURE(x / alpha[:, None].float(), (sigma / alpha).float())
    return -(sigma / alpha)[:, None].float() * score


# ---- diffusers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 7, 24])
@pytest.mark.parametrize(
    ("solver", "peer"),
    [
        ("euler", continuous.sample_diffusers_euler),
        ("heun", continuous.sample_diffusers_heun),
        ("dpmpp_2m", continuous.sample_diffusers_dpmpp),
    ],
)
def test_karras_ladder_as_in_diffusers(
    solver: str, peer: Callable[..., Tensor], steps: int
) -> None:
    pytest.importorskip("diffusers")
    x = start()
    ours = fastscore.probability_flow(MIXTURE, VE, x, solver=solver, steps=steps, grid="karras")
    torch.testing.assert_close(ours, peer(MIXTURE, x, steps, SIGMA_MIN, SIGMA_MAX), **CLOSE)


@pytest.mark.parametrize("steps", [3, 7, 24])
def test_stochastic_dpmpp_as_in_diffusers(steps: int) -> None:
    pytest.importorskip("diffusers")
    x = start()
    ours = fastscore.probability_flow(
        MIXTURE, VE, x, solver="dpmpp_2m_sde", steps=steps, grid="karras", seed=SEED
    )
    theirs = continuous.sample_diffusers_dpmpp(
        MIXTURE, x, steps, SIGMA_MIN, SIGMA_MAX, stochastic=True, noise=drawn(x)
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("steps", [4, 50])
def test_ddim_as_in_diffusers(steps: int) -> None:
    """Euler's steps on the levels of a network of DDPM's are DDIM's."""
    pytest.importorskip("diffusers")
    x = start(scale=1.0)
    levels = continuous.ddim_levels(steps, len(BETAS))
    ours = fastscore.probability_flow(
        noise_of_levels, sde.DDPM(BETAS), x, solver="euler", steps=steps,
        grid=torch.tensor(levels, dtype=torch.float64) / (len(BETAS) - 1),
        conditioning="index", betas=BETAS, prediction="eps",
    )  # fmt: skip
    theirs = continuous.sample_diffusers_ddim(noise_of_levels, x, steps, BETAS)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_as_in_diffusers(eta: float) -> None:
    """DDIM with eta on all levels: eta = 1 are DDPM's own steps."""
    pytest.importorskip("diffusers")
    x, steps = start(scale=1.0), len(BETAS)
    ours = fastscore.reverse_sde(
        noise_of_levels, sde.DDPM(BETAS), x, steps=steps - 1, predictor="ancestral", eta=eta,
        seed=SEED, conditioning="index", betas=BETAS, prediction="eps",
    )  # fmt: skip
    theirs = continuous.sample_diffusers_ddim(
        noise_of_levels, x, steps, BETAS, eta=eta, noise=drawn(x)
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_reverse_diffusion_as_in_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predictor of ``ScoreSdeVeScheduler``, whose last step is Tweedie's formula.

    It calls the network at levels some 1e-5 beside those of its steps.
    """
    module = pytest.importorskip("diffusers.schedulers.scheduling_sde_ve")
    x, steps = start(), 30
    draws, noise = iter(range(steps)), drawn(x)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **named: noise(next(draws)))
    ours = fastscore.reverse_sde(
        MIXTURE, VE, x, steps=steps - 1, predictor="reverse_diffusion", seed=SEED
    )
    theirs = continuous.sample_diffusers_ve(
        MIXTURE, x, steps, SIGMA_MIN, SIGMA_MAX, corrector_steps=0
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


# ---- azula -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "sampler"), [("euler", "DDIMSampler"), ("euler", "EulerSampler")]
)
def test_karras_ladder_as_in_azula(solver: str, sampler: str) -> None:
    pytest.importorskip("azula")
    x, steps = start(), 12
    ladder = continuous.karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    ours = fastscore.probability_flow(MIXTURE, VE, x, solver=solver, steps=steps, grid="karras")
    theirs = continuous.sample_azula(MIXTURE, x, sampler, [*ladder.tolist(), 0.0])
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_heun_as_in_azula() -> None:
    """To the smallest level and no further, log-linear: uniform in a VE process' time."""
    pytest.importorskip("azula")
    x, intervals = start(), 12
    ladder = fastscore.geometric_sigmas(SIGMA_MAX, SIGMA_MIN, intervals + 1)
    theirs = continuous.sample_azula(MIXTURE, x, "HeunSampler", ladder)
    for grid in ("uniform", "log"):
        ours = fastscore.probability_flow(
            MIXTURE, VE, x, solver="heun", steps=intervals, grid=grid, denoise=False
        )
        torch.testing.assert_close(ours, theirs, **CLOSE)


# ---- adaptive solvers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow_ends() -> tuple[Tensor, Tensor]:
    """Starts and ends of the mixture's flow, by scipy to 10 digits."""
    integrate = pytest.importorskip("scipy.integrate")
    x = start().double()

    def slope(log_sigma: float, y: numpy.ndarray) -> numpy.ndarray:
        sigma = float(numpy.exp(log_sigma))
        points = torch.from_numpy(y).reshape(x.shape)
        score = MIXTURE(points, torch.full((len(x),), sigma, dtype=torch.float64))
        return (-(sigma**2) * score).flatten().numpy()

    span = (float(numpy.log(SIGMA_MAX)), float(numpy.log(SIGMA_MIN)))
    found = integrate.solve_ivp(
        slope, span, x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10
    )
    return x, torch.from_numpy(found.y[:, -1]).reshape(x.shape)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_rk45_against_scipy(flow_ends: tuple[Tensor, Tensor], tolerance: float) -> None:
    x, ends = flow_ends
    ours = fastscore.probability_flow(MIXTURE, VE, x, solver="rk45", rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours, ends, rtol=0, atol=50 * tolerance)


def test_rk45_against_torchode(flow_ends: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("torchode")
    x = flow_ends[0].float()
    ours = fastscore.probability_flow(MIXTURE, VE, x, solver="rk45", rtol=1e-5, atol=1e-5)
    theirs = continuous.sample_torchode(MIXTURE, x, SIGMA_MIN, SIGMA_MAX, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)


# ---- likelihoods -------------------------------------------------------------------------------

PROCESSES = [VE, sde.VP()]


def gaussian_log_prob(z: Tensor, mean: float, std: float) -> Tensor:
    constant = z.shape[1] * math.log(2 * math.pi * std**2)
    return -(((z - mean) / std).square().sum(1) + constant) / 2


def flow_of(
    coordinate: str, field: likelihood.ScoreAndDivergence, process: sde.Process, x: Tensor
) -> likelihood.InTime:
    """From score_sde's first time; the spread is wrong by a factor of 2."""
    begin = likelihood.SCORE_SDE_EPS
    if coordinate == "scaled":
        return likelihood.Scaled(field, process, x.shape, begin, spread=0.6)
    return likelihood.InTime(field, process, x.shape, begin)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("coordinate", ["time", "scaled"])
@pytest.mark.parametrize("package", likelihood.SOLVERS)
def test_likelihoods_of_peers_are_those_of_a_gaussian(
    package: str, coordinate: str, process: sde.Process
) -> None:
    """Of N(m, v I): what the flow takes to the prior N(0, sigma^2), not to N(alpha m, ...)."""
    pytest.importorskip("scipy" if package == "scipy" else package)
    mean, variance, elements = 0.5, 0.09, 5
    begin, end = likelihood.SCORE_SDE_EPS, process.t_max
    first, last = (float(process.noise_level(t)) for t in (begin, end))
    alpha, last_alpha = (float(process.alpha(t)) for t in (begin, end))

    def field(y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        width = variance + sigma.square()
        return (mean - y) / width[:, None], -elements / width

    generator = torch.Generator().manual_seed(1)
    x = alpha * (mean + 0.3 * torch.randn(12, elements, generator=generator))
    flow = flow_of(coordinate, field, process, x)
    found = likelihood.SOLVERS[package](flow, x, rtol=1e-5, atol=1e-5)

    width, last_width = math.hypot(0.3, first), math.hypot(0.3, last)
    z = last_alpha * (mean + (x.double() / alpha - mean) * last_width / width)
    expected = gaussian_log_prob(z, 0.0, float(process.sigma(end)))
    expected += elements * math.log(last_alpha * last_width / (alpha * width))
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=2e-3)
    assert found.evaluations.shape == (12,)
    assert int(found.evaluations.max()) <= found.passes


@pytest.fixture(scope="module")
def points() -> Tensor:
    return MIXTURE.sample(24, seed=2)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_log_likelihood_against_scipy(points: Tensor, process: sde.Process) -> None:
    """score_sde's RK45, with the exact divergence, in float64 and a hundred times as strict."""
    pytest.importorskip("scipy")
    x = points.double()

    def field(y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return MIXTURE(y, sigma), fastscore.divergence(MIXTURE, y, sigma, method="exact")

    flow = likelihood.InTime(field, process, x.shape, process.t_eps)
    theirs = likelihood.solve_scipy(flow, x, rtol=1e-7, atol=1e-7)
    ours = fastscore.log_likelihood(MIXTURE, x, process, divergence="exact", rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=0, atol=2e-4)


def test_log_likelihood_against_score_sde(points: Tensor) -> None:
    """Its way as it is, with the one probe that this library draws."""
    pytest.importorskip("scipy")
    key = fastscore.random.key(SEED)
    (probe,) = ops.projections(key, points.shape, 1, distribution="rademacher")
    theirs = likelihood.log_likelihood_score_sde(MIXTURE, points, VE, probe=probe)
    ours = fastscore.log_likelihood(
        MIXTURE, points, VE, divergence="hutchinson", seed=SEED, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=0, atol=2e-3)
