"""Divergences that scores know in closed form, and exact traces that no batch changes."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import pytest
import torch
from helpers import assert_same_bytes
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fastscore
from fastscore._support import alike, sums
from fastscore._support.sums import tree_sum
from fastscore.derivatives import known, known_divergence, traces
from fastscore.derivatives.call import Call
from fastscore.losses import score_matching_loss
from fastscore.scores import EDMDenoiser, EnergyScore, EpsScore, GaussianMixture, NetworkScore
from fastscore.scores import Parzen as ParzenScore
from fastscore.sde import VE, VP, Cosine, ProcessScore, RectifiedFlow

F64 = torch.float64
BATCHES = (1, 2, 3, 7, 64, 65, 129)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def make(kind: str, count: int, event: tuple[int, ...], dtype: torch.dtype = F64) -> Any:
    places = randn(count, *event, seed=1, dtype=dtype)
    if kind == "parzen":
        return ParzenScore(places, 0.3, chunk_size=16)
    variances = {
        "number": torch.tensor(0.4),
        "isotropic": uniform(count, seed=2) + 0.1,
        "diagonal": uniform(count, *event, seed=2) + 0.1,
        "points": torch.zeros(count),
    }[kind]
    return GaussianMixture(uniform(count, seed=3) + 0.05, places, variances)


KINDS = ["number", "isotropic", "diagonal", "points", "parzen"]


def trace_by_jacobians(model: Callable[..., Tensor], x: Tensor, *args: Tensor) -> Tensor:
    """Of each sample by itself, by PyTorch's reverse mode."""

    def of_one(point: Tensor, *told: Tensor) -> Tensor:
        return model(point[None], *(value[None] for value in told))[0].reshape(-1)

    size = x[0].numel()
    found = [
        torch.func.jacrev(of_one)(*each).reshape(size, size).trace()
        for each in zip(x, *args, strict=True)
    ]
    return torch.stack(found)


def exact(places: Tensor, weights: Tensor, variances: Tensor, x: Tensor) -> float:
    """The divergence at one point by 60 digits, from densities and not their logarithms."""
    with mpmath.workdps(60):
        total, first, second = mpmath.mpf(0), [mpmath.mpf(0)] * len(x), mpmath.mpf(0)
        for place, weight, variance in zip(places, weights, variances, strict=True):
            pairs = list(zip(place.tolist(), variance.tolist(), x.tolist(), strict=True))
            density = mpmath.mpf(float(weight))
            for m, v, at in pairs:
                m, v, at = mpmath.mpf(m), mpmath.mpf(v), mpmath.mpf(at)
                density *= mpmath.exp(-((at - m) ** 2) / (2 * v)) / mpmath.sqrt(v)
            pulls = [(mpmath.mpf(m) - at) / mpmath.mpf(v) for m, v, at in pairs]
            total += density
            first = [f + density * g for f, g in zip(first, pulls, strict=True)]
            stiffness = sum(1 / mpmath.mpf(v) for _, v, _ in pairs)
            second += density * (sum(g**2 for g in pulls) - stiffness)
        return float(second / total - sum((f / total) ** 2 for f in first))


# ---- in closed form ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("count", [1, 10, 37])
def test_against_jacobians(kind: str, event: tuple[int, ...], count: int) -> None:
    model, x, sigma = make(kind, count, event), 1.5 * randn(9, *event), uniform(9) + 0.2
    score, divergence = model.output_and_divergence(x, sigma)
    assert_same_bytes(score, model(x, sigma))
    assert divergence.dtype == F64
    torch.testing.assert_close(
        divergence, trace_by_jacobians(model, x, sigma), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("kind", ["number", "diagonal", "parzen"])
def test_without_noise(kind: str) -> None:
    model, x = make(kind, 10, (3,)), randn(9, 3)
    score, divergence = model.output_and_divergence(x)
    assert_same_bytes(score, model(x))
    torch.testing.assert_close(divergence, trace_by_jacobians(model, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["diagonal", "points", "parzen"])
@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_extreme_levels_and_places(kind: str, sigma: float, scale: float) -> None:
    """Far away every density underflows, and near the data at low noise posteriors are sharp."""
    model = make(kind, 10, (2,))
    places = model.data if kind == "parzen" else model.means
    if kind == "parzen":
        model.variance = 0.0
    own = torch.zeros(10, 1, dtype=F64) if kind == "parzen" else model.variances.reshape(10, -1)
    variances = (own + sigma**2).expand(10, 2)
    weights = torch.ones(10) if kind == "parzen" else model.weights
    near = torch.cat([places[:2] + 0.5 * sigma, places[2:4].mean(0, keepdim=True)])
    x = torch.cat([near, scale * randn(3, 2)])
    divergence = model.output_and_divergence(x, sigma)[1]
    wanted = torch.tensor([exact(places, weights, variances, at) for at in x], dtype=F64)
    # Posteriors have the rounding of |x|^2/v; where one point has all of it, nothing is lost.
    torch.testing.assert_close(divergence, wanted, rtol=1e-6, atol=0)
    if sigma < 0.1 and kind != "diagonal":
        sharp = (wanted * sigma**2 + 2).abs() < 1e-9
        assert sharp.sum() >= 5
        torch.testing.assert_close(divergence[sharp], wanted[sharp], rtol=1e-14, atol=0)


def test_a_sharp_posterior_far_from_the_centre() -> None:
    """E|y|^2 - |E y|^2 would have lost a part in 10^5 of this."""
    data = 100 * randn(40, 3)
    divergence = ParzenScore(data).output_and_divergence(data + 1e-5 * randn(40, 3, seed=2), 1e-5)[
        1
    ]
    torch.testing.assert_close(divergence, torch.full((40,), -3e10, dtype=F64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 1024])
def test_the_spread_over_chunks(chunk_size: int) -> None:
    """Chunks of which none, one or all weigh anything at a point."""
    data = torch.cat([randn(9, 2), randn(9, 2) + 40, randn(9, 2) - 60])
    x = torch.cat([data[::4], randn(5, 2), torch.full((1, 2), 20.0, dtype=F64)])
    mixture, parzen = GaussianMixture(torch.ones(27), data, 0.2), ParzenScore(data, 0.2)
    parzen.chunk_size = chunk_size
    for got, wanted in zip(
        parzen.output_and_divergence(x), mixture.output_and_divergence(x), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "parzen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_points(kind: str, dtype: torch.dtype) -> None:
    """The divergence is that at the rounded points, in float64."""
    model, x = make(kind, 10, (3,)), randn(9, 3).to(dtype)
    score, divergence = model.output_and_divergence(x, 0.5)
    assert_same_bytes(score, model(x, 0.5))
    assert score.dtype == dtype
    wanted = model.output_and_divergence(x.double(), 0.5)[1]
    torch.testing.assert_close(divergence, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_samples(kind: str) -> None:
    score, divergence = make(kind, 10, (3,)).output_and_divergence(randn(0, 3), 1.0)
    assert score.shape == (0, 3)
    assert divergence.shape == (0,)


def test_errors() -> None:
    for kind, name in (("points", "GaussianMixture"), ("parzen", "Parzen")):
        model = make(kind, 10, (3,))
        with pytest.raises(ValueError, match=f"^{name}.output_and_divergence: x must be"):
            model.output_and_divergence(randn(2, 4))
        with pytest.raises(ValueError, match=f"^{name}.output_and_divergence: sigma must be"):
            model.output_and_divergence(randn(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match="sigma must be given for a mixture"):
        make("points", 10, (3,)).output_and_divergence(randn(2, 3))


# ---- whatever the batch ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "points", "parzen"])
@pytest.mark.parametrize("elements", [1, 2, 3, 64])
@pytest.mark.parametrize("count", [1, 10, 37])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_sample_is_the_same_in_every_batch(
    kind: str, elements: int, count: int, dtype: torch.dtype
) -> None:
    model = make(kind, count, (elements,), dtype)
    same_in_every_batch(
        model.output_and_divergence, randn(140, elements, dtype=dtype), uniform(140, dtype=dtype)
    )


def same_in_every_batch(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], x: Tensor, sigma: Tensor
) -> None:
    """At the first place of a batch, the last one and all between, for its bytes."""
    sigma = 3 * sigma + 0.05
    whole = function(x, sigma)
    for size in BATCHES:
        apart = [function(*each) for each in zip(x.split(size), sigma.split(size), strict=True)]
        for got, wanted in zip(zip(*apart, strict=True), whole, strict=True):
            assert_same_bytes(torch.cat(got), wanted)
    turned = function(x.flip(0), sigma.flip(0))
    for got, wanted in zip(turned, whole, strict=True):
        assert_same_bytes(got.flip(0), wanted)


@pytest.mark.parametrize("process", [VP(), VE(), Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("prediction", ["score", "eps", "x0", "v", "velocity"])
def test_adapters_are_the_same_in_every_batch(process: Any, prediction: str) -> None:
    net = Knowing(make("diagonal", 10, (3,)).output_and_divergence)
    model = ProcessScore(net, process, conditioning="time", prediction=prediction)
    same_in_every_batch(model.output_and_divergence, randn(140, 3), uniform(140))
    if prediction != "velocity":
        adapter = NetworkScore(net, prediction=prediction)
        same_in_every_batch(adapter.output_and_divergence, randn(140, 3), uniform(140))


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize("gradients", [False, True])
def test_unit_vectors_are_the_same_in_every_batch(
    chunk_size: int | None, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "CHUNK_ELEMENTS", 2**12)  # so that the batch decides the chunks

    def function(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return (divergence_of(lambda x: -x.pow(3), x, chunk_size),)

    def divergence_of(model: Any, x: Tensor, chunk_size: int | None) -> Tensor:
        return traces.trace_by_unit_vectors(Call("fn", model), x, chunk_size=chunk_size)[1]

    x = randn(140, 23, dtype=torch.float32)
    x[::5, ::2] = 0.0
    x[3] = 0.0
    with torch.set_grad_enabled(gradients):
        same_in_every_batch(function, x, uniform(140))
        x = x[:9].clone().requires_grad_(gradients)
        trace = divergence_of(lambda x: -x.pow(3), x, chunk_size)
    wanted = -3 * x.detach().double().square().sum(1)
    torch.testing.assert_close(trace.detach().double(), wanted, rtol=1e-6, atol=0)
    if gradients:
        (gradient,) = torch.autograd.grad(trace.sum(), x)
        torch.testing.assert_close(gradient, -6 * x.detach())


@pytest.mark.parametrize("count", [*range(10), 63, 64, 65])
def test_tree_sums(count: int) -> None:
    x = randn(3, count, 2)
    torch.testing.assert_close(tree_sum(x, 1), x.sum(1))
    torch.testing.assert_close(tree_sum(x.mT, 2), x.sum(1))


# ---- where it is asked for ---------------------------------------------------------------------


class Knowing:
    """A function with a method that says its divergence."""

    def __init__(self, both: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.both = both
        self.asked = 0

    def __call__(self, *args: Any) -> Tensor:
        return self.both(*args)[0]

    def output_and_divergence(self, *args: Any) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return self.both(*args)


def curved(x: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """Of (3,), with what it is told in output and divergence."""
    mix = torch.arange(9, dtype=x.dtype).reshape(3, 3) / 9
    told = told.to(x.dtype)[:, None]
    slope = 1 - torch.tanh(x @ mix).square()
    return torch.tanh(x @ mix) * told + x**2, (slope * mix.diagonal() * told + 2 * x).sum(
        1
    ).double()


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    **{p: partial(NetworkScore, prediction=p) for p in ("score", "eps", "x0", "v")},
    "log_sigma": partial(NetworkScore, prediction="eps", conditioning="log_sigma"),
    "edm": EDMDenoiser,
    "score of edm": lambda net: NetworkScore(EDMDenoiser(net)),
    "index": lambda net: EpsScore(net, conditioning="index", sigmas=[3.0, 1.0, 0.1]),
    **{
        f"{type(process).__name__} {p} {how}": partial(
            ProcessScore, process=process, prediction=p, conditioning=how
        )
        for process in (VP(), VE(), RectifiedFlow())
        for p, how in (
            *((p, "time") for p in ("score", "eps", "x0", "v", "velocity")),
            *((p, "sigma") for p in ("score", "x0", "v")),
        )
    },
    "vp of a betas' index": lambda net: ProcessScore(
        net, VP(), conditioning="index", betas=torch.linspace(1e-4, 0.02, 50), prediction="eps"
    ),
}


@pytest.mark.parametrize("made", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters(made: Callable[[Any], Any]) -> None:
    """The chain rule, against Jacobians of the adapter itself."""
    model, x, sigma = made(Knowing(curved)), randn(6, 3), uniform(6) + 0.1
    method = known_divergence(model)
    assert method is not None
    output, divergence = method(x, sigma)
    assert_same_bytes(output, model(x, sigma))
    torch.testing.assert_close(
        divergence, trace_by_jacobians(model, x, sigma), rtol=1e-10, atol=1e-10
    )
    without = made(lambda *args: curved(*args)[0])
    assert not hasattr(without, "output_and_divergence")
    assert known_divergence(without) is None


def test_adapters_give_the_network_what_else_it_is_given() -> None:
    def both(x: Tensor, sigma: Tensor, *, pull: float) -> tuple[Tensor, Tensor]:
        return -pull * x, x.new_full((len(x),), -3 * pull, dtype=F64)

    class Model:
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            return both(*args, **kwargs)[0]

        output_and_divergence = staticmethod(both)

    for model in (NetworkScore(Model()), ProcessScore(Model(), VE())):
        found = model.output_and_divergence(randn(2, 3), 1.0, pull=2.0)[1]
        assert found.tolist() == [-6.0, -6.0]
        kwargs: dict[str, Any] = {"method": "exact", "model_kwargs": {"pull": 2.0}}
        assert fastscore.divergence(model, randn(2, 3), 1.0, **kwargs).tolist() == [-6.0, -6.0]


def test_what_knows_its_divergence() -> None:
    mixture, x = make("isotropic", 10, (3,)), randn(4, 3)
    wanted = mixture.output_and_divergence(x, 0.5)[1]
    knowing = [mixture, mixture.forward, AveragedModel(mixture), torch.compile(mixture)]
    knowing += [nn.DataParallel(mixture), NetworkScore(mixture)]
    for model in knowing:
        method = known_divergence(model)
        assert method is not None, model
        assert_same_bytes(method(x, 0.5)[1], wanted)
    method = known_divergence(partial(mixture, sigma=0.5))
    assert method is not None
    assert_same_bytes(method(x)[1], wanted)

    class Doubled(GaussianMixture):
        def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
            return 2 * super().forward(x, sigma)

    class DoubledScore(GaussianMixture):
        def score(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
            return 2 * super().score(x, sigma)

    class DoubledAdapter(NetworkScore):
        def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor:
            return 2 * super().forward(x, sigma, **model_kwargs)

    args = mixture.weights, mixture.means, mixture.variances
    hooked = GaussianMixture(*args)
    hooked.register_forward_hook(lambda module, given, output: 2 * output)
    patched = GaussianMixture(*args)
    patched.forward = lambda x, sigma=None: 2 * mixture(x, sigma)  # type: ignore[method-assign]
    doubled = [Doubled(*args), DoubledScore(*args), DoubledAdapter(mixture), hooked, patched]
    doubled += [lambda x, sigma: 2 * mixture(x, sigma)]
    for model in doubled:
        assert known_divergence(model) is None, model
        found = fastscore.divergence(model, x, 0.5, method="exact")
        torch.testing.assert_close(found, 2 * wanted)
    others = [torch.tanh, GaussianMixture, partial(mixture, x), fastscore.nn.ScoreMLP(3)]
    others += [EnergyScore(lambda x, sigma: x.square().sum(1)), mixture.log_prob]
    for model in others:
        assert known_divergence(model) is None, model


def test_exact_traces_ask_for_it() -> None:
    model, x = Knowing(curved), randn(6, 3)
    sigma = uniform(6) + 0.1
    found = fastscore.divergence(model, x, sigma, method="exact")
    assert model.asked == 1
    torch.testing.assert_close(found, curved(x, sigma)[1])
    assert fastscore.divergence(model, x.float(), sigma, method="exact").dtype == torch.float32
    mixture = make("isotropic", 10, (3,))
    loss = score_matching_loss(mixture, x, reduction="none")
    score, divergence = mixture.output_and_divergence(x)
    torch.testing.assert_close(loss, divergence + score.square().sum(1) / 2)


@pytest.mark.parametrize("found", [lambda x: None, lambda x: x, lambda x: torch.zeros(len(x) + 1)])
def test_what_is_no_divergence_is_refused(found: Callable[[Tensor], Any]) -> None:
    model = Knowing(lambda x: (-x, found(x)))
    with pytest.raises(
        (ValueError, TypeError), match=r"^divergence: model must be one whose output"
    ):
        fastscore.divergence(model, randn(2, 3), method="exact")
    with pytest.raises((ValueError, TypeError), match=r"^NetworkScore: model must be one whose"):
        NetworkScore(model, conditioning="none").output_and_divergence(randn(2, 3), 1.0)


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapted", [False, True])
def test_gradients(kind: str, adapted: bool) -> None:
    """Of divergence and loss, in x, the levels and a mixture's own tensors, by double autograd."""
    model = make(kind, 10, (3,))
    own = [] if kind == "parzen" else [model.means, model.variances]
    x, sigma = randn(5, 3).requires_grad_(), (uniform(5) + 0.3).requires_grad_()
    leaves = [x, sigma, *(tensor.requires_grad_() for tensor in own)]
    score: Any = ProcessScore(model, VE(), conditioning="sigma") if adapted else model

    def by_autograd() -> Tensor:
        output = score(x, sigma)
        rows = [
            torch.autograd.grad(output[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(3)
        ]
        return torch.stack(rows).sum(0)

    weights = randn(5, seed=8)
    found = fastscore.divergence(score, x, sigma, method="exact")
    got = torch.autograd.grad((weights * found).sum(), leaves)
    wanted = torch.autograd.grad((weights * by_autograd()).sum(), leaves)
    for one, other in zip(got, wanted, strict=True):
        assert float(other.abs().amax()) > 0
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_divergence_without_gradients_is_not_taken_while_they_are_recorded() -> None:
    @torch.no_grad()
    def divergence(x: Tensor) -> Tensor:
        return (-3 * x.square()).sum(1)

    model = Knowing(lambda x: (-x.pow(3), divergence(x)))
    x = randn(4, 3).requires_grad_()
    found = fastscore.divergence(model, x, method="exact")
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient, -6 * x.detach())
    with torch.no_grad():
        torch.testing.assert_close(fastscore.divergence(model, x, method="exact"), found)


def test_training_a_mixture_by_exact_score_matching() -> None:
    """The closed form's gradient lowers the loss that unit vectors give."""
    data = GaussianMixture([1.0], [[2.0, -1.0]], 0.5).sample(500, seed=0)
    model = GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
    means = model.means.requires_grad_()
    for _ in range(100):
        (gradient,) = torch.autograd.grad(score_matching_loss(model, data), means)
        with torch.no_grad():
            means -= 0.3 * gradient
    torch.testing.assert_close(means.detach()[0], data.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["diagonal", "parzen"])
def test_in_function_transforms_and_inference_mode(kind: str) -> None:
    model, x = make(kind, 10, (3,)), randn(5, 3)
    wanted = model.output_and_divergence(x, 0.5)[1]

    def of_one(point: Tensor) -> Tensor:
        return fastscore.divergence(model, point[None], 0.5, method="exact")[0]

    torch.testing.assert_close(torch.func.vmap(of_one)(x), wanted)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.output_and_divergence(leaf, 0.5)[1].sum(), leaf)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(of_one))(x), gradient)
    with torch.inference_mode():
        assert_same_bytes(fastscore.divergence(model, x, 0.5, method="exact"), wanted)


@pytest.mark.parametrize("module", [known, sums, alike])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
