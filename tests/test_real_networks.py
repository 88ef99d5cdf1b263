"""Networks and arguments from real life: right where it can be told what is meant, else refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from helpers import assert_same_bytes, randn
from samplers import SIGMAS, Sampler, every_sampler, gaussian_score, run_annealed
from torch import Tensor, nn

import fastscore
from fastscore import annealed_langevin, langevin
from fastscore.scores import EpsScore

# ---- options ------------------------------------------------------------------------------------


def test_an_unknown_option_is_named() -> None:
    x = randn(4, 2)
    for fn, call in {
        "annealed_langevin": lambda: annealed_langevin(
            gaussian_score, SIGMAS, x, steps_per_simga=3
        ),
        "dsm_loss": lambda: fastscore.dsm_loss(gaussian_score, x, SIGMAS, reductoin="sum"),
        "SSMLoss": lambda: fastscore.SSMLoss(SIGMAS, reductoin="sum"),
        "DSMLoss": lambda: fastscore.DSMLoss(SIGMAS)(gaussian_score, x, sead=3),
        "divergence": lambda: fastscore.divergence(lambda x: -x, x, prob=3),
    }.items():
        with pytest.raises(
            TypeError, match=rf"^{fn}: there is no option '\w+' \(did you mean '\w+"
        ):
            call()


def test_a_network_of_labels_is_told_from_one_of_sigma() -> None:
    class Ncsn(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind
            self.register_buffer("sigmas", SIGMAS.float())
            self.table = nn.Embedding(4, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            if self.kind == "buffer":  # NCSNv2
                return -x / self.sigmas[y][:, None]
            if self.kind == "gather":
                return -x / self.sigmas.index_select(0, y)[:, None]
            return -x * self.table(y)

    x = randn(4, 2)
    for kind in ("buffer", "gather", "embedding"):
        net = Ncsn(kind)
        for how in ("sigma", "log_sigma"):
            calls: list[Callable[[Any, str], Any]] = [
                lambda net, how: run_annealed(x, net, conditioning=how),
                lambda net, how: fastscore.dsm_loss(net, x, SIGMAS, conditioning=how),
                lambda net, how: fastscore.ssm_loss(
                    net, x, sigmas=SIGMAS, conditioning=how, method="reverse"
                ),
                lambda net, how: EpsScore(net, conditioning=how)(x, 1.0),
            ]
            for call in calls:
                with pytest.raises(ValueError, match=r'conditioning must be "index" for a model'):
                    call(net, how)
        assert run_annealed(x, net, conditioning="index", seed=0).shape == (4, 2)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_networks_are_sampled(half: torch.dtype) -> None:
    net = fastscore.nn.ScoreMLP(2, hidden=(16,))
    x0 = randn(64, 2)
    want = run_annealed(x0, net, seed=0)
    net.to(half)
    seen = set()
    net.register_forward_pre_hook(lambda _, args: seen.add((args[0].dtype, args[1].dtype)))
    got = run_annealed(x0, net, seed=0)
    assert seen == {(half, torch.float32)}
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    run_annealed(shape=(3, 2), model=net)
    mixed = fastscore.nn.ScoreMLP(2, hidden=(16,))
    mixed.layers[0].to(half)
    with pytest.raises(ValueError, match=rf"samplers: autocast={half}"):
        run_annealed(x0, mixed)
    run_annealed(x0, mixed, autocast=half)


class Embedding(nn.Module):
    """A half-precision network that does not convert the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.level, self.layer = nn.Linear(1, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.layer(x) + self.level(sigma[:, None])


def test_dtypes_that_do_not_meet_are_explained_everywhere() -> None:
    net, x = Embedding().bfloat16(), randn(4, 2)
    for fn, call in {
        "annealed_langevin": lambda: annealed_langevin(net, SIGMAS, x),
        "langevin": lambda: langevin(lambda x: net.layer(x), x, steps=2, step_size=0.1),
        "divergence": lambda: fastscore.divergence(net, x, 1.0),
        "jvp": lambda: fastscore.jvp(net.layer, x, x),
        "dsm_loss": lambda: fastscore.dsm_loss(net, x, SIGMAS),
        "ssm_loss": lambda: fastscore.ssm_loss(net.layer, x, method="reverse"),
    }.items():
        with pytest.raises(ValueError, match=rf"^{fn}: x must be .* autocast=torch.bfloat16"):
            call()
    assert annealed_langevin(net, SIGMAS, x, autocast=torch.bfloat16).shape == x.shape


def test_labels_are_not_suggested_where_they_can_not_be_given() -> None:
    x = randn(4, 2)
    with pytest.raises(ValueError, match=r"^langevin: model must be .* gives no indices"):
        langevin(lambda x, y: -x / SIGMAS[y][:, None], x, steps=2, step_size=0.1, sigma=0.5)
    table = nn.Embedding(3, 2)
    with pytest.raises(RuntimeError, match="scalar types: Long"):  # of what is given by name
        run_annealed(x, lambda x, s, y: table(y) - x, model_kwargs={"y": torch.ones(4)})


# ---- chains that diverge ------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [3.0, 100.0])
def test_divergence_is_said(step_size: float) -> None:
    with pytest.warns(UserWarning, match=rf"^langevin: .*step_size={step_size:.4g} \(conv") as said:
        langevin(lambda x: -3 * x, shape=(4, 2), steps=300, step_size=step_size, seed=0)
    assert [w.filename for w in said] == [__file__]


def test_nan_is_said() -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, -x)

    with pytest.warns(UserWarning, match="NaN or infinity in 1 of 4 samples after 17 steps"):
        run_annealed(randn(4, 2), model)


@every_sampler
def test_a_forgotten_adapter_is_said_and_right_chains_say_nothing(
    sampler: Sampler, steps: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(randn(4, 2), seed=0)
        sampler(shape=(0, 2))
    with pytest.warns(UserWarning, match="EpsScore"):
        sampler(randn(4, 2), lambda x, sigma: 1e3 * x)


def test_chains_far_from_0_by_right_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.full((3, 2), 1e8)
        langevin(lambda x: 1e8 - x, x, steps=3, step_size=0.1)
        run_annealed(1e7 * x, start_step=17, seed=0)


# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        numpy.float64(0.1),
        numpy.float32(0.1),
        numpy.array(0.1),
        numpy.array([0.1]),
        torch.tensor(0.1),
        torch.tensor([0.1]),
    ],
)
def test_step_sizes_of_any_kind_of_number(number: Any) -> None:
    for run in (
        lambda size: langevin(lambda x: -x, randn(4, 2), steps=5, step_size=size, seed=0),
        lambda size: annealed_langevin(gaussian_score, SIGMAS, randn(4, 2), step_size=size, seed=0),
    ):
        torch.testing.assert_close(run(number), run(0.1))


def test_seeds_of_any_kind_of_integers() -> None:
    want = run_annealed(randn(2, 3), seed=[3, 4])
    for seeds in (numpy.array([3, 4]), (3, 4), range(3, 5), [torch.tensor(3), numpy.int64(4)]):
        assert_same_bytes(run_annealed(randn(2, 3), seed=seeds), want)
    with pytest.raises(TypeError, match="seed must be an integer, a sequence of them"):
        run_annealed(randn(2, 3), seed=[3, None])


def test_step_sizes_for_each_step_from_numpy() -> None:
    def run(sizes: Any) -> Tensor:
        return langevin(lambda x: -x, randn(4, 2), steps=5, step_size=sizes, seed=0)

    sizes = [0.1, 0.2, 0.1, 0.3, 0.1]
    assert_same_bytes(run(numpy.array(sizes)), run(sizes))
    with pytest.raises(ValueError, match="step_size"):
        run(numpy.array([[0.1]] * 5))


def test_what_would_get_no_gradient_is_refused() -> None:
    x, sigmas = randn(4, 2), SIGMAS.clone().requires_grad_()
    for call in (
        lambda: fastscore.dsm_loss(gaussian_score, x, sigmas),
        lambda: fastscore.DSMLoss(sigmas),
        lambda: fastscore.ssm_loss(gaussian_score, x, sigmas=sigmas),
        lambda: annealed_langevin(gaussian_score, sigmas, x),
    ):
        with pytest.raises(ValueError, match="sigmas must be a tensor that needs no gradient"):
            call()
    with torch.no_grad():
        fastscore.dsm_loss(gaussian_score, x, sigmas)
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="weighting must be a function whose weights need no"):
        fastscore.dsm_loss(gaussian_score, x, SIGMAS, weighting=lambda sigmas: weight * sigmas)


def test_numbers_of_more_than_64_bits() -> None:
    x = randn(4, 2)
    for call in (
        lambda: run_annealed(x, sample_offset=2**63),
        lambda: fastscore.dsm_loss(gaussian_score, x, SIGMAS, sample_offset=2**63),
        lambda: fastscore.ssm_loss(lambda x: -x, x, sample_offset=2**63, method="forward"),
        lambda: fastscore.divergence(lambda x: -x, x, sample_offset=2**63),
        lambda: fastscore.random.normal(fastscore.random.key(0), (2,), sample_offset=2**63),
    ):
        with pytest.raises(ValueError, match=r"sample_offset must be .*2\^63"):
            call()
