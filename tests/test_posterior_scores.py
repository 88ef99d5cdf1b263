"""Posterior scores of linear measurements: formulas, samples by themselves, mixtures, bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, randn
from posteriors import F64, Matrix, Picked, mixture_given, some_matrix
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastscore
from fastscore import operators
from fastscore.guidance import DPS, MMPS, PiGDM
from fastscore.guidance._denoised import FEW, one_for_all
from fastscore.guidance._rows import rows_of
from fastscore.scores import GaussianMixture
from fastscore.sde import VE

KINDS = [DPS, PiGDM, MMPS]
every_kind = pytest.mark.parametrize("kind", KINDS)
MIXTURE = GaussianMixture(
    [0.5, 0.3, 0.2], randn(3, 4, seed=5), torch.tensor([0.1, 0.2, 0.05])
).double()


TRIANGLE = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.25]])


class Stretched(Matrix):
    """Of rows of two lengths, with a closed form in the measurement's dtype, as ours have."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]))

    def solve(self, y: Tensor, r2: Any, noise2: float) -> Tensor:
        r2 = r2.to(y.dtype) if isinstance(r2, Tensor) else r2
        return torch.stack([y[:, 0] / (r2 + noise2), y[:, 1] / (9 * r2 + noise2)], dim=1)


def elementwise(x: Tensor, sigma: Tensor, **labels: Tensor) -> Tensor:
    """A score that is no Gaussian's, of elements alone: bytes do not hang on the batch."""
    return (torch.tanh(x / (1 + sigma[:, None] ** 2)) - x) / (0.1 + sigma[:, None] ** 2)


def jacobian_of_mean(score: Any, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """D and dD/dx of one sample, (d,) and (d, d), by autograd."""

    def mean(point: Tensor) -> Tensor:
        return (point[None] + s**2 * score(point[None], s[None]))[0]

    return mean(x), torch.autograd.functional.jacobian(mean, x)


@every_kind
def test_the_formula_written_out(kind: Any) -> None:
    matrix, levels = some_matrix(2, 4), torch.tensor([0.1, 1.0, 7.0], dtype=F64)
    x = randn(3, 4, dtype=F64) * (1 + levels[:, None])
    y = randn(3, 2, dtype=F64, seed=1)
    options: dict[str, Any] = {"scale": 0.7} if kind is DPS else {"noise": 0.2}
    options |= {} if kind is MMPS else {"data_variance": 1.5}
    terms = kind(MIXTURE, Matrix(matrix), **options)(x, levels, measurement=y)
    assert_same_bytes(terms.pairs[0][0], MIXTURE(x, levels))
    assert [weight for _, weight in terms.pairs] == [1.0, 1.0]
    for i, s in enumerate(levels):
        mean, jacobian = jacobian_of_mean(MIXTURE, x[i], s)
        off, r2 = y[i] - matrix @ mean, 1.5 * s**2 / (1.5 + s**2)
        eye = torch.eye(2, dtype=F64)
        if kind is DPS:
            solved = 0.7 * math.sqrt(2) / r2.sqrt() * off / off.norm()
        elif kind is PiGDM:
            solved = torch.linalg.solve(r2 * matrix @ matrix.T + 0.04 * eye, off)
        else:
            covariance = matrix @ (s**2 * jacobian) @ matrix.T
            solved = torch.linalg.solve(covariance + 0.04 * eye, off)
        want = jacobian.T @ matrix.T @ solved
        torch.testing.assert_close(terms.pairs[1][0][i], want, rtol=1e-8, atol=1e-10)


@every_kind
def test_colorization_is_inpainting_in_the_rotated_basis(kind: Any) -> None:
    """Grey known of colour: the score is that of a mask where grey is a coordinate."""
    basis = operators.ChannelBasis.from_grey()
    mask = torch.tensor([True, False, False]).reshape(3, 1, 1)
    shape = (3, 2, 2)
    mixture = GaussianMixture([0.6, 0.4], randn(2, *shape, seed=3), 0.2)

    def rotated(z: Tensor, sigma: Tensor) -> Tensor:
        return basis.A(mixture(basis.A_adjoint(z), sigma))

    x, sigma = randn(5, *shape), torch.linspace(0.1, 5, 5)
    y = operators.Mask(mask).A(basis.A(randn(1, *shape, seed=4)))
    there = kind(mixture, operators.Mask(mask) @ basis, y)(x, sigma).total()
    here = basis.A_adjoint(kind(rotated, operators.Mask(mask), y)(basis.A(x), sigma).total())
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
    assert float((there - mixture(x, sigma)).abs().max()) > 0.1


OPERATORS: dict[str, Any] = {
    "mask": operators.Mask(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.5),
    "pool": operators.AveragePool(2),
    "fourier": operators.MaskedFourier(torch.arange(8) < 3),
    "radon": operators.Radon(6, 8),
}


@every_kind
@pytest.mark.parametrize("name", OPERATORS)
def test_samples_agree_with_every_operator(kind: Any, name: str) -> None:
    """What is drawn of N(0, I) measures what was measured."""
    operator = OPERATORS[name]
    score = GaussianMixture([1.0], torch.zeros(1, 1, 8, 8), 1.0)
    truth = randn(1, 1, 8, 8, seed=2)
    y = operator.A(truth)
    options: dict[str, Any] = {} if kind is DPS else {"noise": 0.01}
    if kind is MMPS:
        options["iterations"] = 10
    model = kind(score, operator, y, **options)
    x = fastscore.reverse_sde(model, VE(0.01, 20.0), shape=(3, 1, 8, 8), steps=150, grid="log",
                              seed=0)  # fmt: skip
    off = (operator.A(x) - y).abs().flatten(1).norm(dim=1) / y.abs().norm()
    assert float(off.max()) < (0.2 if kind is DPS else 0.05)
    unseen = (x - truth).flatten(1).norm(dim=1) / truth.norm()
    assert float(unseen.min()) > (0.2 if name != "radon" else 0.0)


@every_kind
def test_a_sample_is_what_it_is_alone(kind: Any) -> None:
    """The same bytes: of the score itself, by batches, and of a sampler's samples."""
    operator = Picked(3, [0, 2])
    model = kind(elementwise, operator)
    x, sigma, y = randn(9, 3), torch.linspace(0.1, 3, 9), randn(9, 2, seed=1)
    whole = model(x, sigma, measurement=y).total()
    for i in (0, 4, 8):
        part = slice(i, i + 1)
        assert_same_bytes(model(x[part], sigma[part], measurement=y[part]).total(), whole[part])
    options: dict[str, Any] = {"steps": 20, "seed": 3, "model_kwargs": {"measurement": y}}
    drawn = fastscore.reverse_sde(model, VE(0.01, 5.0), x, **options)
    batched = fastscore.reverse_sde(model, VE(0.01, 5.0), x, batch_size=4, **options)
    assert_same_bytes(batched, drawn)
    options["model_kwargs"] = {"measurement": y[2:3]}
    alone = fastscore.reverse_sde(
        model, VE(0.01, 5.0), x[2:3], samples=torch.tensor([2]), **options
    )
    assert_same_bytes(alone, drawn[2:3])


@every_kind
@pytest.mark.parametrize("operator", [Picked(3, [0, 2]), Stretched(), Matrix(TRIANGLE)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_levels_that_are_one_number_change_no_byte(kind: Any, operator: Any, dtype: Any) -> None:
    """That of all samples is computed with by itself, those of a mixed batch as tensors."""
    options: dict[str, Any] = {"data_variance": 1.7} if kind is not MMPS else {}
    options |= {"noise": 0.3} if kind is not DPS else {}
    model = kind(elementwise, operator, **options)
    x, y = randn(7, 3, dtype=dtype), randn(7, 2, seed=1, dtype=dtype)
    with torch.no_grad():
        for level in torch.linspace(0.1, 3, 20).tolist():
            one, mixed = torch.full((7,), level, dtype=dtype), torch.full((7,), level, dtype=dtype)
            mixed[3] = 5.0
            assert one_for_all(one) == one[0].item()
            assert one_for_all(mixed) is None
            guided, expected = (model(x, s, measurement=y).total() for s in (one, mixed))
            others = [0, 1, 2, 4, 5, 6]
            assert_same_bytes(guided[others], expected[others])


def test_levels_are_not_read_where_that_takes_time() -> None:
    with torch.no_grad():
        assert one_for_all(torch.ones(FEW)) == 1.0
        assert one_for_all(torch.ones(FEW + 1)) is None
        assert one_for_all(torch.ones(3, device="meta")) is None
        assert one_for_all(torch.ones(0)) is None
    assert one_for_all(torch.ones(3)) is None  # where a gradient may be asked for


@every_kind
def test_measurements_go_with_samples_that_arrive(kind: Any) -> None:
    model = kind(elementwise, Picked(3, [0, 2]))
    x, y = 5 * randn(4, 3), randn(4, 2, seed=1)
    options: dict[str, Any] = {"solver": "rk45", "rtol": 1e-2, "atol": 1e-2}
    process, of = VE(0.05, 5.0), lambda y: {"measurement": y}
    whole = fastscore.probability_flow(model, process, x, model_kwargs=of(y), **options)
    alone = [
        fastscore.probability_flow(
            model, process, x[i : i + 1], model_kwargs=of(y[i : i + 1]), **options
        )
        for i in range(4)
    ]
    assert_same_bytes(torch.cat(alone), whole)


@every_kind
def test_one_measurement_serves_all(kind: Any) -> None:
    operator, x, y = Picked(3, [0, 2]), randn(5, 3), randn(2, seed=1)
    want = kind(elementwise, operator)(x, 0.5, measurement=y.expand(5, 2)).total()
    for model in (kind(elementwise, operator, y), kind(elementwise, operator, y[None])):
        assert_same_bytes(model(x, 0.5).total(), want)
    given = kind(elementwise, operator)(x, 0.5, measurement=y[None]).total()
    assert_same_bytes(given, want)
    assert_same_bytes(copy.deepcopy(model)(x, 0.5).total(), want)


@every_kind
def test_what_agrees_already_is_not_guided(kind: Any) -> None:
    """A norm of 0 has no gradient; 0/0 is 0."""
    operator, x = Picked(3, [0, 2]), randn(2, 3, dtype=F64)
    mean = x + 0.25 * elementwise(x, x.new_full((2,), 0.5))
    y = operator.A(mean)
    y[1] += 1
    guidance = kind(elementwise, operator)(x, 0.5, measurement=y).pairs[1][0]
    assert float(guidance[0].abs().max()) < 1e-6 if kind is not DPS else True
    assert bool(guidance.isfinite().all())
    assert bool(guidance[1].any())


# ---- how near they come to the exact posterior of a mixture --------------------------------------


def test_distances_to_the_posterior_of_a_mixture() -> None:
    """None is exact there. MMPS, which knows the covariance, comes nearest."""
    mixture = GaussianMixture([0.5, 0.3, 0.2], randn(3, 8, seed=7), 0.1)
    known, noise, count = [0, 1, 2, 3], 0.1, 1500
    y = mixture.sample(1, seed=11)[0, known] + noise * randn(4, seed=2)
    truth = mixture_given(mixture, known, y, noise).sample(count, seed=0)
    operator, distances = Picked(8, known), {}
    for model in (
        DPS(mixture, operator, y),
        PiGDM(mixture, operator, y, noise=noise),
        MMPS(mixture, operator, y, noise=noise),
    ):
        x = fastscore.reverse_sde(
            model, VE(0.01, 20.0), shape=(count, 8), steps=60, grid="karras", seed=1
        )
        distance = fastscore.evaluation.sliced_wasserstein(x, truth, seed=0)
        distances[type(model).__name__] = float(distance)
    unguided = fastscore.evaluation.sliced_wasserstein(mixture.sample(count, seed=3), truth, seed=0)
    assert distances["MMPS"] < distances["PiGDM"] < 0.5 * float(unguided)
    assert distances["MMPS"] < 0.1
    assert distances["DPS"] < 0.5 * float(unguided)


def test_the_posterior_of_a_mixture_that_it_is_compared_with() -> None:
    """Bayes: its score is the gradient of log p(x) + log p(y | x), of the mixture itself."""
    known, noise, y = [0, 2], 0.3, torch.tensor([0.4, -0.2], dtype=F64)
    posterior = mixture_given(MIXTURE, known, y, noise)
    x = randn(6, 4, dtype=F64)
    likelihood = -(x[:, known] - y) / noise**2
    want = MIXTURE(x)
    want[:, known] += likelihood
    torch.testing.assert_close(posterior(x), want)


# ---- precision, and the residual ----------------------------------------------------------------


@every_kind
def test_float32_is_near_float64(kind: Any) -> None:
    x, sigma = randn(40, 4), torch.logspace(-2, 2, 40)
    x = x * (1 + sigma[:, None])
    y = randn(40, 2, seed=1)
    model = kind(MIXTURE, Matrix(some_matrix(2, 4)))
    want = model(x.double(), sigma.double(), measurement=y.double()).total()
    got = model(x, sigma, measurement=y).total()
    off = (got.double() - want).norm(dim=1) / want.norm(dim=1)
    assert float(off.max()) < 2e-4
    assert got.dtype == torch.float32


def test_the_residual_falls_with_iterations() -> None:
    x, y = randn(5, 4, dtype=F64), randn(5, 3, dtype=F64, seed=1)
    operator, means = Matrix(some_matrix(3, 4)), []
    for iterations in (1, 2, 3):
        model = MMPS(MIXTURE, operator, noise=0.1, iterations=iterations)
        residual = model.residual(x, 0.5, measurement=y)
        assert residual.shape == (5,)
        means.append(float(residual.mean()))
    assert means[0] > means[1] > 1e-3
    assert means[2] < 1e-6


# ---- bad input ----------------------------------------------------------------------------------


@every_kind
def test_bad_input(kind: Any) -> None:
    operator, x, name = Picked(3, [0, 2]), randn(4, 3), kind.__name__
    model = kind(elementwise, operator)
    with pytest.raises(TypeError, match=f"{name}: operator must be .*A_adjoint"):
        kind(elementwise, torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match=f"{name}: score must be callable"):
        kind(3, operator)
    with pytest.raises(TypeError, match=f"{name}: measurement must be a torch.Tensor"):
        kind(elementwise, operator, [1.0, 2.0])
    with pytest.raises(ValueError, match=f"{name}: measurement must be given"):
        model(x, 1.0)
    with pytest.raises(ValueError, match=rf"{name}: measurement must be of shape \(4, 2\)"):
        model(x, 1.0, measurement=randn(4, 3))
    with pytest.raises(ValueError, match=r"model_kwargs=\{\"measurement\": y\}"):
        kind(elementwise, operator, randn(3, 2))(x, 1.0)
    with pytest.raises(ValueError, match=f"{name}: measurement must be given once"):
        kind(elementwise, operator, randn(1, 2))(x, 1.0, measurement=randn(4, 2))
    with pytest.raises(ValueError, match=f"{name}: x must be float32 or float64"):
        model(x.half(), 1.0, measurement=randn(4, 2))
    with pytest.raises(ValueError, match=f"{name}: sigma must be at least 0"):
        model(x, -1.0, measurement=randn(4, 2))
    if kind is DPS:
        with pytest.raises(ValueError, match="DPS: scale must be at least 0"):
            DPS(elementwise, operator, scale=-1.0)
        return
    with pytest.raises(ValueError, match=f"{name}: noise must be at least 0"):
        kind(elementwise, operator, noise=-0.1)
    with pytest.raises(ValueError, match=f"{name}: iterations must be at least 1"):
        kind(elementwise, operator, iterations=0)


# ---- operators with orthogonal rows -------------------------------------------------------------


class OfDeepinv:
    """A mask as another library has it: products alone."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x * self.mask

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return y * self.mask


def test_rows_are_found_by_looking() -> None:
    mask = torch.tensor([True, False, True, True])
    cases: list[tuple[Any, Tensor, tuple[float, bool, float] | None]] = [
        (operators.Identity(), randn(2, 4), (1.0, True, 4.0)),
        (operators.Mask(mask), randn(2, 4), (1.0, False, 3.0)),
        (OfDeepinv(mask), randn(2, 4), (1.0, False, 3.0)),
        (operators.AveragePool(2), randn(2, 1, 2, 2), (0.25, True, 4.0)),
        (operators.Blur(torch.tensor([[1.0, 2.0, 1.0]]) / 4), randn(2, 1, 4, 4), None),
        (operators.Radon(6, 8), operators.Radon(6, 8).A(randn(1, 1, 8, 8)), None),
        (Matrix(some_matrix(2, 4)), randn(2, 2), None),
        (Matrix(1.001 * torch.eye(4, dtype=F64)[:3]), randn(2, 3), (1.001**2, True, 3.0)),
        (Matrix(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.001], dtype=F64))), randn(2, 4), None),
        (Matrix(torch.zeros(2, 4, dtype=F64)), randn(2, 2), None),
    ]
    for operator, y, want in cases:
        assert (found := rows_of(operator, y)) == (None if want is None else pytest.approx(want))
        if want is not None:
            assert found is not None
            assert found.complete is want[1]


def test_rows_of_a_transform_to_complex_numbers() -> None:
    """Of a real image two frequencies are one another's conjugates: its rows are not orthogonal."""
    columns = operators.MaskedFourier(torch.arange(8) < 3)
    assert rows_of(columns, columns.A(randn(1, 1, 8, 8))) is None


@every_kind
def test_what_a_mask_leaves_out_plays_no_part(kind: Any) -> None:
    """A picture given as the measurement of its own part, whatever the operator looks like."""
    known = torch.tensor([True, False, True, False])
    x, y = randn(5, 4, dtype=F64), randn(5, 4, dtype=F64, seed=1)
    options: dict[str, Any] = {} if kind is DPS else {"noise": 0.1}
    want = kind(MIXTURE, Picked(4, [0, 2]), **options)(x, 0.5, measurement=y[:, known]).total()
    for operator in (operators.Mask(known), OfDeepinv(known)):
        got = kind(MIXTURE, operator, **options)(x, 0.5, measurement=y).total()
        torch.testing.assert_close(got, want)


@every_kind
def test_no_samples(kind: Any) -> None:
    model = kind(MIXTURE, Picked(4, [0, 2]))
    x = torch.zeros(0, 4, dtype=F64)
    assert model(x, 0.5, measurement=torch.zeros(0, 2, dtype=F64)).total().shape == (0, 4)


class Reads(TorchDispatchMode):
    """Counts what reads a value from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        reading = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select")
        self.count += func.overloadpacket.__name__ in reading
        return func(*args, **(kwargs or {}))


@every_kind
@pytest.mark.parametrize("operator", [Picked(4, [0, 2]), Matrix(some_matrix(2, 4))])
def test_the_host_reads_nothing_but_at_first(kind: Any, operator: Any) -> None:
    model = kind(MIXTURE, operator)
    x, sigma, y = randn(3, 4, dtype=F64), torch.ones(3, dtype=F64), randn(3, 2, dtype=F64, seed=1)
    counts = []
    for _ in range(3):
        with Reads() as reads, torch.no_grad():
            model(x, sigma, measurement=y)
        counts.append(reads.count)
    assert counts[0] > 0
    assert counts[1:] == [0, 0]
