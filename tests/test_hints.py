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


# ---- what a network takes -----------------------------------------------------------------------


class Classes(nn.Module):
    """A network that wants to be told a class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return self.layer(x) + self.embed(label)


CALLS: dict[str, Callable[..., Any]] = {
    "annealed_langevin": lambda m, **k: fastscore.annealed_langevin(m, SIGMAS, shape=(6, 2), **k),
    "dsm_loss": lambda m, **k: fastscore.dsm_loss(m, randn(6, 2), SIGMAS, **k),
    "ssm_loss": lambda m, **k: fastscore.ssm_loss(m, randn(6, 2), sigmas=SIGMAS, **k),
}
each_call = pytest.mark.parametrize("fn", CALLS)


@each_call
def test_what_a_network_takes_besides_is_named(fn: str) -> None:
    with pytest.raises(TypeError, match=rf"^{fn}: the model takes .* model_kwargs={{'label': \.\."):
        CALLS[fn](Classes())
    for name in ("label", "labels", "y", "context"):
        if name == "labels" and fn != "annealed_langevin":
            continue
        with pytest.raises(TypeError, match=rf"^{fn}: there .*goes into model_kwargs={{'{name}': "):
            CALLS[fn](Classes(), **{name: torch.zeros(6, dtype=torch.int64)})


@each_call
@pytest.mark.parametrize(
    ("label", "error", "odd"),
    [
        (torch.zeros(4, dtype=torch.int64), RuntimeError, r"batch of 6: 'label' of shape \(4,\)"),
        (0, TypeError, "'label', which is no tensor but of int"),
        (numpy.zeros(6, dtype=int), TypeError, "'label', which is no tensor but of ndarray"),
        (torch.full((6,), 5), IndexError, "model_kwargs holds: 'label'"),
        (torch.zeros(6), RuntimeError, "'label' of torch.float32"),
    ],
)
def test_what_is_odd_among_its_arguments_is_named(
    fn: str, label: Any, error: Any, odd: str
) -> None:
    with pytest.raises(error, match=rf"^{fn}: the model failed \(.*\), maybe at what .*{odd}"):
        CALLS[fn](Classes(), model_kwargs={"label": label})


@each_call
def test_an_argument_forgotten_or_misspelt(fn: str) -> None:
    class Optional(Classes):
        def forward(self, x: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
            return super().forward(x, sigma, label)

    with pytest.raises(TypeError, match=rf"^{fn}: the model failed .*'label', which is not given"):
        CALLS[fn](Optional())
    with pytest.raises(TypeError, match=rf"^{fn}: the model takes label by name, got 'lable'"):
        CALLS[fn](Optional(), model_kwargs={"lable": torch.zeros(6, dtype=torch.int64)})


@each_call
def test_the_shape_of_the_noise_level_is_said(fn: str) -> None:
    for model in (lambda x, s: torch.cat([x, s], 1), lambda x, s: -x / s):
        with pytest.raises(
            RuntimeError, match=rf"^{fn}: the model failed .*sigma\[:, None\] is a "
        ):
            CALLS[fn](model)


@each_call
def test_a_network_of_x_alone_is_told_of_conditioning(fn: str) -> None:
    for model in (nn.Linear(2, 2), lambda x: -x):
        with pytest.raises(
            TypeError, match=rf'^{fn}: conditioning must be "none" for a model of x'
        ):
            CALLS[fn](model)


def test_an_error_within_the_network_is_left_alone() -> None:
    class Broken(nn.Module):
        def inner(self, x: Tensor, more: Tensor) -> Tensor:
            return x

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.inner(x)  # type: ignore[call-arg]

    for fn, call in CALLS.items():
        with pytest.raises(TypeError, match=r"inner\(\) missing 1 required") as caught:
            call(Broken())
        assert fn not in str(caught.value)


@each_call
def test_what_holds_a_network_is_named(fn: str) -> None:
    with pytest.raises(TypeError, match=rf"^{fn}: model must be .*, got EMA \(its .module is\)"):
        CALLS[fn](fastscore.nn.EMA(Classes()))
    with pytest.raises(TypeError, match=rf"^{fn}: model must .*, got Checkpoint \(its .model is\)"):
        CALLS[fn](fastscore.Checkpoint(Classes(), SIGMAS))


def test_data_of_another_dtype_are_told_how_to_become_the_networks() -> None:
    x = randn(6, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"of the model's dtype torch.float32 \(x.to\(torch"):
        fastscore.dsm_loss(fastscore.nn.ScoreMLP(2), x, SIGMAS)


def test_an_eps_network_without_a_prediction_is_warned_of() -> None:
    """At the default settings, where it goes to some 10^5 times the noise that it starts with."""
    mixture = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], 0.05)
    sigmas = fastscore.noise_scales(mixture.sample(500, seed=0))

    def eps(x: Tensor, sigma: Tensor) -> Tensor:
        return -sigma[:, None] * mixture(x, sigma)

    with pytest.warns(UserWarning, match='say prediction="eps" or "x0"'):
        fastscore.annealed_langevin(eps, sigmas, shape=(100, 2), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastscore.annealed_langevin(eps, sigmas, shape=(100, 2), seed=0, prediction="eps")
