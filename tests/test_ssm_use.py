"""Sliced score matching in use: noise, the module, the choice of a method, training, bad input."""

from __future__ import annotations

import copy
import doctest
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import (
    F64,
    Conditioned,
    SumOfOutputs,
    assert_same_training,
    convnet,
    energy_of,
    mlp,
)
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor, nn

import fastscore
from fastscore.evaluation.fisher import fisher_divergence
from fastscore.losses import SSMLoss, ssm, ssm_loss
from fastscore.scores import EnergyScore, GaussianMixture

SIGMAS = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
METHODS = ("forward", "reverse", "finite_difference", "exact", "auto")
SLICED = ("forward", "reverse", "finite_difference")

Loss = Callable[..., Tensor]


def by_function(model: Any, x: Tensor, **options: Any) -> Tensor:
    return ssm_loss(model, x, **options)


def by_module(model: Any, x: Tensor, **options: Any) -> Tensor:
    call = ("levels", "seed", "generator", "key", "sample_offset")
    ours = {name: options.pop(name) for name in call if name in options}
    return SSMLoss(**options)(model, x, **ours)


both = pytest.mark.parametrize("loss", [by_function, by_module])


# ---- noise, reductions, the module --------------------------------------------------------------


@both
@pytest.mark.parametrize("method", SLICED)
def test_seeds(loss: Loss, method: str) -> None:
    model, x = mlp(hidden=(5, 5, 5)), randn(7, 4, dtype=F64)

    def value(**options: Any) -> Tensor:
        return loss(model, x, method=method, **options)

    assert not torch.equal(value(seed=1), value(seed=2))
    torch.manual_seed(3)
    a, b = value(), value()
    assert not torch.equal(a, b)
    torch.manual_seed(3)
    assert_same_bytes(value(), a)
    generator = torch.Generator().manual_seed(3)
    c = value(generator=generator)
    assert_same_bytes(value(generator=generator.manual_seed(3)), c)
    key = make_key(1, 4)
    assert not torch.equal(value(key=key), value(seed=1))
    assert_same_bytes(value(key=make_key(1)), value(seed=1))
    assert key.tolist() == [1, 4]


@both
@pytest.mark.parametrize("method", METHODS)
def test_shards_meet_the_noise_of_the_whole(loss: Loss, method: str) -> None:
    model, x = Conditioned(convnet()), randn(6, 2, 3, 3, dtype=F64)
    options: dict[str, Any] = {"sigmas": SIGMAS, "method": method, "reduction": "none", "seed": 1}
    whole = loss(model, x, projections=2, **options)
    for cut in (1, 4):
        parts = [
            loss(model, x[:cut], projections=2, **options),
            loss(model, x[cut:], projections=2, sample_offset=cut, **options),
        ]
        torch.testing.assert_close(torch.cat(parts), whole)


@both
@pytest.mark.parametrize("method", METHODS)
def test_reductions(loss: Loss, method: str) -> None:
    model, x = mlp(), randn(7, 4, dtype=F64)
    each = loss(model, x, method=method, seed=0, reduction="none")
    assert each.shape == (7,)
    for reduction, want in (("sum", each.sum()), ("mean", each.mean())):
        got = loss(model, x, method=method, seed=0, reduction=reduction)
        torch.testing.assert_close(got, want)
    assert loss(model, x[:0], method=method, reduction="none").shape == (0,)


def test_the_module_and_the_function_agree_to_the_last_bit() -> None:
    model, x = Conditioned(mlp()), randn(7, 4, dtype=F64)
    options: list[dict[str, Any]] = [
        {"method": method, "projections": 2, "variance_reduced": False} for method in METHODS
    ]
    options += [{"weighting": "likelihood"}, {"reduction": "none"}, {"distribution": "sphere"}]
    for chosen in options:
        a = by_function(model, x, sigmas=SIGMAS, seed=4, **chosen)
        assert_same_bytes(by_module(model, x, sigmas=SIGMAS, seed=4, **chosen), a)


def test_the_module() -> None:
    loss_fn = SSMLoss(SIGMAS / 3, weighting="likelihood", projections=3, method="forward")
    levels = [buffer.clone() for buffer in loss_fn.buffers()]
    assert len(levels) == 3
    for changed in (loss_fn.half(), loss_fn.float(), loss_fn.to("cpu", torch.float16)):
        for buffer, exact in zip(changed.buffers(), levels, strict=True):
            assert_same_bytes(buffer, exact)
    assert loss_fn.state_dict() == {}
    model, x = Conditioned(mlp()), randn(5, 4, dtype=F64)
    assert_same_bytes(copy.deepcopy(loss_fn)(model, x, seed=0), loss_fn(model, x, seed=0))
    assert "projections=3" in repr(loss_fn)
    assert "levels=3, weighting='likelihood'" in repr(loss_fn)
    assert loss_fn.to("meta").sigmas.is_meta
    assert list(SSMLoss().buffers()) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(method: str, mode: Any) -> None:
    cases = [(mlp(), (4,)), (convnet(), (2, 3, 3)), (energy_of(mlp(out=1)), (4,))]
    for model, shape in cases:
        x = randn(3, *shape, dtype=F64)
        want = ssm_loss(model, x, method=method, seed=0)
        with mode():
            got = ssm_loss(model, x, method=method, seed=0)
        assert not got.requires_grad
        torch.testing.assert_close(got, want.detach())


@both
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_tensors_are_left_alone(loss: Loss, method: str) -> None:
    for model, shape in ((mlp(), (4,)), (energy_of(convnet()), (2, 3, 3))):
        x = randn(5, *shape, dtype=F64)
        before = x.clone()
        loss(model, x, method=method, seed=0).backward()
        assert not x.requires_grad
        assert x.grad is None
        assert_same_bytes(x, before)


# ---- the choice --------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """With a backward of its own, through which tangents can't be carried."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


class CubeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(hidden=(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(self.net(x))


def choice(model: Any, x: Tensor, **options: Any) -> str | None:
    loss_fn = SSMLoss(**options)
    loss_fn(model, x, seed=0)
    return loss_fn.chosen_method


def test_the_choice() -> None:
    x = randn(64, 16, dtype=F64)
    assert choice(mlp(16, (32,)), x) == "exact"
    assert choice(mlp(16, (32, 32)), x) == "exact"
    # The product of the first and last weight costs more than one projection of few samples.
    assert choice(mlp(16, (512, 512)), x[:4]) == "forward"
    assert choice(mlp(16, (32, 32, 32)), x) == "forward"
    assert choice(mlp(16, (32, 32, 32)), x, projections=16) == "exact"
    assert choice(convnet(), randn(2, 2, 4, 4, dtype=F64)) == "forward"
    assert choice(energy_of(mlp(16, out=1)), x) == "reverse"
    assert choice(nn.Sequential(energy_of(mlp(16, out=1))), x) == "reverse"
    energy = energy_of(mlp(16, out=1))
    assert choice(lambda x: energy(x), x) == "reverse"  # and no warning
    assert choice(CubeNet(), x[:, :4]) == "reverse"  # and no warning
    assert choice(mlp(16, (32, 32)), x, method="forward") == "forward"
    assert choice(Conditioned(mlp(16, (32, 32))), x, sigmas=SIGMAS) == "exact"


def test_batches_of_any_size_are_estimated_alike() -> None:
    net, x = mlp(64, (64, 64)), randn(64, 64, dtype=F64)
    loss_fn = SSMLoss(reduction="none")
    whole = loss_fn(net, x, seed=0)
    assert choice(mlp(64, (64, 64)), x[:8]) == "forward"  # where the shard comes first
    parts = [loss_fn(net, x[i : i + 8], seed=0, sample_offset=i) for i in range(0, 64, 8)]
    assert loss_fn.chosen_method == "exact"
    torch.testing.assert_close(torch.cat(parts), whole)


def test_projections_that_were_asked_for_are_made() -> None:
    net, x = mlp(16, (32, 32)), randn(64, 16, dtype=F64)
    for options in ({}, {"distribution": "gaussian", "projections": 32}):
        assert choice(net, x, variance_reduced=False, **options) == "forward"
    one, other = (ssm_loss(net, x, variance_reduced=False, seed=seed) for seed in (0, 1))
    assert one != other


def test_the_choice_follows_the_model() -> None:
    """Never to unit vectors, which a network of many dimensions could not pay for."""
    x = randn(256, 64)
    hidden = [nn.Linear(64, 32), nn.SiLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.SiLU()]
    model = nn.Sequential(*hidden, nn.Linear(32, 64))
    assert choice(model.eval(), x) == "exact"
    assert choice(model.train(), x) == "forward"
    assert choice(model.eval(), x) == "exact"

    shallow, deep = mlp(64, (32,)), mlp(64, (32, 32, 32))

    def wrapped(net: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: net(x)

    class Holder:
        def __init__(self, net: nn.Module) -> None:
            self.net = net

        def score(self, x: Tensor) -> Tensor:
            return self.net(x)

    for made in (wrapped, lambda net: Holder(net).score):
        assert choice(made(shallow), x.double()) == "exact"
        assert choice(made(deep), x.double()) == "forward"  # the same code, another network


def test_under_function_transforms() -> None:
    net, x = mlp(), randn(5, 4, dtype=F64)
    params = dict(net.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return ssm_loss(lambda x: torch.func.functional_call(net, params, (x,)), x, seed=0)

    got = torch.func.grad(loss)(params, x)
    want = torch.autograd.grad(ssm_loss(net, x, seed=0), tuple(params.values()))
    torch.testing.assert_close(tuple(got.values()), want)


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    net = mlp(16, (32, 32))
    with caplog.at_level(logging.DEBUG, logger="fastscore"):
        for _ in range(3):
            ssm_loss(lambda x: net(x), randn(64, 16, dtype=F64))
    (record,) = caplog.records
    assert record.getMessage().startswith('ssm_loss: method "auto" is "exact" here: closed-form')


def test_the_choice_leaves_no_trace() -> None:
    """Neither in the running statistics of the model nor in the random numbers it draws."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))
    x = randn(16, 8)
    results = []
    for method in ("auto", "forward"):
        copied = copy.deepcopy(model)
        torch.manual_seed(1)
        results.append((ssm_loss(copied, x, method=method, seed=0), copied.state_dict()))
    torch.testing.assert_close(results[0], results[1])
    assert not torch.equal(results[0][1]["1.running_mean"], model[1].running_mean)


@pytest.mark.skipif(
    torch.__version__.startswith("2.10."),
    reason="behind a break in the graph torch.compile of PyTorch 2.10 mixes up variables",
)
def test_compiled_models_and_steps() -> None:
    for model, x in ((mlp(), randn(5, 4, dtype=F64)), (convnet(), randn(2, 2, 3, 3, dtype=F64))):
        for method in ("forward", "reverse", "auto"):
            want = ssm_loss(model, x, method=method, seed=0, reduction="none")
            compiled = torch.compile(model, backend="aot_eager")
            got = ssm_loss(compiled, x, method=method, seed=0, reduction="none")
            assert_same_training(got, want, model)
            torch._dynamo.reset()

    model, x, key = mlp(), randn(5, 4, dtype=F64), make_key(0)

    def step(x: Tensor, key: Tensor, method: str) -> Tensor:
        return ssm_loss(model, x, key=key, method=method, reduction="none")

    for method in METHODS:
        whole = method == "finite_difference"
        compiled_step = torch.compile(step, backend="aot_eager", fullgraph=whole)
        got, want = compiled_step(x, key, method), step(x, key, method)
        assert_same_training(got, want, model)
        torch._dynamo.reset()


# ---- training ----------------------------------------------------------------------------------


MIXTURE = GaussianMixture([0.4, 0.6], [[1.5, 0.0], [-1.5, 0.5]], 0.5)


def train(model: nn.Module, loss_fn: SSMLoss, x: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(0)
    for step in range(steps):
        optimizer.zero_grad()
        batch = x[torch.randint(len(x), (512,))]
        loss_fn(model, batch, seed=step).backward()
        optimizer.step()
        schedule.step()


def initial_and_final(model: nn.Module, loss_fn: SSMLoss, steps: int = 250) -> tuple[float, float]:
    x, held_out = MIXTURE.sample(20_000, seed=0), MIXTURE.sample(5_000, seed=1)
    before = float(fisher_divergence(model, MIXTURE, held_out))
    train(model, loss_fn, x, steps)
    return before, float(fisher_divergence(model, MIXTURE, held_out))


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("method", ["forward", "reverse", "finite_difference", "exact"])
def test_training_finds_the_score(method: str, reduced: bool) -> None:
    model = mlp(2, (64, 64)).float()
    before, after = initial_and_final(model, SSMLoss(method=method, variance_reduced=reduced))
    assert before > 1.5
    assert after < 0.03


@pytest.mark.parametrize("method", ["reverse", "finite_difference"])
def test_training_an_energy_finds_the_score(method: str) -> None:
    net = mlp(2, (64, 64), out=1).float()
    before, after = initial_and_final(
        EnergyScore(SumOfOutputs(net), conditioning="none"), SSMLoss(method=method)
    )
    assert before > 0.05
    assert after < 0.05


def test_training_over_noise_levels_finds_the_scores() -> None:
    torch.manual_seed(0)
    model = fastscore.nn.ScoreMLP(2, (64, 64), data_std=1.5)
    sigmas = fastscore.geometric_sigmas(2.0, 0.3, 6)
    train(model, SSMLoss(sigmas), MIXTURE.sample(20_000, seed=0), 300)
    for sigma in (2.0, 0.3):
        held_out = MIXTURE.sample(5_000, sigma=sigma, seed=1)
        assert fisher_divergence(model, MIXTURE, held_out, sigma) * sigma**2 < 0.05


# ---- bad input ---------------------------------------------------------------------------------


def never(*_: Tensor) -> Tensor:
    raise AssertionError("the model was called before the arguments were checked")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor"),
    ({"x": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "x must be a floating-point"),
    ({"x": torch.tensor(1.0)}, ValueError, "x must be a tensor with at least 1 dim"),
    ({"x": torch.tensor([[1.0], [math.nan]])}, ValueError, "x must be finite everywhere"),
    ({"projections": 0}, ValueError, "projections must be at least 1, got 0"),
    ({"projections": 1.5}, TypeError, "projections must be an integer"),
    ({"distribution": "normal"}, ValueError, "distribution must be one of 'rademacher'"),
    ({"method": "backward"}, ValueError, "method must be one of 'auto', 'forward', 'reverse'"),
    ({"method": None}, TypeError, "method must be one of"),
    ({"variance_reduced": 1}, TypeError, "variance_reduced must be True or False"),
    ({"epsilon": 0.0}, ValueError, "epsilon must be positive"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
    ({"weighting": "sigma"}, ValueError, "weighting must be one of 'sigma2'"),
    ({"weighting": 2}, TypeError, "weighting must be one of"),
    ({"weighting": "sigma", "sigmas": [1.0]}, ValueError, "weighting must be one of 'sigma2'"),
    ({"sigmas": [0.5, 1.0]}, ValueError, "sigmas must be strictly decreasing"),
    ({"sigmas": 1.0}, TypeError, "sigmas must be a torch.Tensor"),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
    ({"conditioning": "time", "sigmas": [1.0]}, ValueError, "conditioning must be one of"),
    ({"conditioning": "sigma"}, ValueError, "conditioning must be 'none' without sigmas"),
    ({"levels": torch.tensor([0, 0])}, ValueError, "levels must be None without sigmas"),
    (
        {"levels": torch.tensor([0, 4]), "sigmas": [1.0]},
        ValueError,
        r"levels must be in \[0, 1\), got .* 0 to 4",
    ),
    ({"sample_offset": -1}, ValueError, "sample_offset must be at least 0"),
    ({"key": 3}, TypeError, "key must be a torch.Tensor"),
    ({"key": torch.zeros(2)}, ValueError, "key must be an int64 tensor"),
    ({"key": make_key(1), "seed": 1}, ValueError, "seed must be None when key is given"),
    ({"model": None}, TypeError, "model must be callable"),
    (
        {"x": torch.zeros(2, 3).half(), "method": "finite_difference"},
        ValueError,
        r"x must be of float32 or float64 .*\(the difference of two half-precision scores is lost",
    ),
]


@both
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(
    loss: Loss, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"model": never, "x": torch.zeros(2, 3), **arguments}
    name = {by_function: "ssm_loss", by_module: "SSMLoss"}[loss]
    with pytest.raises(error, match=f"^{name}: {message}"):
        loss(**arguments)


@both
@pytest.mark.parametrize("method", METHODS)
def test_bad_models(loss: Loss, method: str) -> None:
    x = torch.zeros(2, 3)
    for model in (lambda x: x[:, :2], nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())):
        with pytest.raises(ValueError, match=r": model must be a model whose output .* \(2, 3\)"):
            loss(model, x, method=method)
    with pytest.raises(TypeError, match=r"(ssm_loss|SSMLoss): model must be a .* got NoneType"):
        loss(lambda x: None, x, method=method)
    pair = EnergyScore(nn.Linear(3, 2), conditioning="none")
    with pytest.raises(ValueError, match=r"EnergyScore: energy must be .* one number per sample"):
        loss(pair, x, method=method)


def test_finite_differences_refuse_a_model_in_half_precision() -> None:
    model = mlp().float()
    with pytest.raises(ValueError, match=r"^ssm_loss: model must be a model that returns float32"):
        ssm_loss(lambda x: model(x).bfloat16(), randn(5, 4), method="finite_difference")
    # A model that ends in float32, as ScoreMLP does, has lost as much on its way.
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(
            ValueError, match=r'^ssm_loss: method must be other than "finite_difference"'
        ),
    ):
        ssm_loss(lambda x: model(x).float(), randn(5, 4), method="finite_difference")


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    model, x = mlp(), randn(3, 4, dtype=F64).requires_grad_()
    (gradient,) = torch.autograd.grad(ssm_loss(model, x, method="exact"), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="one derivative"):
        gradient.sum().backward()


def test_docstrings() -> None:
    assert doctest.testmod(ssm).failed == 0
