"""Networks whose samples depend on one another, as modules and as functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_bytes, randn
from torch import Tensor, nn

from fastscore._support.known import known_of
from fastscore._support.reach import modules_of
from fastscore.derivatives import closed_form, divergence, traces
from fastscore.derivatives.call import Call
from fastscore.losses import SSMLoss, score_matching_loss, ssm_loss
from fastscore.scores import EnergyScore, EpsScore

F64 = torch.float64


def network(features: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(features, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, features)]
    return nn.Sequential(*layers).double()


class Holder:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def score(self, x: Tensor) -> Tensor:
        return self.net(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


def applied(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


NET = network()


def by_global(x: Tensor) -> Tensor:
    return NET(x)


REACHED: dict[str, Callable[[nn.Sequential], Any]] = {
    "module": lambda net: net,
    "function": lambda net: lambda x: net(x),
    "partial": lambda net: partial(applied, net),
    "method": lambda net: Holder(net).score,
    "object": Holder,
    "forward": lambda net: net.forward,
    "default": lambda net: lambda x, f=net: f(x),
    "list": lambda net: lambda x, fs=(net,): fs[0](x),
    "nested": lambda net: lambda x: (lambda y: net(y))(x),
    "functional": lambda net: (
        lambda x: net[3](torch.tanh(F.batch_norm(net[0](x), None, None, training=True)))
    ),
    "centred": lambda net: lambda x: net[3](torch.tanh(net[0](x - x.mean(0)))),
    "energy": lambda net: EnergyScore(lambda x: net(x).sum(1), conditioning="none"),
    "attention": lambda net: lambda x: torch.softmax(x @ x.mT, dim=1) @ x,
}
MESSAGE = "model must be one whose samples do not depend on one another"


@pytest.mark.parametrize("kind", REACHED)
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_an_exact_trace_is_refused(kind: str, chunk_size: int | None) -> None:
    net, x = network(), randn(8, 2, dtype=F64)
    model = REACHED[kind](net)
    before = copy.deepcopy(net.state_dict())
    for name, estimate in {
        "score_matching_loss": lambda: score_matching_loss(model, x, chunk_size=chunk_size),
        "ssm_loss": lambda: ssm_loss(model, x, method="exact", chunk_size=chunk_size),
        "divergence": lambda: divergence(model, x, method="exact", chunk_size=chunk_size),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: {MESSAGE}"):
            estimate()
    torch.testing.assert_close(net.state_dict(), before)


@pytest.mark.parametrize("kind", REACHED)
def test_auto_does_not_choose_exact(kind: str) -> None:
    net, x = network(), randn(8, 2, dtype=F64)
    model, loss_fn = REACHED[kind](net), SSMLoss(projections=2)
    for _ in range(2):
        loss = loss_fn(model, x, seed=0)
        assert loss_fn.chosen_method in ("forward", "reverse")
        reference = ssm_loss(model, x, projections=2, method="reverse", seed=0)
        torch.testing.assert_close(loss, reference)


@pytest.mark.parametrize("kind", REACHED)
def test_finite_differences_are_of_one_batch(kind: str) -> None:
    net, x = network(), randn(8, 2, dtype=F64)
    model = REACHED[kind](net)
    options: dict[str, Any] = {"projections": 3, "seed": 0}
    got = ssm_loss(model, x, method="finite_difference", **options)
    want = ssm_loss(model, x, method="reverse", **options)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["module", "function", "partial", "method", "object", "forward"])
@pytest.mark.parametrize("method", ["auto", "forward", "reverse", "finite_difference"])
def test_running_statistics_move_once(kind: str, method: str) -> None:
    net, x = network(), randn(8, 2, dtype=F64)
    model = REACHED[kind](net)
    for calls in (1, 2, 3):
        ssm_loss(model, x, method=method, projections=2, seed=0)
        assert int(net[1].num_batches_tracked) == calls
    moved, expected = net[1].running_mean, network()
    for _ in range(3):
        expected(x)
    torch.testing.assert_close(moved, expected[1].running_mean, rtol=1e-4, atol=1e-4)


class Twice(torch.autograd.Function):
    """Through which tangents can't be carried: the model runs another way, after it has begun."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.filterwarnings("ignore:fastscore.jvp")
def test_running_statistics_move_once_where_another_way_is_taken() -> None:
    net, x = network(), randn(8, 2, dtype=F64)
    for calls in (1, 2, 3):
        ssm_loss(lambda x: Twice.apply(net(x)), x, method="forward", seed=0)
        assert int(net[1].num_batches_tracked) == calls


@pytest.mark.parametrize("kind", ["module", "function", "method", "object"])
def test_what_is_remembered_follows_the_mode(kind: str) -> None:
    net, x = network(), randn(8, 2, dtype=F64)
    model, loss_fn = REACHED[kind](net), SSMLoss(projections=2)
    for training in (False, True, False, True):
        net.train(training)
        loss = loss_fn(model, x, seed=0)
        assert (loss_fn.chosen_method == "exact") != training
        if not training:
            torch.testing.assert_close(loss, score_matching_loss(model, x))


def test_a_model_that_begins_to_mix() -> None:
    mixing = False

    def model(x: Tensor) -> Tensor:
        return x.cumsum(1).sin() - (x.mean(0) if mixing else 0)

    known_of(model).clear()  # of the same code in another run of this test
    x, loss_fn = randn(8, 2, dtype=F64), SSMLoss(projections=2)
    loss_fn(model, x, seed=0)
    assert loss_fn.chosen_method == "exact"
    mixing = True
    for _ in range(2):
        loss = loss_fn(model, x, seed=0)
        torch.testing.assert_close(
            loss, ssm_loss(model, x, projections=2, method="reverse", seed=0)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_independent_samples_are_not_taken_for_mixed(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(
        *(layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.LayerNorm(32), nn.SiLU()))
    ).to(dtype)
    images = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1)
    ).to(dtype)
    for model, shape in ((deep, (32,)), (images, (2, 4, 4))):
        for batch in (1, 2, 33):
            divergence(model, randn(batch, *shape).to(dtype), method="exact")
            divergence(model, randn(batch, *shape).to(dtype), method="exact", chunk_size=7)


def test_signs_change_no_bit() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)]
    model, x = nn.Sequential(*layers), randn(16, 3)
    _, signed = traces.trace_by_unit_vectors(Call("fn", model), x)
    vs = traces.unit_vectors(x, torch.arange(3))
    _, products = traces.output_and_products(Call("fn", model), x, vs)
    diagonal = torch.stack([products[i, :, i] for i in range(3)])
    assert_same_bytes(signed, diagonal.double().sum(0).float())


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x - x.mean(0),
        lambda x: x @ x.mT @ x,
        lambda x: torch.cat([x, x]).reshape(2, len(x), -1).sum(0).flip(0),
        lambda x: x.sum() * x,
        lambda x: x.mT.reshape(x.shape),
        lambda x: x.view(-1, 4).view(-1, 2) * 2 + x.roll(1, 0),
    ],
)
def test_the_closed_form_has_per_sample_functions_alone(model: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(closed_form.NoClosedForm):
        closed_form.jacobian(model, randn(8, 2))


@pytest.mark.parametrize("kind", ["function", "partial", "method", "object", "default", "list"])
def test_modules_that_a_function_reaches(kind: str) -> None:
    net = network()
    assert {id(m) for m in modules_of(REACHED[kind](net))} == {id(m) for m in net.modules()}


def test_modules_beside_others() -> None:
    net = network()
    assert NET[1] in modules_of(by_global)
    assert net[1] in modules_of(EpsScore(lambda x, sigma: net(x)))
    assert modules_of(torch.tanh) == []
    assert modules_of(F.silu) == []
