"""Energies beside the flows of their gradients."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore.evaluation import energy_spread, log_likelihood
from fastscore.scores import EnergyScore, GaussianMixture, Parzen

PROCESSES = [fastscore.sde.VE(0.05, 60.0), fastscore.sde.VP(), fastscore.sde.SubVP()]
TIGHT: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "divergence": "exact"}


def points(n: int = 40, dims: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, dims, generator=generator, dtype=torch.float64)


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    return GaussianMixture([0.4, 0.6], means, 0.3)


def gaussian_energy(x: Tensor, sigma: Tensor) -> Tensor:
    """N(0, 0.7), without its normaliser."""
    return x.square().sum(1) / (0.7 + sigma**2) / 2


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", ["mixture", "parzen"])
def test_of_an_exact_score_the_spread_is_the_solvers_error(sde: Any, kind: str) -> None:
    model: Any = mixture() if kind == "mixture" else Parzen(points(9), 0.4)
    prior = (torch.tensor([0.2, 0.3]), torch.tensor([1.12, 0.6]))
    if kind == "parzen":
        prior = (points(9).mean(0), (points(9).var(0, correction=0) + 0.16).sqrt())
    fine = energy_spread(model, points(), sde, prior=prior, **TIGHT)
    assert fine.differences.shape == (40,)
    assert fine.differences.dtype == torch.float64
    assert fine.spread < 5e-3
    assert abs(fine.log_normaliser) < 5e-3
    coarse = energy_spread(model, points(), sde, prior=prior, rtol=1e-2, atol=1e-2)
    assert coarse.spread > 2 * fine.spread


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_the_normaliser_of_a_gaussian(sde: Any, offset: float) -> None:
    model = EnergyScore(lambda x, sigma: gaussian_energy(x, sigma) + offset)
    found = energy_spread(model, points(), sde, prior=(0.0, math.sqrt(0.7)), **TIGHT)
    level = float(sde.noise_level(sde.t_eps))
    assert found.log_normaliser == pytest.approx(
        math.log(2 * math.pi * (0.7 + level**2)) - offset, abs=1e-3
    )
    assert found.spread < 1e-3


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda p: type(p).__name__)
def test_where_the_flow_begins_is_where_the_energy_is_taken(sde: Any) -> None:
    """Of an energy that knows no lower noise level than 0.5, where alpha is 0.89 on VP."""
    model = EnergyScore(gaussian_energy)
    model.sigma_range = (0.5, 60.0)
    found = energy_spread(model, points(), sde, prior=(0.0, math.sqrt(0.7)), **TIGHT)
    assert found.log_normaliser == pytest.approx(math.log(2 * math.pi * 0.95), abs=1e-3)
    assert found.spread < 1e-3
    named = energy_spread(
        EnergyScore(gaussian_energy), points(), sde, sigma_range=(0.5, 60.0),
        prior=(0.0, math.sqrt(0.7)), **TIGHT,
    )  # fmt: skip
    assert named.log_normaliser == pytest.approx(found.log_normaliser, abs=1e-9)


def test_an_energy_that_obeys_no_diffusion_differs_by_more_than_a_constant() -> None:
    model = EnergyScore(
        lambda x, s: gaussian_energy(x, s) + 0.3 * (2 * x[:, 0]).sin() / (1 + s.square())
    )
    found = energy_spread(model, points(), PROCESSES[0], prior=(0.0, math.sqrt(0.7)), **TIGHT)
    assert found.spread > 0.03
    flow = log_likelihood(model, points(), PROCESSES[0], prior=(0.0, math.sqrt(0.7)), **TIGHT)
    minus_energy = -model.values(points(), 0.05)
    torch.testing.assert_close(found.differences, minus_energy - flow.log_prob)
    assert torch.equal(found.evaluations, flow.evaluations)
    assert found.spread == pytest.approx(float(found.differences.std()))


class Labelled(nn.Module):
    """An energy of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return (
            (x - self.means[label]).square().sum(1, keepdim=True) / (0.3 + sigma[:, None] ** 2) / 2
        )


@pytest.mark.parametrize("size", [{}, {"batch_size": 3}, {"chunk_size": 4}])
def test_what_belongs_to_the_samples_goes_with_them(size: dict[str, int]) -> None:
    label = torch.arange(7) % 2
    options: dict[str, Any] = {"model_kwargs": {"label": label}, **TIGHT}
    found = energy_spread(EnergyScore(Labelled()), points(7), PROCESSES[0], **options, **size)
    assert found.log_normaliser == pytest.approx(math.log(2 * math.pi * 0.3025), abs=0.06)
    assert found.spread < 0.06  # of the prior, whose mean is 0; with another's label it is 3
    assert not found.differences.requires_grad


def test_float32() -> None:
    model = EnergyScore(gaussian_energy)
    found = energy_spread(model, points().float(), PROCESSES[1], prior=(0.0, math.sqrt(0.7)))
    assert found.log_normaliser == pytest.approx(math.log(2 * math.pi * 0.7), abs=0.02)
    assert repr(found).startswith("EnergySpread(40 samples, log_normaliser=")


def test_help_and_inspect_know_the_options() -> None:
    shown = inspect.signature(energy_spread).parameters
    for name, parameter in inspect.signature(log_likelihood).parameters.items():
        assert shown[name].default == parameter.default, name


def test_what_is_refused() -> None:
    expected = "model must be a fastscore.scores.EnergyScore, or a score with a method log_prob"
    with pytest.raises(TypeError, match=rf"^energy_spread: {expected}.*, got ScoreMLP"):
        energy_spread(fastscore.nn.ScoreMLP(2), points(), PROCESSES[0])
    with pytest.raises(TypeError, match=r"^energy_spread: there is no option 'probs'"):
        energy_spread(mixture(), points(), PROCESSES[0], probs=2)
    with pytest.raises(TypeError, match=r"^energy_spread: sde must be a process"):
        energy_spread(mixture(), points(), 3.0)
    one = energy_spread(mixture(), points(1), PROCESSES[0])
    assert repr(one) == "EnergySpread(1 samples)"
    with pytest.raises(ValueError, match="spread must be asked of at least two samples, got 1"):
        _ = one.spread


def test_the_values_of_an_energy() -> None:
    model = EnergyScore(Labelled())
    x, label = points(5), torch.tensor([0, 1, 1, 0, 1])
    got = model.values(x, 0.4, label=label)
    expected = (x - model.energy.means[label]).square().sum(1) / (0.3 + 0.4**2) / 2
    torch.testing.assert_close(got, expected)
    assert got.shape == (5,)
    alone = EnergyScore(lambda x: x.square().sum(1), conditioning="none")
    torch.testing.assert_close(alone.values(x), x.square().sum(1))
    with pytest.raises(ValueError, match="sigma must be given for an energy that takes one"):
        model.values(x)
