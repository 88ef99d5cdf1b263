"""Sliced score matching: exact autograd, noise levels, statistics, closed forms, precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import (
    ACTIVATIONS,
    F64,
    Conditioned,
    assert_same_training,
    convnet,
    energy_of,
    exact_trace,
    jacobians,
    mlp,
    sliced_term,
)
from helpers import make_key, randn
from torch import Tensor, nn

from fastscore.losses import SSMLoss, ssm_loss
from fastscore.losses.dsm import likelihood_weighting
from fastscore.ops import perturb, projections

SIGMAS = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
METHODS = ("forward", "reverse", "finite_difference", "exact", "auto")
SLICED = ("forward", "reverse", "finite_difference")
DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")

Loss = Callable[..., Tensor]


def by_function(model: Any, x: Tensor, **options: Any) -> Tensor:
    return ssm_loss(model, x, **options)


def by_module(model: Any, x: Tensor, **options: Any) -> Tensor:
    call = ("levels", "seed", "generator", "key", "sample_offset")
    ours = {name: options.pop(name) for name in call if name in options}
    loss_fn = SSMLoss(**options)
    return (loss_fn.to(x.device) if isinstance(x, Tensor) else loss_fn)(model, x, **ours)


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
    key = make_key(seed, device=x.device)
    vs = projections(key, x.shape, count, distribution=distribution, dtype=F64)
    return sliced_term(model, x, (), vs, reduced)


# ---- values and gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", ["forward", "reverse", "finite_difference", "exact"])
@pytest.mark.parametrize("count", [1, 3])
def test_against_exact_derivatives(
    device: torch.device, method: str, distribution: str, reduced: bool, count: int
) -> None:
    model, x = mlp().to(device), randn(5, 4, dtype=F64).to(device)
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
def test_networks(device: torch.device, method: str, name: str, reduced: bool) -> None:
    make, shape = NETWORKS[name]
    model, x = make().to(device), randn(3, *shape, dtype=F64).to(device)
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
    "likelihood": likelihood_weighting,
}


@both
@pytest.mark.parametrize("weighting", ["sigma2", "none", "likelihood", torch.sqrt])
@pytest.mark.parametrize("method", METHODS)
def test_over_noise_levels(device: torch.device, loss: Loss, method: str, weighting: Any) -> None:
    """lambda(sigma_i) times the term at x + sigma_i z, with labels and noise written down."""
    model, x = Conditioned(mlp()).to(device), randn(6, 4, dtype=F64).to(device)
    labels = torch.tensor([0, 1, 2, 2, 1, 0], device=device)
    got = loss(
        model,
        x,
        sigmas=SIGMAS,
        levels=labels,
        weighting=weighting,
        method=method,
        projections=2,
        reduction="none",
        seed=5,
        sample_offset=2,
    )
    key, sigmas = make_key(5, device=device), SIGMAS.to(device)
    table = torch.stack([torch.ones_like(sigmas), sigmas], dim=1)
    noisy, _ = perturb(x, table, key, labels=labels, sample_offset=2)
    sigma = sigmas[labels]
    if method in ("exact", "auto"):
        want = exact_trace(model, noisy, sigma) + model(noisy, sigma).square().sum(1) / 2
    else:
        vs = projections(key, x.shape, 2, dtype=F64, sample_offset=2)
        want = sliced_term(model, noisy, (sigma,), vs, True)
    weight = WEIGHTS.get(weighting, weighting)(sigmas)[labels]
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
    got = loss_fn(model, x, levels=labels, seed=5)
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
    want = (exact_trace(model, point) + model(point).square().sum(1) / 2).detach()
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
