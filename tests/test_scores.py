"""The exact scores against scipy and against autograd of their log density."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde, kstest, multivariate_normal, norm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore.scores import GaussianMixture, Parzen, mixture, parzen

F64 = torch.float64
SIX_POINTS = (-2.1, -1.3, -0.4, 1.9, 5.1, 6.2)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def make_mixture(event: tuple[int, ...], kind: str, dtype: torch.dtype = F64) -> GaussianMixture:
    means = 3 * randn(4, *event, seed=1)
    shape = {"number": (), "isotropic": (4,), "diagonal": (4, *event)}[kind]
    variances = randn(*shape, seed=2).abs() + 0.3
    weights = torch.tensor([0.1, 2.0, 0.5, 1.4], dtype=dtype)
    return GaussianMixture(weights, means.to(dtype), variances.to(dtype))


def mixture_log_density(mixture: GaussianMixture, x: Tensor, sigma: np.ndarray) -> np.ndarray:
    """log sum_k w_k N(x; mu_k, v_k + sigma^2) by scipy, sample by sample."""
    means = mixture.means.reshape(len(mixture.means), -1).numpy()
    variances = mixture.variances.reshape(len(means), -1).expand(len(means), means.shape[1])
    out = []
    for point, level in zip(x.reshape(len(x), -1).numpy(), sigma, strict=True):
        terms = [
            math.log(w) + multivariate_normal(m, np.diag(v + level**2)).logpdf(point)
            for w, m, v in zip(mixture.weights.numpy(), means, variances.numpy(), strict=True)
        ]
        out.append(np.logaddexp.reduce(terms))
    return np.array(out)


EVENTS = [(), (1,), (3,), (2, 3)]
KINDS = ["number", "isotropic", "diagonal"]
SIGMA = torch.tensor([0.0, 0.01, 0.5, 2.0, 40.0], dtype=F64)

# GaussianMixture


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_mixture_log_density_is_scipys(event: tuple[int, ...], kind: str) -> None:
    mixture = make_mixture(event, kind)
    x = 3 * randn(5, *event, seed=3)
    assert mixture.data_shape == event
    expected = mixture_log_density(mixture, x, SIGMA.numpy())
    np.testing.assert_allclose(mixture.log_prob(x, SIGMA), expected, rtol=1e-12)
    np.testing.assert_allclose(
        mixture.log_prob(x), mixture_log_density(mixture, x, np.zeros(5)), rtol=1e-12
    )


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_mixture_score_is_the_gradient_of_its_log_density(event, kind) -> None:
    mixture = make_mixture(event, kind)
    x = (3 * randn(5, *event, seed=3)).requires_grad_()
    for sigma in (None, SIGMA, 0.7, torch.tensor(0.7)):
        (gradient,) = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)
        torch.testing.assert_close(mixture(x, sigma), gradient, rtol=1e-10, atol=1e-12)


def test_mixture_score_is_differentiable() -> None:
    mixture = make_mixture((2,), "diagonal")
    x, sigma = randn(3, 2).requires_grad_(), SIGMA[2:].clone().requires_grad_()
    assert torch.autograd.gradcheck(mixture, (x, sigma))
    assert torch.autograd.gradcheck(mixture.log_prob, (x, sigma))


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_holds_where_every_density_underflows(kind: str) -> None:
    mixture = make_mixture((3,), kind, torch.float32)
    far = torch.full((1, 3), 1e6)
    with torch.no_grad():
        assert torch.isfinite(mixture(far)).all()
        assert torch.isfinite(mixture.log_prob(far)).all()
    # The one component that is left there: the widest.
    v = mixture.variances if kind == "number" else mixture.variances.reshape(4, -1)
    if kind == "isotropic":
        k = int(v.argmax())
        torch.testing.assert_close(mixture(far), (mixture.means[k] - far) / v[k])


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
def test_mixture_answers_in_the_dtype_of_x(dtype: torch.dtype) -> None:
    exact, x = make_mixture((3,), "diagonal"), randn(5, 3).to(dtype)
    mixture = make_mixture((3,), "diagonal", torch.float32)
    sigma = SIGMA.float()
    out = mixture(x, sigma)
    assert out.dtype == mixture.log_prob(x).dtype == dtype
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(out.double(), exact(x.double(), SIGMA), rtol=20 * eps, atol=20 * eps)


def test_mixture_of_point_masses_is_the_empirical_distribution() -> None:
    data = randn(6, 2, seed=5)
    mixture, parzen = GaussianMixture(torch.ones(6), data, 0.0), Parzen(data)
    x = randn(5, 2, seed=6)
    torch.testing.assert_close(
        mixture(x, SIGMA[1:].repeat(2)[:5]), parzen(x, SIGMA[1:].repeat(2)[:5])
    )
    for call in (mixture, mixture.log_prob, parzen, parzen.log_prob):
        with pytest.raises(ValueError, match=r"sigma must be given for a .* 0"):
            call(x)


def test_mixture_samples_have_its_law() -> None:
    mixture = GaussianMixture([0.8, 0.2], [-3.0, 2.0], [0.25, 1.0])

    def cdf(x: np.ndarray, sigma: float) -> np.ndarray:
        a = norm.cdf(x, -3, math.sqrt(0.25 + sigma**2))
        return 0.8 * a + 0.2 * norm.cdf(x, 2, math.sqrt(1 + sigma**2))

    for sigma in (None, 1.5):
        x = mixture.sample(20_000, sigma=sigma, seed=0).numpy()
        assert kstest(x, lambda x, s=sigma or 0.0: cdf(x, s)).pvalue > 1e-4
        assert kstest(x, lambda x, s=sigma or 0.0: cdf(x, s + 0.5)).pvalue < 1e-6


def test_diagonal_mixture_samples_have_its_variances() -> None:
    variances = torch.tensor([[[0.5, 2.0], [1.0, 4.0]]])
    x = GaussianMixture([3.0], torch.zeros(1, 2, 2), variances).sample(20_000, seed=1)
    assert x.shape == (20_000, 2, 2)
    torch.testing.assert_close(x.var(0), variances[0], rtol=0.06, atol=0)


@pytest.mark.parametrize("model", [make_mixture((3,), "diagonal"), Parzen(randn(9, 3), 0.5)])
def test_samples_are_reproducible(model: GaussianMixture | Parzen) -> None:
    first = model.sample(5, seed=3)
    assert first.dtype == F64
    assert torch.equal(first, model.sample(5, seed=3))
    assert torch.equal(first, model.sample(5, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, model.sample(5, seed=4))
    torch.manual_seed(3)
    assert torch.equal(first, model.sample(5))
    with pytest.raises(ValueError, match=r"sample: n must be at least 1, got 0"):
        model.sample(0)
    with pytest.raises(ValueError, match=r"sample: seed must be left out when generator is given"):
        model.sample(1, seed=1, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"sample: sigma must be at least 0.0, got -1.0"):
        model.sample(1, sigma=-1.0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([1.0], 3.0, 1.0), r"means must be of shape \(components, \*event\), not empty"),
        (([], torch.zeros(0, 2), 1.0), r"means must be of shape"),
        (([1.0], [[0.0], [1.0]], 1.0), r"weights must be of shape \(2,\) \(one for each mean\)"),
        (([1.0, 1.0], [[0.0], [1.0]], [1.0, 1.0, 1.0]), r"variances must be a number or of shape"),
        (([1.0, -1.0], [0.0, 1.0], 1.0), r"weights must be not negative, with a positive sum"),
        (([0.0, 0.0], [0.0, 1.0], 1.0), r"weights must be not negative, with a positive sum"),
        (([1.0, 1.0], [0.0, 1.0], [1.0, -1.0]), r"variances must be at least 0, got -1.0"),
        (([1.0, 1.0], [0.0, math.nan], 1.0), r"means must be finite everywhere"),
        (([1.0, math.inf], [0.0, 1.0], 1.0), r"weights must be finite everywhere"),
    ],
)
def test_mixture_bad_input(args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match="^GaussianMixture: " + message):
        GaussianMixture(*args)


def test_mixture_of_something_else() -> None:
    with pytest.raises(
        TypeError, match=r"^GaussianMixture: means must be a tensor or nested lists"
    ):
        GaussianMixture([1.0], "means", 1.0)


# Parzen


def test_worked_example_of_six_points() -> None:
    # scipy's kernel density estimate scales its factor by the data's standard deviation.
    points = np.array(SIX_POINTS)
    estimate = gaussian_kde(points, bw_method=1.5 / points.std(ddof=1))
    x = torch.linspace(-8, 12, 41, dtype=F64)
    parzen = Parzen(torch.tensor(SIX_POINTS, dtype=F64), variance=2.25)
    np.testing.assert_allclose(parzen.log_prob(x).exp(), estimate(x.numpy()), rtol=1e-12)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("variance", [0.0, 0.36])
@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
def test_parzen_is_the_mixture_of_its_points(event, variance, chunk_size) -> None:
    data = randn(20, *event, seed=4)
    parzen = Parzen(data, variance, chunk_size=chunk_size)
    mixture = GaussianMixture(torch.ones(20), data, variance)
    x, sigma = 2 * randn(5, *event, seed=5), torch.tensor([0.01, 0.1, 1.0, 9.0, 50.0], dtype=F64)
    assert parzen.data_shape == event
    torch.testing.assert_close(parzen(x, sigma), mixture(x, sigma), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        parzen.log_prob(x, sigma), mixture.log_prob(x, sigma), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_parzen_keeps_its_digits_at_the_smallest_sigma(offset: float) -> None:
    # |x|^2 + |y|^2 - 2xy in float32 would be off by more than sigma^2 here.
    data = torch.rand(50, 200, generator=torch.Generator().manual_seed(0)) + offset
    data[1::2] = data[::2] + 0.001 * randn(25, 200, dtype=torch.float32)
    x = data[:10] + 0.01 * randn(10, 200, seed=1, dtype=torch.float32)
    out = Parzen(data)(x, 0.01)
    exact = GaussianMixture(torch.ones(50, dtype=F64), data.double(), 0.0)(x.double(), 0.01)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, exact.float(), rtol=1e-6, atol=1e-6)
    # The case is hard: both neighbours of a pair have weight.
    posterior = exact * 0.01**2 + x.double()
    assert ((posterior - data[:10].double()).norm(dim=1) > 1e-3).any()


def test_parzen_far_away_points_to_the_nearest_sample() -> None:
    data = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    x = torch.tensor([[1e6, 0.0], [-1e6, 0.0]])
    parzen = Parzen(data, chunk_size=1)
    torch.testing.assert_close(parzen(x, 0.1), (data.flip(0) - x) / 0.1**2)
    assert torch.isfinite(parzen.log_prob(x, 0.1)).all()


def test_parzen_autograd() -> None:
    parzen = Parzen(randn(7, 2, seed=4), 0.2, chunk_size=3)
    x, sigma = randn(3, 2).requires_grad_(), SIGMA[2:].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(parzen.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(parzen(x, sigma), gradient, rtol=1e-9, atol=1e-11)
    assert torch.autograd.gradcheck(parzen, (x, sigma))
    assert torch.autograd.gradcheck(parzen.log_prob, (x, sigma))


def test_parzen_memory_does_not_grow_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    # The largest tensor made on the way, whatever the size of the data set.
    largest = 0

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out._base is None:
                largest = max(largest, out.numel())
            return out

    parzen = Parzen(torch.zeros(5000, 3), chunk_size=100)
    with torch.no_grad(), Recorder():
        parzen(torch.zeros(8, 3), 1.0)
    assert 0 < largest <= 800


def test_parzen_samples_have_its_law() -> None:
    parzen = Parzen(SIX_POINTS, 0.25)

    def cdf(x: np.ndarray) -> np.ndarray:
        return norm.cdf(x[:, None], SIX_POINTS, math.sqrt(0.25 + 0.6**2)).mean(1)

    assert kstest(parzen.sample(20_000, sigma=0.6, seed=0).numpy(), cdf).pvalue > 1e-4
    assert kstest(parzen.sample(20_000, seed=0).numpy(), cdf).pvalue < 1e-6


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.zeros(0, 2),), {}, "data must be of shape"),
        ((3.0,), {}, "data must be of shape"),
        (([1.0, math.nan],), {}, "data must be finite everywhere"),
        (([1.0], -1.0), {}, "variance must be at least 0.0, got -1.0"),
        (([1.0],), {"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ((torch.tensor([True]),), {}, "data must be real numbers, got dtype torch.bool"),
    ],
)
def test_parzen_bad_input(args: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^Parzen: " + message):
        Parzen(*args, **kwargs)


# What both exact scores share

BOTH = pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: make_mixture((2, 3), "diagonal", torch.float32), id="mixture"),
        pytest.param(lambda: Parzen(randn(9, 2, 3, dtype=torch.float32), 0.3), id="parzen"),
    ],
)


@BOTH
def test_points_and_levels_that_do_not_fit(model) -> None:
    model, x = model(), torch.zeros(4, 2, 3)
    name = type(model).__name__
    for call, fn in ((model, f"{name}.score"), (model.log_prob, f"{name}.log_prob")):
        for wrong in (torch.zeros(4, 3, 2), torch.zeros(2, 3), torch.zeros(4, 6)):
            with pytest.raises(
                ValueError, match=rf"^{fn}: x must be of shape \(batch, 2, 3\), got"
            ):
                call(wrong)
        with pytest.raises(ValueError, match=rf"^{fn}: sigma must be floating-point .*\(4,\)"):
            call(x, torch.ones(3))
        with pytest.raises(ValueError, match=rf"^{fn}: sigma must be floating-point .*\(4,\)"):
            call(x, torch.ones(4, dtype=torch.int64))
        with pytest.raises(ValueError, match=rf"^{fn}: sigma must be floating-point .*\(4,\)"):
            call(x, torch.ones(4, 1))
        with pytest.raises(ValueError, match=rf"^{fn}: sigma must be at least 0"):
            call(x, -1.0)
        with pytest.raises(TypeError, match=rf"^{fn}: sigma must be a real number, got str"):
            call(x, "1")
        with pytest.raises(ValueError, match=rf"^{fn}: x must be on cpu"):
            call(x.to("meta"), 1.0)
        with pytest.raises(TypeError, match=rf"^{fn}: x must be a torch.Tensor"):
            call([[0.0]])


@BOTH
def test_modules_move_save_and_take_empty_batches(model) -> None:
    model = model().double()
    x = randn(3, 2, 3)
    assert model(x, 1.0).dtype == F64
    assert next(model.buffers()).dtype == F64
    assert model(x[:0], 1.0).shape == (0, 2, 3)
    assert model.log_prob(x[:0]).shape == (0,)
    assert list(model.parameters()) == []
    assert "data_shape=(2, 3)" in repr(model)


@BOTH
def test_function_transforms_and_compile(model) -> None:
    model = model()
    x, v = randn(3, 2, 3, dtype=torch.float32), randn(3, 2, 3, seed=9, dtype=torch.float32)
    sigma = torch.tensor([0.5, 1.0, 2.0])
    _, tangent = torch.func.jvp(lambda p: model(p, sigma), (x,), (v,))
    # The Hessian of log p is symmetric: forward and reverse mode agree.
    _, pullback = torch.func.vjp(lambda p: model(p, sigma), x)
    torch.testing.assert_close(tangent, pullback(v)[0], rtol=1e-4, atol=1e-5)
    one_by_one = torch.vmap(lambda p, s: model(p[None], s[None])[0])(x, sigma)
    torch.testing.assert_close(one_by_one, model(x, sigma))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, sigma), model(x, sigma))


@pytest.mark.parametrize("module", [mixture, parzen], ids=lambda m: m.__name__)
def test_docstring_examples(module) -> None:
    assert doctest.testmod(module).failed == 0
