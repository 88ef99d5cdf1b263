"""A score in another orthogonal basis, where what is measured is known elements."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor, nn

import fastscore
from fastscore import operators, reverse_sde, sde
from fastscore.guidance import InBasis
from fastscore.random import Stream, normal
from fastscore.samplers import _measured
from fastscore.scores import GaussianMixture, NetworkScore, Terms


class Colours(nn.Module):
    """Three channels turned: the first is grey."""

    def __init__(self) -> None:
        super().__init__()
        first = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
        self.register_buffer("q", torch.nn.functional.normalize(first.double(), dim=1))

    def A(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,bj...->bi...", self.q.to(x.dtype), x)

    def A_adjoint(self, z: Tensor) -> Tensor:
        return torch.einsum("ij,bi...->bj...", self.q.to(z.dtype), z)


class Grey:
    """The first of those alone: a measurement."""

    def A(self, x: Tensor) -> Tensor:
        return COLOURS.A(x)[:, :1]

    def A_dagger(self, y: Tensor) -> Tensor:
        return COLOURS.A_adjoint(torch.cat([y, torch.zeros_like(y), torch.zeros_like(y)], dim=1))


COLOURS = Colours()
SHAPE = (5, 3, 2, 2)
Q, _ = torch.linalg.qr(randn(12, 12, dtype=torch.float64))
COVARIANCE = Q @ torch.diag(torch.linspace(0.05, 2.0, 12).double()) @ Q.mT


def score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of a Gaussian that joins all channels and places."""
    values = torch.linspace(0.05, 2.0, 12).double()
    turned = x.double().flatten(1) @ Q
    found = -(turned / (values + sigma.double()[:, None] ** 2)) @ Q.mT
    return found.reshape(x.shape).to(x.dtype)


def test_it_is_the_score_of_the_turned_data() -> None:
    whole = torch.kron(COLOURS.q.double(), torch.eye(4).double())
    precision = torch.linalg.inv(whole @ COVARIANCE @ whole.mT + 0.49 * torch.eye(12).double())
    z = randn(*SHAPE, dtype=torch.float64)
    want = -(z.flatten(1) @ precision).reshape(SHAPE)
    torch.testing.assert_close(InBasis(score, COLOURS)(z, 0.7), want, rtol=1e-5, atol=1e-6)
    x = COLOURS.A_adjoint(z)
    rotated = COLOURS.A(score(x, torch.full((5,), 0.7)))
    torch.testing.assert_close(InBasis(score, COLOURS)(z, 0.7), rotated)


def known_run(sampler: str, **options: Any) -> Tensor:
    model, process = InBasis(score, COLOURS), sde.VE(0.02, 10.0)
    how: dict[str, Any] = {"known": 0.6, "mask": MASK, "seed": 0, "dtype": torch.float64, **options}
    if sampler == "annealed":
        levels = fastscore.geometric_sigmas(5.0, 0.05, 10)
        return fastscore.annealed_langevin(model, levels, shape=SHAPE, **how)
    if sampler == "reverse":
        return reverse_sde(model, process, shape=SHAPE, steps=10, corrector="annealed", **how)
    return fastscore.probability_flow(model, process, shape=SHAPE, solver=sampler, **how)


MASK = torch.tensor([True, False, False]).reshape(3, 1, 1)


@pytest.mark.parametrize("sampler", ["annealed", "reverse", "heun", "dpmpp_2m", "rk4", "rk45"])
def test_colours_are_restored_by_every_sampler(sampler: str) -> None:
    z = known_run(sampler)
    assert bool((z[:, 0] == 0.6).all())
    x = COLOURS.A_adjoint(z)
    torch.testing.assert_close(x.sum(1), torch.full((5, 2, 2), 0.6 * 3**0.5, dtype=x.dtype))
    assert float(x.var(1).min()) > 0


@pytest.mark.parametrize(
    "options", [{}, {"corrector": "annealed"}, {"predictor": "ancestral", "eta": 0.0}], ids=str
)
@pytest.mark.parametrize("process", [sde.VE(0.02, 10.0), sde.VP()], ids=lambda p: type(p).__name__)
def test_it_equals_the_projection_to_the_grey_picture(
    process: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-5 in float32, with the same noise: that of the one is turned into the other's."""
    grey = randn(5, 1, 2, 2)
    how = {"steps": 20, "seed": 3, "conditioning": "sigma", "grid": "karras", **options}
    x = 1.0 * randn(*SHAPE, seed=1)
    turned = reverse_sde(
        InBasis(score, COLOURS), process, COLOURS.A(x), known=grey, mask=MASK, **how
    )

    def of_the_row(key: Tensor, shape: Any, **named: Any) -> Tensor:
        draw = int(key[1])
        named["stream"] = Stream.LANGEVIN if draw else Stream.INIT
        return COLOURS.A_adjoint(normal(make_key(3, max(draw - 1, 0)), shape, **named))

    # In x the steps' own noise is not turned, so it is taken away: A sees none of it, and elsewhere
    # the score is asked in the basis again, with its noise.
    steps_noise = options.get("eta") == 0.0
    monkeypatch.setattr(_measured.random, "normal", of_the_row)
    if steps_noise:
        given = {"operator": Grey(), "measurement": grey}
        got = COLOURS.A(reverse_sde(score, process, x, **given, **how))
    else:
        monkeypatch.setattr(
            _measured.random, "normal", lambda *a, **k: COLOURS.A(of_the_row(*a, **k))
        )
        given = {"operator": FirstChannel(), "measurement": grey}
        got = reverse_sde(InBasis(score, COLOURS), process, COLOURS.A(x), **given, **how)
    torch.testing.assert_close(got, turned, rtol=1e-5, atol=1e-5)


class FirstChannel:
    def A(self, z: Tensor) -> Tensor:
        return z[:, :1]

    def A_dagger(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.zeros_like(y), torch.zeros_like(y)], dim=1)


def test_it_equals_the_projection_with_the_operators_of_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Grey is sqrt(3) times less than the first element of the basis that goes with it."""
    basis, grey = operators.ChannelBasis.from_grey("mean"), operators.Grey("mean")
    y, x = randn(5, 1, 2, 2), 10 * randn(*SHAPE, seed=1)
    how = {"steps": 20, "seed": 3, "grid": "karras", "predictor": "ancestral", "eta": 0.0}
    process, known = sde.VE(0.02, 10.0), 3**0.5 * y
    model = InBasis(score, basis)
    turned = reverse_sde(model, process, basis.A(x), known=known, mask=MASK, **how)

    def of_the_row(key: Tensor, shape: Any, **named: Any) -> Tensor:
        draw = int(key[1])
        named["stream"] = Stream.LANGEVIN if draw else Stream.INIT
        return basis.A_adjoint(normal(make_key(3, max(draw - 1, 0)), shape, **named))

    monkeypatch.setattr(_measured.random, "normal", of_the_row)
    got = reverse_sde(score, process, x, operator=grey, measurement=y, **how)
    torch.testing.assert_close(basis.A(got), turned, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grey.A(got), y, rtol=1e-5, atol=1e-5)


def test_the_flow_is_the_same_in_either_basis() -> None:
    process, z = sde.VE(0.02, 10.0), 10 * randn(*SHAPE, dtype=torch.float64)
    for solver in ("heun", "rk45"):
        there = fastscore.probability_flow(InBasis(score, COLOURS), process, z, solver=solver)
        here = fastscore.probability_flow(score, process, COLOURS.A_adjoint(z), solver=solver)
        limit = 1e-9 if solver == "heun" else 1e-2  # whose steps are by another norm of the error
        torch.testing.assert_close(there, COLOURS.A(here), rtol=limit, atol=limit)


def test_terms_are_handed_on() -> None:
    weight = torch.tensor([0.5, 0.25, 1.0, 2.0, 3.0])

    def terms(x: Tensor, sigma: Tensor, *, shift: float) -> Terms:
        return Terms([(score(x, sigma), 2.0), (x + shift, weight)])

    z, sigma = randn(*SHAPE), torch.full((5,), 0.5)
    found = InBasis(terms, COLOURS)(z, sigma, shift=1.0)
    assert isinstance(found, Terms)
    assert next(w for _, w in found.pairs) == 2.0
    assert found.pairs[1][1] is weight
    want = COLOURS.A(terms(COLOURS.A_adjoint(z), sigma, shift=1.0).total())
    torch.testing.assert_close(found.total(), want)


def test_the_divergence_is_that_of_the_score() -> None:
    mixture = GaussianMixture([0.3, 0.7], randn(2, 3), 0.5)
    model, z = InBasis(mixture, COLOURS), randn(6, 3)
    output, divergence = model.output_and_divergence(z, 0.8)
    assert_same_bytes(output, model(z, 0.8))
    assert divergence.dtype == torch.float64
    want = fastscore.divergence(lambda x: model(x, 0.8), z, method="exact")
    torch.testing.assert_close(divergence, want.double(), rtol=1e-5, atol=1e-5)
    assert not hasattr(InBasis(fastscore.nn.ScoreMLP(3), COLOURS), "output_and_divergence")
    there = fastscore.log_likelihood(model, z, sde.VE(0.02, 10.0))
    here = fastscore.log_likelihood(mixture, COLOURS.A_adjoint(z), sde.VE(0.02, 10.0))
    torch.testing.assert_close(there.log_prob, here.log_prob, rtol=1e-3, atol=1e-3)


def test_what_the_score_says_of_itself() -> None:
    net = fastscore.nn.ScoreMLP(3)
    net.sigma_range = (0.1, 5.0)
    model = InBasis(net, COLOURS)
    assert (model.conditioning, model.prediction) == ("sigma", "score")
    assert (model.data_shape, model.sigma_range) == ((3,), (0.1, 5.0))
    assert InBasis(score, COLOURS).data_shape is None
    denoiser = NetworkScore(lambda x, sigma: 0.5 * x, prediction="x0")
    z = randn(4, 3)
    torch.testing.assert_close(InBasis(denoiser, COLOURS)(z, 0.5), -0.5 * z / 0.25)
    again = copy.deepcopy(model)
    assert_same_bytes(again(z, 0.5), model(z, 0.5))

    class Flat:
        def A(self, x: Tensor) -> Tensor:
            return x.flatten(1).flip(1)

        def A_adjoint(self, z: Tensor) -> Tensor:
            return z.flip(1).reshape(len(z), 3, 2, 2)

    class Pictures(nn.Module):
        data_shape = (3, 2, 2)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return score(x, sigma)

    flat = InBasis(Pictures(), Flat())
    assert flat.data_shape == (12,)
    assert fastscore.annealed_langevin(flat, [1.0, 0.5], step_size=0.1).shape == (64, 12)


def test_dtypes_gradients_and_a_basis_that_writes() -> None:
    class Writes(Colours):
        def A(self, x: Tensor) -> Tensor:
            found = super().A(x)
            x.zero_()
            return found

        def A_adjoint(self, z: Tensor) -> Tensor:
            found = super().A_adjoint(z)
            z.zero_()
            return found

    z = randn(*SHAPE)
    model = InBasis(score, COLOURS)
    want = model(z, 0.5)
    assert_same_bytes(InBasis(score, Writes())(z, 0.5), want)
    assert_same_bytes(z, randn(*SHAPE))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        found = model(z.to(dtype), 0.5)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), want, rtol=5e-2, atol=5e-2)
    assert model(z[:0], 0.5).shape == (0, *SHAPE[1:])
    leaf = z.double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf, 0.5).square().sum(), leaf)
    x = COLOURS.A_adjoint(z.double()).requires_grad_()
    (inner,) = torch.autograd.grad(score(x, torch.full((5,), 0.5)).square().sum(), x)
    torch.testing.assert_close(gradient, COLOURS.A(inner), rtol=1e-5, atol=1e-6)


class Stretched(Colours):
    def A(self, x: Tensor) -> Tensor:
        return 1.01 * super().A(x)


class Inverse(Colours):
    """Invertible, but no rotation."""

    def A(self, x: Tensor) -> Tensor:
        return 2 * x

    def A_adjoint(self, z: Tensor) -> Tensor:
        return z / 2


class Fewer(Colours):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x)[:, :2]


class Complex(Colours):
    def A_adjoint(self, z: Tensor) -> Tensor:
        return torch.fft.fft(z, norm="ortho")


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (Stretched(), r"basis must be orthogonal, .* off by 0.01"),
        (Inverse(), r"basis must be orthogonal"),
        (Fewer(), r"A returns real numbers of shape \(5, 3, 2, 2\), got .*\(5, 2, 2, 2\)"),
        (Complex(), r"A_adjoint returns real numbers .*complex"),
    ],
)
def test_bases_that_are_none(basis: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^InBasis: .*{message}"):
        InBasis(score, basis)(randn(*SHAPE), 0.5)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"basis must be .* got Grey without A_adjoint"):
        InBasis(score, Grey())
    with pytest.raises(TypeError, match="score must be callable"):
        InBasis(3, COLOURS)
    with pytest.raises(ValueError, match="score must be a model of"):
        InBasis(InTime(), COLOURS)
    with pytest.raises(ValueError, match="InBasis: model must be a model whose output"):
        InBasis(lambda x, sigma: x[:, :1], COLOURS)(randn(*SHAPE), 0.5)
    with pytest.raises(ValueError, match="InBasis: sigma must be"):
        InBasis(score, COLOURS)(randn(*SHAPE), -0.5)


class InTime(nn.Module):
    conditioning = "time"

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def test_autocast_leaves_the_basis_alone() -> None:
    """A state rounded to half precision before the score sees it has lost the smallest levels."""
    layer = nn.Linear(3, 3)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return layer(x)

    z = randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = InBasis(model, COLOURS)(z, 0.5)
    assert found.dtype == torch.float32
    with torch.no_grad():
        plain = InBasis(model, COLOURS)(z, 0.5)
    torch.testing.assert_close(found, plain, rtol=0.05, atol=0.05)


def test_compiled_and_transformed() -> None:
    model, z = InBasis(score, COLOURS), randn(*SHAPE)
    level = torch.full((5,), 0.5)
    trace = fastscore.divergence(model, z, level, method="exact")  # its first call
    want = torch.autograd.functional.jacobian(lambda x: model(x, level), z.double())
    size = z[0].numel()
    rows = torch.stack([want.reshape(5, size, 5, size)[i, :, i].trace() for i in range(5)])
    torch.testing.assert_close(trace.double(), rows, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z, level), model(z, level))
