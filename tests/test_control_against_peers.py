"""Posterior scores against those of azula and deepinv, whole samplers of theirs in the benchmark.

A package that is not installed is skipped: ``pip install fastscore[peers]`` is all of them.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore.apps.bench.peers import continuous, control
from fastscore.guidance import MMPS, PiGDM
from fastscore.operators import AveragePool, Mask
from fastscore.scores import GaussianMixture

SHAPE, NOISE = (1, 4, 4), 0.1
LEVEL = 0.7
MASK = torch.arange(16).reshape(SHAPE) % 3 > 0


def needs(package: str) -> None:
    """Without importing it: deepinv can be only once its package has been helped."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")


def mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, *SHAPE, generator=generator)
    variances = 0.1 + torch.rand(3, *SHAPE, generator=generator)
    return GaussianMixture([0.5, 0.3, 0.2], means, variances)


def points() -> Tensor:
    return torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))


def guided_mean(posterior: Any, x: Tensor) -> Tensor:
    """The denoised mean given the measurement, by Tweedie's formula."""
    return x + LEVEL**2 * posterior(x, LEVEL).total()


@pytest.mark.parametrize("operator", [Mask(MASK), AveragePool(2)], ids=str)
def test_mmps_is_azulas(operator: Any) -> None:
    needs("azula")
    x, prior = points(), mixture()
    y = operator.A(x.flip(0))[:1]
    ours = guided_mean(MMPS(prior, operator, y, noise=NOISE, iterations=2), x)
    _, denoiser_of = continuous.azula_modules()
    denoiser = denoiser_of(lambda x, t: prior(x.reshape(-1, *SHAPE), t).flatten(1))

    def measured(x: Tensor) -> Tensor:
        return operator.A(x.reshape(-1, *SHAPE)).flatten(1)

    theirs = control.azula_mmps(denoiser, measured, y.flatten(1), NOISE, "cg", 2)
    mean = theirs(x.flatten(1), torch.tensor(LEVEL)).mean
    torch.testing.assert_close(ours, mean.reshape(x.shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["mmps", "pigdm"])
def test_posterior_scores_are_deepinvs(kind: str) -> None:
    needs("deepinv")
    sampling = control.deepinv_package().sampling
    physics = control.deepinv_package().physics
    x, prior, operator = points(), mixture(), Mask(MASK)
    y = operator.A(x.flip(0))[:1]
    noise = physics.GaussianNoise(NOISE)
    theirs = physics.Inpainting(img_size=SHAPE, mask=MASK.float(), noise_model=noise)

    def denoised(x: Tensor, sigma: Any, **kwargs: Any) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1).expand(len(x))
        return x + level.square().reshape(-1, 1, 1, 1) * prior(x, level)

    options = {"cg_max_iter": 60, "cg_tol": 1e-9}
    if kind == "mmps":
        fidelity = sampling.MomentMatchingDataFidelity(denoised, **options)
        ours: Any = MMPS(prior, operator, y, noise=NOISE, iterations=20)
    else:
        fidelity = sampling.PiGDMDataFidelity(denoised, **options)
        ours = PiGDM(prior, operator, y, noise=NOISE)
    guidance = ours(x, LEVEL).pairs[1][0]
    level = torch.full((len(x), 1, 1, 1), LEVEL)
    want = -torch.cat(
        [fidelity.grad(x[i : i + 1], y, theirs, level[i : i + 1]) for i in range(len(x))]
    )
    torch.testing.assert_close(guidance, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("package", ["azula", "deepinv"])
def test_samplers_of_the_benchmark_draw_from_a_gaussians_posterior(package: str) -> None:
    needs(package)
    prior = GaussianMixture([1.0], torch.zeros(1, *SHAPE), 1.0)
    operator, y = Mask(MASK), MASK.float().unsqueeze(0)
    sigmas = fastscore.geometric_sigmas(10.0, 0.02, 60).tolist()
    x = 10.0 * torch.randn(2000, *SHAPE, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    if package == "azula":
        options: dict[str, Any] = {"solver": "cg", "iterations": 1}
        ladder = [*sigmas, 0.0]
        drawn = control.sample_azula(prior, x, ladder, "mmps", operator, y, noise=NOISE, **options)
    else:
        physics = control.deepinv_package().physics
        noise = physics.GaussianNoise(NOISE)
        theirs = physics.Inpainting(img_size=SHAPE, mask=MASK.float(), noise_model=noise)
        with torch.no_grad():
            drawn = control.sample_deepinv(prior, x, sigmas, "mmps", theirs, y)
    known = drawn[:, MASK]
    assert abs(float(known.mean()) - 1 / (1 + NOISE**2)) < 0.01
    assert abs(float(known.std()) - NOISE) < 0.03
    assert abs(float(drawn[:, ~MASK].std()) - 1) < 0.08
