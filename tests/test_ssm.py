"""Sliced score matching: exact autograd, statistics, closed forms, training, bad input."""

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
    ACTIVATIONS,
    F64,
    Conditioned,
    SumOfOutputs,
    assert_same_training,
    convnet,
    energy_of,
    exact_trace,
    jacobians,
    mlp,
    sliced_term,
)
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor, nn

import fastscore
from fastscore.losses import dsm, ssm
from fastscore.losses.ssm import SSMLoss, ssm_loss
from fastscore.metrics import fisher_divergence
from fastscore.ops import perturb, projections
from fastscore.scores import EnergyScore, GaussianMixture

SIGMAS = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
METHODS = ("forward", "reverse", "finite_difference", "exact", "auto")
SLICED = ("forward", "reverse", "finite_difference")
DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")

Loss = Callable[..., Tensor]


def by_function(model: Any, x: Tensor, **options: Any) -> Tensor:
    return ssm_loss(model, x, **options)


def by_module(model: Any, x: Tensor, **options: Any) -> Tensor:
    call = ("labels", "seed", "generator", "key", "sample_offset")
    ours = {name: options.pop(name) for name in call if name in options}
    return SSMLoss(**options)(model, x, **ours)


both = pytest.mark.parametrize("loss", [by_function, by_module])


def tolerance(method: str) -> dict[str, float]:
    """Central differences in float64 are good to about 1e-10 of the third derivative."""
    return {"rtol": 2e-7, "atol": 1e-8} if method == "finite_difference" else {}


def expected(
    model: Any, x: Tensor, method: str, distribution: str, reduced: bool, count: int, seed: int
) -> Tensor:
    if method == "exact":
        score, jacobian = jacobians(model, x)
        return jacobian.diagonal(dim1=1, dim2=2).sum(1) + score.square().sum(1) / 2
    vs = projections(make_key(seed), x.shape, count, distribution=distribution, dtype=F64)
    if method != "finite_difference" or reduced:
        return sliced_term(model, x, (), vs, reduced)
    return sliced_term(model, x, (), vs, reduced)


# ---- values and gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", ["forward", "reverse", "finite_difference", "exact"])
@pytest.mark.parametrize("count", [1, 3])
def test_against_exact_derivatives(
    method: str, distribution: str, reduced: bool, count: int
) -> None:
    model, x = mlp(), randn(5, 4, dtype=F64)
    got = ssm_loss(
        model,
        x,
        projections=count,
        distribution=distribution,
        variance_reduced=reduced,
        method=method,
        reduction="none",
        seed=3,
    )
    assert got.dtype == F64
    want = expected(model, x, method, distribution, reduced, count, 3)
    assert_same_training(got, want, model, **tolerance(method))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("method", ["forward", "reverse", "finite_difference", "exact"])
def test_activations(method: str, activation: str) -> None:
    model, x = mlp(activation=activation), randn(5, 4, dtype=F64)
    got = ssm_loss(model, x, projections=2, method=method, reduction="none", seed=0)
    want = expected(model, x, method, "rademacher", True, 2, 0)
    assert_same_training(got, want, model, **tolerance(method))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "three_layers": (lambda: mlp(hidden=(6, 5, 6)), (4,)),
    "one_layer": (lambda: mlp(hidden=(6,)), (4,)),
    "linear": (lambda: mlp(hidden=()), (4,)),
    "images": (convnet, (2, 4, 3)),
    "sequences": (lambda: mlp(d=3), (5, 3)),
    "scalars": (lambda: nn.Sequential(nn.Unflatten(0, (-1, 1)), mlp(d=1), nn.Flatten(0)), ()),
    "energy": (lambda: energy_of(mlp(out=2)), (4,)),
    "energy_with_layer_norm": (
        lambda: energy_of(nn.Sequential(mlp(out=6), nn.LayerNorm(6).double(), mlp(6, out=1))),
        (4,),
    ),
    "energy_of_images": (lambda: energy_of(convnet()), (2, 4, 3)),
    "wrapped_energy": (lambda: nn.Sequential(energy_of(mlp(out=2)), mlp()), (4,)),
}


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_networks(method: str, name: str, reduced: bool) -> None:
    make, shape = NETWORKS[name]
    model, x = make(), randn(3, *shape, dtype=F64)
    loss_fn = SSMLoss(
        projections=2, method=method, variance_reduced=reduced, reduction="none", chunk_size=5
    )
    got = loss_fn(model, x, seed=1)
    assert loss_fn.chosen_method in METHODS[:4]
    want = expected(model, x, str(loss_fn.chosen_method), "rademacher", reduced, 2, 1)
    assert_same_training(got, want, model, **tolerance(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mlp", "images", "energy"])
def test_the_gradient_of_x(method: str, kind: str) -> None:
    model = {"mlp": mlp, "images": convnet, "energy": lambda: energy_of(mlp(out=1))}[kind]()
    shape = (3, 2, 3, 3) if kind == "images" else (3, 4)
    x = randn(*shape, dtype=F64).requires_grad_()
    loss_fn = SSMLoss(method=method, reduction="none")
    got = loss_fn(model, x, seed=1)
    want = expected(model, x, str(loss_fn.chosen_method), "rademacher", True, 1, 1)
    grads = [torch.autograd.grad(value.sum(), x)[0] for value in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-7)
    assert x.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_score(method: str) -> None:
    for x in (randn(3, 4), randn(3, 4).requires_grad_()):
        each = ssm_loss(lambda x: torch.full_like(x, 3.0), x, method=method, reduction="none")
        torch.testing.assert_close(each, torch.full((3,), 18.0))


# ---- over noise levels -------------------------------------------------------------------------


WEIGHTS: dict[Any, Callable[[Tensor], Tensor]] = {
    "sigma2": torch.square,
    "none": torch.ones_like,
    "likelihood": dsm.likelihood_weighting,
}


@both
@pytest.mark.parametrize("weighting", ["sigma2", "none", "likelihood", torch.sqrt])
@pytest.mark.parametrize("method", METHODS)
def test_over_noise_levels(loss: Loss, method: str, weighting: Any) -> None:
    """lambda(sigma_i) times the term at x + sigma_i z, with labels and noise written down."""
    model, x = Conditioned(mlp()), randn(6, 4, dtype=F64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    got = loss(
        model,
        x,
        sigmas=SIGMAS,
        labels=labels,
        weighting=weighting,
        method=method,
        projections=2,
        reduction="none",
        seed=5,
        sample_offset=2,
    )
    key = make_key(5)
    table = torch.stack([torch.ones_like(SIGMAS), SIGMAS], dim=1)
    noisy, _ = perturb(x, table, key, labels=labels, sample_offset=2)
    sigma = SIGMAS[labels]
    if method in ("exact", "auto"):
        want = exact_trace(model, noisy, sigma) + model(noisy, sigma).square().sum(1) / 2
    else:
        vs = projections(key, x.shape, 2, dtype=F64, sample_offset=2)
        want = sliced_term(model, noisy, (sigma,), vs, True)
    weight = WEIGHTS.get(weighting, weighting)(SIGMAS)[labels]
    assert_same_training(got, weight * want, model, **tolerance(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["images", "energy"])
def test_over_noise_levels_for_images_and_energies(method: str, kind: str) -> None:
    shape = (4, 2, 3, 3)
    model: nn.Module = Conditioned(convnet())
    if kind == "energy":
        model = energy_of(model, takes_sigma=True)
    x, labels = randn(*shape, dtype=F64), torch.tensor([0, 1, 2, 1])
    loss_fn = SSMLoss(SIGMAS, method=method, reduction="none", weighting="none")
    got = loss_fn(model, x, labels=labels, seed=5)
    key = make_key(5)
    table = torch.stack([torch.ones_like(SIGMAS), SIGMAS], dim=1)
    noisy, _ = perturb(x, table, key, labels=labels)
    sigma = SIGMAS[labels]
    want = sliced_term(model, noisy, (sigma,), projections(key, shape, 1, dtype=F64), True)
    if loss_fn.chosen_method == "exact":
        score = model(noisy, sigma).flatten(1)
        want = exact_trace(model, noisy, sigma) + score.square().sum(1) / 2
    assert_same_training(got, want, model, **tolerance(method))


@both
@pytest.mark.parametrize("method", METHODS)
def test_what_the_model_is_told(loss: Loss, method: str) -> None:
    seen: dict[str, tuple[Tensor, ...]] = {}
    x = torch.zeros(300, 2)
    for conditioning in ("sigma", "index", "log_sigma", "none"):

        def spy(x: Tensor, *condition: Tensor, name: str = conditioning) -> Tensor:
            seen[name] = condition
            return -x

        loss(spy, x, sigmas=SIGMAS, conditioning=conditioning, method=method, seed=0)
    labels = seen["index"][0]
    assert labels.dtype == torch.int64
    assert torch.bincount(labels[:300], minlength=3).min() > 60
    sigma = SIGMAS.float()[labels]
    torch.testing.assert_close(seen["sigma"][0], sigma)
    torch.testing.assert_close(seen["log_sigma"][0], sigma.log())
    assert seen["none"] == ()
    loss(lambda x: -x, x, method=method)  # clean data: called with x alone


# ---- statistics and closed forms ---------------------------------------------------------------


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", SLICED)
def test_unbiased(method: str, distribution: str, reduced: bool) -> None:
    """Many samples at one point: their mean is tr J + 1/2 |s|^2, within 5 standard errors."""
    n = 20_000
    model, point = mlp(d=6, seed=1), randn(1, 6, dtype=F64)
    each = ssm_loss(
        model,
        point.expand(n, 6),
        distribution=distribution,
        variance_reduced=reduced,
        method=method,
        reduction="none",
        seed=0,
    ).detach()
    want = exact_trace(model, point) + model(point).square().sum(1) / 2
    assert each.std() > 0
    assert abs(float(each.mean() - want)) < 5 * float(each.std()) / math.sqrt(n)


@pytest.mark.parametrize("method", METHODS)
def test_identities_of_the_gaussian(method: str) -> None:
    """s = -x: tr J is -d with Rademacher and sphere projections, each time; the loss is -d/2."""
    n, d = 40_000, 5
    x = randn(n, d, dtype=F64)
    for distribution in ("rademacher", "sphere"):
        options: dict[str, Any] = {"distribution": distribution, "method": method, "seed": 1}
        each = ssm_loss(lambda x: -x, x, reduction="none", **options)
        tight = {"rtol": 1e-6, "atol": 1e-5}
        torch.testing.assert_close(each, x.square().sum(1) / 2 - d, **tight)
    for reduced in (True, False):
        for distribution in DISTRIBUTIONS:
            each = ssm_loss(
                lambda x: -x,
                x,
                distribution=distribution,
                variance_reduced=reduced,
                method=method,
                reduction="none",
                seed=2,
            )
            assert abs(float(each.mean()) + d / 2) < 5 * float(each.std()) / math.sqrt(n)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_identity_over_noise_levels(sigma: float) -> None:
    """x ~ N(0, I), s = -x~/(1 + sigma^2): the weighted loss is -1/2 d sigma^2/(1 + sigma^2)."""
    n, d = 40_000, 5

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return -x / (1 + sigma[:, None] ** 2)

    for method in METHODS:
        each = ssm_loss(score, randn(n, d), sigmas=[sigma], method=method, reduction="none", seed=0)
        want = -0.5 * d * sigma**2 / (1 + sigma**2)
        assert abs(float(each.mean()) - want) < 5 * float(each.std()) / math.sqrt(n)


def test_the_error_of_finite_differences_falls_with_epsilon_squared() -> None:
    model, x = mlp(activation="tanh"), randn(64, 4, dtype=F64)
    exact = ssm_loss(model, x, method="forward", seed=0)
    errors = [
        float(ssm_loss(model, x, method="finite_difference", epsilon=e, seed=0) - exact)
        for e in (0.4, 0.2, 0.1)
    ]
    assert 3.8 < errors[0] / errors[1] < 4.2
    assert 3.95 < errors[1] / errors[2] < 4.05


def test_finite_differences_are_the_papers() -> None:
    """1/8 |s(x+u) + s(x-u)|^2 + d/(2 eps^2) <s(x+u) - s(x-u), u> with |u| = eps."""
    model, x, epsilon = mlp(), randn(5, 4, dtype=F64), 0.3
    options: dict[str, Any] = {"method": "finite_difference", "distribution": "sphere"}
    got = ssm_loss(model, x, epsilon=epsilon, reduction="none", seed=0, **options)
    v = projections(make_key(0), x.shape, 1, distribution="sphere", dtype=F64)[0]
    u = v * epsilon / math.sqrt(4)
    torch.testing.assert_close(u.norm(dim=1), torch.full((5,), epsilon, dtype=F64))
    plus, minus = model(x + u), model(x - u)
    want = (plus + minus).square().sum(1) / 8
    want = want + 4 / (2 * epsilon**2) * ((plus - minus) * u).sum(1)
    torch.testing.assert_close(got, want)


# ---- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_give_a_float32_loss(method: str, dtype: torch.dtype) -> None:
    if method == "finite_difference" and dtype != torch.float32:
        return
    for make, shape in ((mlp, (4,)), (convnet, (2, 4, 4)), (lambda: energy_of(mlp(out=1)), (4,))):
        model, x = make(), randn(16, *shape)
        loss_fn = SSMLoss(method=method)
        exact = loss_fn(model, x.double(), seed=2)
        loss_fn = SSMLoss(method=str(loss_fn.chosen_method))
        got = loss_fn(model.to(dtype), x.to(dtype), seed=2)
        assert got.dtype == torch.float32
        error = 1e-5 if dtype == torch.float32 else 0.03
        if method == "finite_difference":
            error = 1e-3
        torch.testing.assert_close(got.double(), exact, rtol=error, atol=error)
        got.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["forward", "reverse", "exact", "auto"])
def test_under_autocast(method: str) -> None:
    model, x = mlp(16, (32, 32)).float(), randn(64, 16)
    exact = ssm_loss(model, x, method=method, seed=0)
    want = torch.autograd.grad(exact, model[2].weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        value = ssm_loss(model, x, method=method, seed=0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.05)
    got = torch.autograd.grad(value, model[2].weight)[0]
    assert float((got - want).norm() / want.norm()) < 0.05


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
    assert choice(CubeNet(), x[:, :4]) == "reverse"  # and no warning
    assert choice(mlp(16, (32, 32)), x, method="forward") == "forward"
    assert choice(Conditioned(mlp(16, (32, 32))), x, sigmas=SIGMAS) == "exact"


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
        EnergyScore(SumOfOutputs(net), takes_sigma=False), SSMLoss(method=method)
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
    ({"labels": torch.tensor([0, 0])}, ValueError, "labels must be None without sigmas"),
    (
        {"labels": torch.tensor([0, 4]), "sigmas": [1.0]},
        ValueError,
        r"labels must be in \[0, 1\), got .* 0 to 4",
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
    shape = r"\(4, 3\)" if method == "finite_difference" else r"\(2, 3\)"
    for model in (lambda x: x[:, :2], nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())):
        with pytest.raises(ValueError, match=rf": model must be a model whose output .* {shape}"):
            loss(model, x, method=method)
    with pytest.raises(TypeError, match=r"(ssm_loss|SSMLoss): model must be a .* got NoneType"):
        loss(lambda x: None, x, method=method)
    pair = EnergyScore(nn.Linear(3, 2), takes_sigma=False)
    with pytest.raises(ValueError, match=r"EnergyScore: energy must be .* one number per sample"):
        loss(pair, x, method=method)


def test_finite_differences_refuse_a_model_in_half_precision() -> None:
    model = mlp().float()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"^ssm_loss: model must be a model that returns float32"),
    ):
        ssm_loss(model, randn(5, 4), method="finite_difference")


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    model, x = mlp(), randn(3, 4, dtype=F64).requires_grad_()
    (gradient,) = torch.autograd.grad(ssm_loss(model, x, method="exact"), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="one derivative"):
        gradient.sum().backward()


def test_docstrings() -> None:
    assert doctest.testmod(ssm).failed == 0
