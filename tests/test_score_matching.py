"""Exact score matching and the traces behind it: closed forms, unit vectors, memory, training."""

from __future__ import annotations

import copy
import doctest
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
)
from helpers import assert_same_bytes, make_key, randn
from memory import peak_bytes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastscore
from fastscore.derivatives import closed_form, traces
from fastscore.derivatives.call import Call
from fastscore.derivatives.closed_form import NoClosedForm, jacobian
from fastscore.evaluation.fisher import fisher_divergence
from fastscore.losses import ScoreMatchingLoss, score_matching, score_matching_loss
from fastscore.ops import perturb
from fastscore.scores import DenoiserScore, EnergyScore, EpsScore, GaussianMixture

SIGMAS = torch.tensor([2.0, 1.0, 0.5], dtype=F64)

Loss = Callable[..., Tensor]


def by_function(model: Any, x: Tensor, **options: Any) -> Tensor:
    return score_matching_loss(model, x, **options)


def by_module(model: Any, x: Tensor, **options: Any) -> Tensor:
    call = ("levels", "seed", "generator", "key", "sample_offset")
    ours = {name: options.pop(name) for name in call if name in options}
    return ScoreMatchingLoss(**options)(model, x, **ours)


both = pytest.mark.parametrize("loss", [by_function, by_module])


def expected(model: Any, x: Tensor, *args: Any) -> Tensor:
    score, jacobian = jacobians(model, x, *args)
    return jacobian.diagonal(dim1=1, dim2=2).sum(1) + score.square().sum(1) / 2


# ---- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(6,), (7, 6)])
def test_closed_form_of_each_activation(
    device: torch.device, hidden: tuple[int, ...], activation: str
) -> None:
    model = mlp(hidden=hidden, activation=activation).to(device)
    x = randn(5, 4, dtype=F64).to(device)
    form = jacobian(model, x)
    torch.testing.assert_close(form.value, model(x))
    assert_same_training(form.trace(), exact_trace(model, x), model)


@pytest.mark.parametrize(
    "activation", ["softplus", "silu", "tanh", "elu", "gelu", "relu", "sigmoid"]
)
@pytest.mark.parametrize("hidden", [(6,), (7, 6)])
def test_closed_form_of_the_score_network(hidden: tuple[int, ...], activation: str) -> None:
    torch.manual_seed(0)
    sigma = torch.tensor([0.5, 1.0, 3.0], dtype=F64)
    for conditional in (True, False):
        model = fastscore.nn.ScoreMLP(
            4, hidden, activation=activation, noise_conditional=conditional, data_std=0.7
        ).double()
        x, args = randn(3, 4, dtype=F64), (sigma,) * conditional
        form = jacobian(model, x, *args)
        torch.testing.assert_close(form.value, model(x, *args))
        assert_same_training(form.trace(), exact_trace(model, x, *args), model)


class Residual(nn.Module):
    """Skip connections, a gate, FiLM, an embedding beside x, learnt scales."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 7)
        self.second = nn.Linear(7, 7)
        self.last = nn.Linear(7, 4)
        self.film = nn.Linear(1, 14)
        self.scale = nn.Parameter(torch.randn(4))
        self.double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        scale, shift = self.film(s).chunk(2, dim=1)
        h = nn.functional.silu(self.first(torch.cat([s, x, s.log()], dim=-1)))
        h = h - (1 + scale) * torch.tanh(self.second(h) + shift)
        out = self.last(h) * self.scale * 2.0 - x
        return (out + x * torch.sigmoid(x)) / s**2


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.gate = mlp(hidden=(5,)), mlp(hidden=(), seed=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x) * torch.sigmoid(self.gate(x))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(6, 5),
            nn.ELU(0.7, inplace=True),
            nn.Linear(5, 4),
            nn.Linear(4, 4, bias=False),
        )
        self.double().eval()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=False)


class OneFunction(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.net = function, mlp(hidden=())

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(self.function(x))


class BothEnds(nn.Module):
    """Three diagonals, of which two are neighbours under the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(hidden=(5,))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(self.net(x.sin())).exp()


STRUCTURES: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "gated": Gated,
    "in_place": InPlace,
    "checkpointed": Checkpointed,
    "conditioned": lambda: Conditioned(mlp()),
    "denoiser": lambda: DenoiserScore(Residual()),
    "eps": lambda: EpsScore(Residual()),
    "compiled": lambda: torch.compile(Conditioned(mlp()), backend="aot_eager"),
    "activations_at_both_ends": BothEnds,
    "square": lambda: OneFunction(lambda x: (3 - x**2).square() * torch.arange(4)),
    "mish": lambda: OneFunction(nn.functional.mish),
    "unchanged": lambda: OneFunction(lambda x: -x.reshape(-1, 2, 2).flatten(1).contiguous()),
    "constant": lambda: OneFunction(lambda x: 2.0 - x / 5),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_with_a_closed_form(name: str) -> None:
    model, x = STRUCTURES[name](), randn(3, 4, dtype=F64)
    sigma = torch.tensor([0.5, 1.0, 3.0], dtype=F64)
    with torch.compiler.set_stance("force_eager"):
        form = jacobian(model, x, sigma)
        torch.testing.assert_close(form.value, model(x, sigma))
        assert_same_training(form.trace(), exact_trace(model, x, sigma), model)
    loss = score_matching_loss(model, x, sigmas=SIGMAS, seed=0)
    assert loss.isfinite()


def test_samples_of_any_shape_and_a_batch_of_one() -> None:
    images = nn.Sequential(nn.Flatten(), mlp(12), nn.Unflatten(1, (3, 2, 2))).double()
    for x in (randn(5, 3, 2, 2, dtype=F64), randn(1, 3, 2, 2, dtype=F64)):
        assert_same_training(jacobian(images, x).trace(), exact_trace(images, x), images)
    scalars, x = nn.Sequential(nn.Unflatten(0, (-1, 1)), mlp(1), nn.Flatten(0)), randn(5, dtype=F64)
    got = score_matching_loss(scalars, x, reduction="none")
    assert_same_training(got, expected(scalars, x), scalars)
    # A slope for all samples is part of a weight: any depth has a closed form.
    deep, x = mlp(hidden=(5, 6, 5, 6)), randn(1, 4, dtype=F64)
    assert_same_training(jacobian(deep, x).trace(), exact_trace(deep, x), deep)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


class ScaledOnce(nn.Module):
    """Sums over a sample and broadcasts: every output depends on every input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(hidden=(5,))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * x.square().sum(1, keepdim=True)


class CubeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(hidden=(5,))

    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(self.net(x))


class SeenTwice(nn.Module):
    """Changes a tensor in place that another one shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6).double(), nn.Linear(6, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        seen = h.view(len(x), 2, 3)
        nn.functional.elu(h, inplace=True)
        return self.last(seen.flatten(1) * 1.0)


WITHOUT: dict[str, Callable[[], nn.Module]] = {
    "three_layers": lambda: mlp(hidden=(5, 6, 5)),
    "layer_norm": lambda: nn.Sequential(mlp(), nn.LayerNorm(4).double()),
    "images": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), convnet(1), nn.Flatten()),
    "custom_function": CubeNet,
    "sum": ScaledOnce,
    "seen_twice": SeenTwice,
    "energy": lambda: energy_of(mlp(out=2)),
}


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.filterwarnings("ignore:fastscore.jvp")
def test_structures_without_a_closed_form(
    device: torch.device, name: str, chunk_size: int | None
) -> None:
    model, x = WITHOUT[name]().to(device), randn(3, 4, dtype=F64).to(device)
    with pytest.raises(NoClosedForm):
        jacobian(model, x)
    got = score_matching_loss(model, x, reduction="none", chunk_size=chunk_size)
    assert_same_training(got, expected(model, x), model)
    with torch.no_grad():
        silent = score_matching_loss(model, x, reduction="none", chunk_size=chunk_size)
    torch.testing.assert_close(silent, got.detach())


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 100])
def test_unit_vectors_agree_with_the_closed_form(chunk_size: int | None) -> None:
    model, x = mlp(10), randn(5, 10, dtype=F64)
    output, trace = traces.trace_by_unit_vectors(Call("fn", model), x, chunk_size=chunk_size)
    torch.testing.assert_close(output, model(x))
    assert_same_training(trace, jacobian(model, x).trace(), model)


@pytest.mark.parametrize("shape", [(3, 2, 4, 3), (2, 2, 3), (3, 0), (0, 4), (5, 1)])
def test_shapes(shape: tuple[int, ...]) -> None:
    def model(x: Tensor) -> Tensor:
        return x.sin() * torch.tensor(2.0)

    x = randn(*shape, dtype=F64)
    got = score_matching_loss(model, x, reduction="none")
    want = (2 * x.cos() + 2 * x.sin().square()).reshape(len(x), math.prod(shape[1:])).sum(1)
    torch.testing.assert_close(got, want)
    _, trace = traces.trace_by_unit_vectors(Call("fn", model), x)
    torch.testing.assert_close(trace, (2 * x.cos()).reshape(len(x), math.prod(shape[1:])).sum(1))


def test_the_gradient_of_x() -> None:
    for model in (mlp(), mlp(hidden=(4, 4, 4)), energy_of(mlp(out=1))):
        x = randn(3, 4, dtype=F64).requires_grad_()
        values = (score_matching_loss(model, x, reduction="none"), expected(model, x))
        grads = [torch.autograd.grad(value.sum(), x)[0] for value in values]
        torch.testing.assert_close(*grads)


# ---- memory ------------------------------------------------------------------------------------


def test_chunks_bound_the_memory() -> None:
    """Four times the dimension takes no more memory per element, forward and backward."""

    def peak(d: int) -> int:
        model, x = mlp(d, (32, 32, 32)).float(), randn(64, d)
        loss_fn = ScoreMatchingLoss(chunk_size=4)
        loss_fn(model, x).backward()
        return peak_bytes(lambda: loss_fn(model, x).backward())

    tangents = 4 * 64 * (4 * 32 + 4 * 128) * 4
    assert peak(128) < 6 * tangents
    assert peak(128) < 4.5 * peak(32)


# ---- values ------------------------------------------------------------------------------------


@both
def test_identity_of_the_gaussian(loss: Loss) -> None:
    n, d = 40_000, 5
    each = loss(lambda x: -x, randn(n, d, dtype=F64), reduction="none")
    assert abs(float(each.mean()) + d / 2) < 5 * float(each.std()) / math.sqrt(n)


def test_the_loss_is_the_fisher_divergence_up_to_a_constant() -> None:
    """J(model) - J(truth) = 1/2 E|s - s_true|^2, Hyvarinen's theorem, on a mixture."""
    n = 100_000
    truth = GaussianMixture([0.4, 0.6], [[1.5, 0.0], [-1.5, 0.5]], 0.5).double()
    x, model = truth.sample(n, seed=0), mlp(2)
    with torch.no_grad():
        terms = [score_matching_loss(s, x, reduction="none") for s in (model, truth)]
        divergence = fisher_divergence(model, truth, x, reduction="none")
    gap = terms[0] - terms[1] - divergence
    assert abs(float(gap.mean())) < 5 * float(gap.std()) / math.sqrt(n)


@both
@pytest.mark.parametrize("weighting", ["sigma2", "none", torch.sqrt])
def test_over_noise_levels(loss: Loss, weighting: Any) -> None:
    labels = torch.tensor([0, 1, 2, 2])
    weights = {"sigma2": SIGMAS.square(), "none": torch.ones_like(SIGMAS)}
    table = torch.stack([torch.ones_like(SIGMAS), SIGMAS], dim=1)
    for model, shape in ((Conditioned(mlp()), (4,)), (Conditioned(convnet()), (2, 3, 3))):
        x = randn(4, *shape, dtype=F64)
        noisy, _ = perturb(x, table, make_key(5), labels=labels)
        weight = weights.get(weighting, SIGMAS.sqrt())[labels]
        want = weight * expected(model, noisy, SIGMAS[labels])
        options: dict[str, Any] = {"sigmas": SIGMAS, "weighting": weighting, "reduction": "none"}
        got = loss(model, x, levels=labels, seed=5, **options)
        assert_same_training(got, want, model)


@both
def test_clean_data_draw_no_random_numbers(loss: Loss) -> None:
    clean, noisy, x = mlp(), Conditioned(mlp()), randn(3, 4, dtype=F64)
    state = torch.random.get_rng_state()
    loss(clean, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    loss(noisy, x, sigmas=SIGMAS)
    assert not torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_give_a_float32_loss(dtype: torch.dtype) -> None:
    for make, shape in ((mlp, (4,)), (convnet, (2, 3, 3)), (lambda: energy_of(mlp(out=1)), (4,))):
        model, x = make(), randn(16, *shape)
        exact = score_matching_loss(model, x.double())
        got = score_matching_loss(model.to(dtype), x.to(dtype))
        assert got.dtype == torch.float32
        error = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(got.double(), exact, rtol=error, atol=error)


@both
def test_reductions_and_seeds(loss: Loss) -> None:
    model, x = Conditioned(mlp()), randn(7, 4, dtype=F64)

    def value(**options: Any) -> Tensor:
        return loss(model, x, sigmas=SIGMAS, **options)

    each = value(seed=0, reduction="none")
    assert each.shape == (7,)
    torch.testing.assert_close(value(seed=0, reduction="sum"), each.sum())
    torch.testing.assert_close(value(seed=0), each.mean())
    assert_same_bytes(value(key=make_key(0)), value(seed=0))
    parts = [
        loss(model, x[:3], sigmas=SIGMAS, seed=0, reduction="none"),
        loss(model, x[3:], sigmas=SIGMAS, seed=0, reduction="none", sample_offset=3),
    ]
    torch.testing.assert_close(torch.cat(parts), each)


def test_the_module() -> None:
    loss_fn = ScoreMatchingLoss(SIGMAS, weighting="none", chunk_size=2)
    model, x = Conditioned(mlp()), randn(5, 4, dtype=F64)
    a = loss_fn(model, x, seed=0)
    assert_same_bytes(copy.deepcopy(loss_fn)(model, x, seed=0), a)
    assert_same_bytes(by_function(model, x, sigmas=SIGMAS, weighting="none", seed=0), a)
    assert loss_fn.half().sigmas.dtype == F64
    assert loss_fn.state_dict() == {}
    assert "levels=3, weighting='none'" in repr(loss_fn)


def test_a_compiled_step() -> None:
    model, x = mlp(), randn(5, 4, dtype=F64)

    def step(x: Tensor) -> Tensor:
        return score_matching_loss(model, x, reduction="none")

    got = torch.compile(step, backend="aot_eager")(x)
    assert_same_training(got, step(x), model)
    torch._dynamo.reset()


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "level"), [((256,), 0.1), ((64, 64), 0.03), ((32,) * 3, 0.03)])
def test_training_finds_the_score(hidden: tuple[int, ...], level: float) -> None:
    mixture = GaussianMixture([0.4, 0.6], [[1.5, 0.0], [-1.5, 0.5]], 0.5)
    x, held_out = mixture.sample(20_000, seed=0), mixture.sample(5_000, seed=1)
    model = mlp(2, hidden).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    torch.manual_seed(0)
    for _ in range(250):
        optimizer.zero_grad()
        score_matching_loss(model, x[torch.randint(len(x), (512,))]).backward()
        optimizer.step()
        schedule.step()
    assert fisher_divergence(model, mixture, held_out) < level


# ---- bad input ---------------------------------------------------------------------------------


def never(*_: Tensor) -> Tensor:
    raise AssertionError("the model was called before the arguments were checked")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor"),
    ({"x": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "x must be a floating-point"),
    ({"x": torch.tensor([[1.0], [math.inf]])}, ValueError, "x must be finite everywhere"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size must be an integer"),
    ({"weighting": "sigma"}, ValueError, "weighting must be one of 'sigma2'"),
    ({"sigmas": [0.5, 1.0]}, ValueError, "sigmas must be strictly decreasing"),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
    ({"conditioning": "index"}, ValueError, "conditioning must be 'none' without sigmas"),
    ({"levels": torch.tensor([0, 0])}, ValueError, "levels must be None without sigmas"),
    ({"key": make_key(1), "seed": 1}, ValueError, "seed must be None when key is given"),
    ({"model": 3}, TypeError, "model must be callable"),
]


@both
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(
    loss: Loss, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"model": never, "x": torch.zeros(2, 3), **arguments}
    name = {by_function: "score_matching_loss", by_module: "ScoreMatchingLoss"}[loss]
    with pytest.raises(error, match=f"^{name}: {message}"):
        loss(**arguments)


@both
def test_bad_models(loss: Loss) -> None:
    x = torch.zeros(2, 3)
    name = {by_function: "score_matching_loss", by_module: "ScoreMatchingLoss"}[loss]
    for model in (lambda x: x[:, :2], nn.Linear(3, 2), mlp(3, (3, 3, 3), out=2).float()):
        with pytest.raises(ValueError, match=f"^{name}: model must be a "):
            loss(model, x)
    with pytest.raises(TypeError, match=f"^{name}: model must be a .* got NoneType"):
        loss(lambda x: None, x)
    with pytest.raises(ValueError, match=r"EnergyScore: energy must be .* one number per sample"):
        loss(EnergyScore(nn.Linear(3, 2), conditioning="none"), x)


def test_docstrings() -> None:
    for module in (score_matching, closed_form, traces):
        assert doctest.testmod(module).failed == 0
