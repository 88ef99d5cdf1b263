"""Adapters against scores known in closed form, in every way that gradients can be taken."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastscore
from fastscore.scores import DenoiserScore, EnergyScore, EpsScore, adapters, energy

F64 = torch.float64


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


# EpsScore and DenoiserScore


class Net(nn.Module):
    """A linear network that knows its noise level."""

    data_shape = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.linear(x) + sigma[:, None]


@pytest.mark.parametrize("x_dtype", [torch.float32, F64, torch.bfloat16])
def test_adapters_turn_an_ideal_prediction_into_the_ideal_score(x_dtype: torch.dtype) -> None:
    # Data N(0, 4 I): the ideal eps and denoiser at every level, and the score -x / (4 + sigma^2).
    def eps(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (sigma / (4 + sigma**2))[:, None]

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (4 / (4 + sigma**2))[:, None]

    x, sigma = randn(4, 3).to(x_dtype), torch.tensor([0.5, 1.0, 2.0, 10.0])
    expected = (-x.double() / (4 + sigma.double()[:, None] ** 2)).to(x_dtype)
    for model in (EpsScore(eps), DenoiserScore(denoiser)):
        out = model(x, sigma)
        assert out.dtype == x_dtype
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(model(x, 2.0), model(x, torch.full((4,), 2.0)))


def test_adapters_of_images() -> None:
    x, sigma = randn(2, 3, 4, 4), torch.tensor([0.5, 2.0])
    level = sigma.double().reshape(2, 1, 1, 1)
    torch.testing.assert_close(EpsScore(lambda x, s: x)(x, sigma), -x / level)
    torch.testing.assert_close(DenoiserScore(lambda x, s: 3 * x)(x, sigma), 2 * x / level**2)


@pytest.mark.parametrize("adapter", [EpsScore, DenoiserScore, EnergyScore])
def test_adapters_are_modules(adapter) -> None:
    net = Net()
    model = adapter(net)
    assert model.data_shape == (3,)
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    model.double().eval()
    assert net.linear.weight.dtype == F64
    assert not net.training
    assert adapter(lambda x, s: x).data_shape is None
    with pytest.raises(TypeError, match=rf"^{adapter.__name__}: \w+ must be callable, got int"):
        adapter(3)


@pytest.mark.parametrize("adapter", [EpsScore, DenoiserScore])
def test_adapters_tell_the_net_the_level_as_asked(adapter) -> None:
    seen: list[tuple[Tensor, ...]] = []

    def net(x: Tensor, *level: Tensor) -> Tensor:
        seen.append(level)
        return x

    x, sigma = torch.ones(2, 3), torch.tensor([1.0, math.e])
    for conditioning in ("sigma", "log_sigma", "none"):
        adapter(net, conditioning=conditioning)(x, sigma)
    assert torch.equal(seen[0][0], sigma)
    torch.testing.assert_close(seen[1][0], torch.tensor([0.0, 1.0]))
    assert seen[2] == ()
    levels = [4.0, 2.0, 1.0]
    by_index = adapter(net, conditioning="index", sigmas=[2.01, 2.0, 1.0]).bfloat16()
    by_index(x, torch.tensor([2.004, 0.5]))
    assert torch.equal(seen[3][0], torch.tensor([1, 2]))  # 2.01 and 2 are one number in bfloat16
    name = adapter.__name__
    with pytest.raises(ValueError, match=f"^{name}: conditioning must be one of 'sigma', 'index'"):
        adapter(net, conditioning="label")
    for options in ({"conditioning": "index"}, {"sigmas": levels}):
        with pytest.raises(ValueError, match=f"^{name}: sigmas must be given with conditioning="):
            adapter(net, **options)


@pytest.mark.parametrize("adapter", [EpsScore, DenoiserScore])
def test_adapters_bad_input(adapter) -> None:
    name = adapter.__name__
    x, labels = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=rf"^{name}: model must be .*\(2, 3\), got .*\(2, 1\)"):
        adapter(lambda x, s: x[:, :1])(x, 1.0)
    with pytest.raises(ValueError, match=rf"^{name}: sigma must be floating-point .*int64"):
        adapter(lambda x, s: x)(x, labels)
    with pytest.raises(ValueError, match=rf"^{name}: x must be a floating-point tensor"):
        adapter(lambda x, s: x)(labels, 1.0)


# EnergyScore


class Energy(nn.Module):
    """A small energy of x and sigma, of one number per sample."""

    def __init__(self, *, column: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.column = column

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        value = self.net(x) / sigma[:, None]
        return value if self.column else value.squeeze(1)


def energy_gradient(energy: Energy, x: Tensor, sigma: Tensor) -> Tensor:
    """The gradient in closed form: W1' (w2 * (1 - tanh^2)) / sigma."""
    first, _, last = energy.net
    slope = 1 - torch.tanh(first(x)).square()
    return (slope * last.weight) @ first.weight / sigma[:, None]


X, LEVELS = randn(4, 3, seed=7), torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=F64)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference", "eval"])
def test_energy_score_is_minus_the_gradient(column: bool, mode: str) -> None:
    energy = Energy(column=column)
    model = EnergyScore(energy).train(mode != "eval")
    expected = -energy_gradient(energy, X, LEVELS)
    context = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(mode)
    with context() if context else torch.enable_grad():
        out = model(X, LEVELS)
    torch.testing.assert_close(out, expected)
    assert out.requires_grad == (mode in ("grad", "eval"))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_energy_score_trains(requires_grad: bool) -> None:
    energy = Energy()
    x = X.clone().requires_grad_(requires_grad)
    parameters = [energy.net[0].weight, energy.net[2].weight]
    inputs = [*parameters, x] if requires_grad else parameters
    loss = EnergyScore(energy)(x, LEVELS).square().sum()
    expected = energy_gradient(energy, x, LEVELS).square().sum()
    for a, b in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_energy_score_leaves_the_callers_tensor_alone(requires_grad: bool) -> None:
    x = X.clone().requires_grad_(requires_grad)
    model = EnergyScore(Energy())
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            model(x, LEVELS)
        assert x.requires_grad == requires_grad
        assert x.grad is None
        assert torch.equal(x, X)
    assert all(p.grad is None for p in model.parameters())


def test_energy_score_of_x_alone() -> None:
    model = EnergyScore(lambda x: 0.5 * x.square().sum(1), conditioning="none")
    assert torch.equal(model(X), -X)
    assert torch.equal(model(X, LEVELS), -X)


def test_energy_score_with_what_function_transforms_do_not_allow() -> None:
    norm_net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    assert EnergyScore(norm_net, conditioning="none")(X).shape == X.shape
    energy = Energy()
    saved = EnergyScore(lambda x, s: checkpoint(energy, x, s, use_reentrant=False))
    torch.testing.assert_close(saved(X, LEVELS), EnergyScore(energy)(X, LEVELS))


@pytest.mark.parametrize("grad", [False, True])
def test_energy_score_in_function_transforms_and_compile(grad: bool) -> None:
    energy = Energy()
    model = EnergyScore(energy)
    v = randn(4, 3, seed=8)
    with torch.set_grad_enabled(grad):
        _, tangent = torch.func.jvp(lambda x: model(x, LEVELS), (X,), (v,))
        _, expected = torch.func.jvp(lambda x: -energy_gradient(energy, x, LEVELS), (X,), (v,))
        torch.testing.assert_close(tangent, expected)
        one_by_one = torch.vmap(lambda x, s: model(x[None], s[None])[0])(X, LEVELS)
        torch.testing.assert_close(one_by_one, model(X, LEVELS))
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(X, LEVELS), model(X, LEVELS))


@pytest.mark.parametrize(
    ("energy", "error", "message"),
    [
        (lambda x, s: x, ValueError, r"energy must be .* one number per sample, shape \(4,\), got"),
        (lambda x, s: x.sum(), ValueError, r"energy must be .* one number per sample"),
        (lambda x, s: x.sum(1)[None], ValueError, r"energy must be .* got a .* shape \(1, 4\)"),
        (
            lambda x, s: 3.0,
            TypeError,
            r"energy must be a function that returns a tensor, got float",
        ),
        (lambda x, s: x.detach().sum(1), ValueError, r"energy must be differentiable in x"),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_energy_score_bad_energy(energy, error, message: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(error, match="^EnergyScore: " + message):
        EnergyScore(energy)(X, LEVELS)


def test_energy_score_bad_input() -> None:
    model = EnergyScore(Energy())
    with pytest.raises(ValueError, match=r"^EnergyScore: sigma must be given"):
        model(X)
    with pytest.raises(ValueError, match=r"^EnergyScore: sigma must be floating-point .*int64"):
        model(X, torch.arange(4))
    with pytest.raises(TypeError, match=r"^EnergyScore: x must be a torch\.Tensor"):
        model([1.0], 1.0)


@pytest.mark.parametrize("module", [adapters, energy], ids=lambda m: m.__name__)
def test_docstring_examples(module) -> None:
    assert doctest.testmod(module).failed == 0


def test_a_noise_network_of_labels_trains_and_samples() -> None:
    """What losses take by conditioning="index" and prediction="eps", samplers take as EpsScore."""
    sigmas = fastscore.geometric_sigmas(2.0, 0.1, 5)
    table = sigmas.float()

    def eps(x: Tensor, labels: Tensor) -> Tensor:
        """The exact noise prediction for data from N(0, 1)."""
        sigma = table[labels][:, None]
        return sigma * x / (1 + sigma**2)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return -x / (1 + sigma[:, None] ** 2)

    x = torch.randn(64, 3)
    by_labels = fastscore.dsm_loss(eps, x, sigmas, prediction="eps", conditioning="index", seed=0)
    torch.testing.assert_close(by_labels, fastscore.dsm_loss(score, x, sigmas, seed=0))
    wrapped = EpsScore(eps, conditioning="index", sigmas=sigmas)
    options = {"shape": (16, 3), "seed": 0, "steps_per_sigma": 3}
    got = fastscore.annealed_langevin(wrapped, sigmas, **options)
    torch.testing.assert_close(got, fastscore.annealed_langevin(score, sigmas, **options))


def test_whoever_asks_for_a_score_of_terms_gets_their_sum() -> None:
    def guided(x: Tensor, sigma: Tensor) -> fastscore.scores.Terms:
        return fastscore.scores.Terms([(-x, 3.0), (-x, torch.full((len(x),), -2.0))])

    def plain(x: Tensor, sigma: Tensor) -> Tensor:
        return -x

    x, sigmas = torch.randn(6, 3), [2.0, 1.0]
    for function in (
        lambda score: fastscore.dsm_loss(score, x, sigmas, seed=0),
        lambda score: fastscore.ssm_loss(score, x, sigmas=sigmas, seed=0, method="reverse"),
        lambda score: fastscore.sde_loss(score, x, fastscore.sde.VE(), seed=0),
        lambda score: fastscore.fisher_divergence(score, plain, x, sigma=1.0),
        lambda score: fastscore.scores.NetworkScore(score)(x, 1.0),
        lambda score: fastscore.annealed_langevin(score, sigmas, x, seed=0),
    ):
        torch.testing.assert_close(function(guided), function(plain))
    for pairs in ([], [(x, 1.0)] * 3, [(x, 1.0), (x[:2], 1.0)], [(x, torch.ones(2))]):
        with pytest.raises(ValueError, match="Terms: "):
            fastscore.scores.Terms(pairs)
