"""Messages and warnings that say the way out at the place where it helps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from helpers import assert_same_bytes, randn
from torch import Tensor, nn

import fastscore
from fastscore import random
from fastscore.scores import EnergyScore, GaussianMixture, Parzen

SIGMAS = fastscore.geometric_sigmas(2.0, 0.1, 4)
ARRAY: Any = numpy.zeros((6, 2))
MASK = torch.tensor([True, False])


def score(x: Tensor, sigma: Tensor | None = None) -> Tensor:
    return -x


# ---- an energy where a score is expected --------------------------------------------------------


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda model: fastscore.ssm_loss(model, randn(4, 3)),
        lambda model: fastscore.score_matching_loss(model, randn(4, 3)),
        lambda model: fastscore.langevin(model, steps=2, step_size=0.1, shape=(4, 3)),
        lambda model: fastscore.annealed_langevin(model, SIGMAS, shape=(4, 3)),
        lambda model: fastscore.dsm_loss(model, randn(4, 3), SIGMAS),
        lambda model: fastscore.fisher_divergence(model, lambda x: x, randn(4, 3)),
    ],
)
def test_an_energy_is_told_of_its_adapter(call: Callable[[Any], Any], column: bool) -> None:
    def energy(x: Tensor, *sigma: Tensor) -> Tensor:
        return x.square().sum(1, keepdim=column)

    with pytest.raises(ValueError, match=r"model must be .*\(4, 3\), got .*EnergyScore makes a"):
        call(energy)


def test_so_is_one_number_for_the_whole_batch() -> None:
    with pytest.raises(
        ValueError, match=r"of shape \(\) on cpu \(fastscore.scores.EnergyScore makes"
    ):
        fastscore.ssm_loss(lambda x: x.square().sum(), randn(4, 3))


def energy_of(activation: nn.Module) -> EnergyScore:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), activation, nn.Linear(16, 1))
    return EnergyScore(net, conditioning="none")


FLAT = "the energy's second derivatives are 0 at all samples"
LOSSES: list[Callable[..., Tensor]] = [
    lambda model: fastscore.ssm_loss(model, randn(9, 3)),
    lambda model: fastscore.ssm_loss(model, randn(9, 3), method="reverse"),
    lambda model: fastscore.score_matching_loss(model, randn(9, 3)),
    lambda model: fastscore.ssm_loss(model, randn(9, 3), sigmas=SIGMAS, conditioning="none"),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU()])
def test_an_energy_of_relus_is_warned_of_once(
    loss: Callable[..., Tensor], activation: nn.Module
) -> None:
    model = energy_of(activation)
    with pytest.warns(UserWarning, match=FLAT) as caught:
        loss(model)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(model)


@pytest.mark.parametrize("loss", LOSSES)
def test_other_energies_are_not(loss: Callable[..., Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(energy_of(nn.SiLU()))
        start = energy_of(nn.Tanh())  # its last layer at 0, as many begin: all is 0, the score too
        for parameter in start.energy[-1].parameters():
            nn.init.zeros_(parameter)
        loss(start)


def test_nor_where_nothing_is_trained_or_little_is_seen() -> None:
    straight = EnergyScore(lambda x: (x[:, 0] - x[:, 1]).square(), conditioning="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relu = energy_of(nn.ReLU())
        for method in ("hutchinson", "exact"):
            assert not fastscore.divergence(relu, randn(9, 3), method=method).any()
        for seed in range(8):  # for half of them both elements of v are of one sign
            fastscore.ssm_loss(straight, randn(1, 2), seed=seed, method="reverse")
    with pytest.warns(UserWarning, match=FLAT):
        fastscore.ssm_loss(relu, randn(9, 3))


# ---- devices ------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "call",
    [
        lambda: fastscore.langevin(score, steps=1, step_size=0.1, shape=(2, 2), device="cuda"),
        lambda: fastscore.annealed_langevin(score, SIGMAS, shape=(2, 2), device="cuda"),
        lambda: random.key(0, device="cuda"),
        lambda: random.key(device="cuda"),
        lambda: random.normal((2, 2), seed=0, device="cuda"),
        lambda: fastscore.geometric_sigmas(2.0, 1.0, 3, device="cuda"),
        lambda: fastscore.noise_scales(randn(9, 8), sigma_min=0.1, device="cuda"),
    ],
)
def test_a_device_that_is_not_there(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"^\w+: device must be a device that is there, got cuda"):
        call()


# ---- NumPy arrays -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastscore.dsm_loss(score, ARRAY, SIGMAS),
        lambda: fastscore.DSMLoss(SIGMAS)(score, ARRAY),
        lambda: fastscore.ssm_loss(score, ARRAY),
        lambda: fastscore.score_matching_loss(score, ARRAY),
        lambda: fastscore.langevin(score, ARRAY, steps=1, step_size=0.1),
        lambda: fastscore.annealed_langevin(score, SIGMAS, shape=(6, 2), known=ARRAY, mask=MASK),
        lambda: fastscore.annealed_langevin(score, SIGMAS, shape=(6, 2), known=0.5, mask=ARRAY > 0),
        lambda: fastscore.noise_scales(ARRAY, sigma_min=0.1),
        lambda: fastscore.sigma_max_from_data(ARRAY),
        lambda: fastscore.divergence(score, ARRAY),
        lambda: fastscore.jvp(score, ARRAY, ARRAY),
        lambda: fastscore.fisher_divergence(score, score, ARRAY),
        lambda: fastscore.evaluation.frechet_distance(ARRAY, ARRAY),
        lambda: fastscore.evaluation.nearest_distance(ARRAY, ARRAY),
        lambda: Parzen(ARRAY, 0.1),
        lambda: Parzen(torch.zeros(3, 2), 0.1)(ARRAY),
        lambda: GaussianMixture([1.0], ARRAY[:1], 1.0),
        lambda: fastscore.nn.ScoreMLP(2)(ARRAY, 1.0),
    ],
)
def test_numpy_arrays_as_data_are_refused_with_the_way_to_make_them_tensors(
    call: Callable[[], Any],
) -> None:
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, got a NumPy array \(torch.as_t"):
        call()


def test_arrays_of_whole_numbers_are_not_to_be_made_floats() -> None:
    whole = numpy.zeros(6, dtype=numpy.int64)
    for call in (
        lambda: fastscore.dsm_loss(score, randn(6, 2), SIGMAS, levels=whole),
        lambda: random.normal((6, 2), seed=0, samples=whole),
    ):
        with pytest.raises(TypeError, match=r"got a NumPy array \(torch.as_tensor\(array\) makes"):
            call()


# ---- known values -------------------------------------------------------------------------------


def test_known_may_be_a_number() -> None:
    how: dict[str, Any] = {"mask": MASK, "seed": 0, "shape": (6, 2)}
    x = fastscore.annealed_langevin(score, SIGMAS, known=0.5, **how)
    full = fastscore.annealed_langevin(score, SIGMAS, known=torch.full((6, 2), 0.5), **how)
    assert_same_bytes(x, full)
    zero = fastscore.annealed_langevin(score, SIGMAS, known=torch.tensor(1.0), **how)
    assert bool((zero[:, 0] == 1).all())
    with pytest.raises(ValueError, match="known must be finite wherever mask is True"):
        fastscore.annealed_langevin(score, SIGMAS, known=float("nan"), **how)
