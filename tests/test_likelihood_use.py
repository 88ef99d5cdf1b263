"""Log densities as users take them: a sample is its own; networks of real life; bad input."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import pytest
import torch
from continuous import MEAN, VARIANCE, gaussian
from helpers import assert_same_bytes, randn
from memory import peak_bytes
from torch import Tensor, nn

import fastscore
from fastscore import log_likelihood, sde
from fastscore.evaluation import LogLikelihood
from fastscore.scores import GaussianMixture, Parzen

# A field of many modes is no score of noise alone, high up.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*at the highest noise level", "ignore:.*(the latents|the data's mean square)"
)
VE = sde.VE(0.01, 20.0)
FIELDS = ("log_prob", "log_prior", "latent", "evaluations", "failed")


def rows_of(found: LogLikelihood, rows: Any) -> list[Tensor]:
    return [getattr(found, name)[rows] for name in FIELDS]


def assert_same(a: LogLikelihood, b: LogLikelihood, rows: Any = slice(None)) -> None:
    for one, other in zip(rows_of(a, slice(None)), rows_of(b, rows), strict=True):
        assert_same_bytes(one, other)


def elementwise(x: Tensor, sigma: Tensor) -> Tensor:
    """A field of many modes, whose rows know nothing of one another."""
    y, s = x.double(), sigma.double().reshape(-1, *[1] * (x.dim() - 1))
    return ((y * y * y * 0.02 - y) / (1 + s * s) / (1 + 0.02 * y * y)).to(x.dtype)


MODELS: dict[str, Any] = {
    "mixture": GaussianMixture([0.4, 0.6], [[1.0, 0.0, 2.0], [-1.0, 0.5, 0.0]], [0.1, 0.3]),
    "parzen": Parzen(randn(9, 3), variance=0.05, chunk_size=4),
    "unit vectors": elementwise,
    "probes": elementwise,
}


# ---- a sample is its own -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sample_has_the_same_bytes_in_any_company(name: str, dtype: torch.dtype) -> None:
    x = randn(19, 3).to(dtype)
    x[4] *= 40  # an outlier, which takes steps of its own
    model = MODELS[name]
    model = model.to(dtype) if isinstance(model, nn.Module) else model
    how: dict[str, Any] = {"seed": 7}
    if name == "probes":
        how |= {"divergence": "hutchinson", "probes": 3}
    whole = log_likelihood(model, x, VE, **how)
    assert len(whole.evaluations.unique()) > 1
    for row in (0, 4, 18):
        alone = log_likelihood(model, x[row : row + 1], VE, sample_offset=row, **how)
        assert_same(alone, whole, slice(row, row + 1))
        assert_same_bytes(alone.stderr, whole.stderr[row : row + 1])
    shard = log_likelihood(model, x[5:12], VE, sample_offset=5, **how)
    assert_same(shard, whole, slice(5, 12))
    some = torch.tensor([17, 4, 2])
    assert_same(log_likelihood(model, x[some], VE, samples=some, **how), whole, some)
    assert_same(log_likelihood(model, x, VE, chunk_size=4, **how), whole)
    if name in ("unit vectors", "probes"):
        assert_same(log_likelihood(model, x, VE, batch_size=4, **how), whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int) -> None:
    x, before = randn(700, 3), torch.get_num_threads()
    mixture = MODELS["mixture"].float()
    reference = log_likelihood(mixture, x, VE)
    torch.set_num_threads(threads)
    try:
        assert_same(log_likelihood(mixture, x, VE), reference)
    finally:
        torch.set_num_threads(before)


def test_an_outlier_costs_its_own_evaluations() -> None:
    x = randn(8, 3)
    mixture = MODELS["mixture"].float()
    before = log_likelihood(mixture, x, VE)
    company = torch.cat([x, torch.full((1, 3), 300.0)])
    with_outlier = log_likelihood(mixture, company, VE)
    assert_same(before, with_outlier, slice(0, 8))
    assert with_outlier.evaluations[8] != before.evaluations.max()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 20])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_network_in_calls_of_fixed_size(batch_size: int, divergence: str) -> None:
    torch.manual_seed(0)
    net, x = fastscore.nn.ScoreMLP(5, hidden=(16, 16, 16)).eval(), randn(7, 5)
    how: dict[str, Any] = {"divergence": divergence, "probes": 2, "seed": 3}
    whole = log_likelihood(net, x, VE, **how)
    found = log_likelihood(net, x, VE, batch_size=batch_size, **how)
    torch.testing.assert_close(found.log_prob, whole.log_prob, rtol=0, atol=1e-3)
    own = log_likelihood(net, x, VE, batch_size=batch_size, **how | {"seed": list(range(7))})
    alone = log_likelihood(net, x[5:6], VE, batch_size=batch_size, **how | {"seed": 5})
    torch.testing.assert_close(own.log_prob[5:6], alone.log_prob, rtol=0, atol=1e-3)


def test_what_belongs_to_the_samples_goes_with_them() -> None:
    """Classes, in chunks, in batches, and when some have arrived."""
    means = torch.tensor([[3.0, 0.0], [-2.0, 1.0], [0.0, 8.0]])

    def model(x: Tensor, sigma: Tensor, label: Tensor, table: Tensor) -> Tensor:
        assert len(label) == len(x)
        return (table[label] - x) / (0.25 + sigma[:, None] ** 2)

    label = torch.arange(10) % 3
    x = means[label] + 0.5 * randn(10, 2)
    named = {"label": label, "table": fastscore.shared(means)}
    for how in ({}, {"chunk_size": 3}, {"batch_size": 4}, {"chunk_size": 7, "batch_size": 3}):
        found = log_likelihood(model, x, VE, model_kwargs=named, prior=(0.0, 0.5), **how)
        for row in range(10):
            process = GaussianMixture([1.0], means[label[row]][None], 0.25).double()
            exact = log_likelihood(process, x[row : row + 1].double(), VE, prior=(0.0, 0.5))
            torch.testing.assert_close(
                found.log_prob[row : row + 1], exact.log_prob, rtol=0, atol=5e-3
            )


def test_any_shape_of_data_and_none() -> None:
    for shape in ((), (1,), (2, 1, 3), (4, 0)):
        x = randn(3, *shape)
        found = log_likelihood(gaussian, x, VE)
        assert found.latent.shape == x.shape
        assert found.log_prob.shape == (3,)
    assert bool((log_likelihood(gaussian, randn(2, 4, 0), VE).log_prob == 0).all())
    none = log_likelihood(gaussian, randn(0, 5), VE)
    assert none.log_prob.shape == none.evaluations.shape == (0,)
    assert repr(none) == "LogLikelihood(of no samples)"


def test_nothing_is_changed_and_nothing_has_a_graph() -> None:
    x = randn(4, 3).requires_grad_()
    copy, version = x.detach().clone(), x._version
    found = log_likelihood(fastscore.nn.ScoreMLP(3), x, VE, seed=0)
    assert not found.log_prob.requires_grad
    assert not found.latent.requires_grad
    assert_same_bytes(x.detach(), copy)
    assert x._version == version
    strided = randn(3, 4).T
    assert_same(log_likelihood(elementwise, strided, VE),
                log_likelihood(elementwise, strided.contiguous(), VE))  # fmt: skip


def test_inference_mode_and_gradients_off() -> None:
    torch.manual_seed(1)
    net, x = fastscore.nn.ScoreMLP(9, hidden=(8, 8, 8)), randn(4, 9)
    reference = log_likelihood(net, x, VE, seed=0)
    with torch.no_grad():
        assert_same(log_likelihood(net, x, VE, seed=0), reference)
    with torch.inference_mode():
        found = log_likelihood(net, x.clone(), VE, seed=0)
        torch.testing.assert_close(found.log_prob, reference.log_prob, rtol=0, atol=1e-4)


def test_seeds() -> None:
    torch.manual_seed(1)
    net, x = fastscore.nn.ScoreMLP(9, hidden=(8, 8, 8)), randn(4, 9)
    torch.manual_seed(5)
    first = log_likelihood(net, x, VE)
    torch.manual_seed(5)
    assert_same(log_likelihood(net, x, VE), first)
    assert (log_likelihood(net, x, VE).log_prob - first.log_prob).abs().max() > 0
    own = log_likelihood(net, x, VE, generator=torch.Generator().manual_seed(2))
    assert_same(own, log_likelihood(net, x, VE, generator=torch.Generator().manual_seed(2)))


def test_progress_counts_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, **given: Any) -> None:
            self.given, self.count = given, 0
            bars.append(self)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def update(self, n: int) -> None:
            self.count += n

    monkeypatch.setattr("fastscore.evaluation.likelihood.progress_bar_class", lambda fn: Bar)
    log_likelihood(elementwise, randn(11, 3), VE, progress=True, chunk_size=4)
    (bar,) = bars
    assert bar.given["total"] == bar.count == 11


@pytest.mark.parametrize("solver", ["rk45", "rk23"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_memory_does_not_grow_with_the_steps(solver: str, divergence: str) -> None:
    x = torch.randn(4000, 2) if divergence == "exact" else torch.randn(8, 20_000)

    def peak(few: bool) -> int:
        size = {"rtol": 1e-2, "atol": 1e-2} if few else {"rtol": 1e-5, "atol": 1e-5}
        return peak_bytes(
            lambda: log_likelihood(
                elementwise, x, VE, divergence=divergence, solver=solver, seed=0, **size
            )
        )

    peak(True)
    few, many = peak(True), peak(False)
    assert many <= 1.15 * few  # where some have arrived, those that have not are held twice


# ---- what is refused -----------------------------------------------------------------------------


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.uint8)}, ValueError, "dequantize"),
        ({"x": torch.zeros(2, 3, dtype=torch.complex64)}, ValueError, "floating-point"),
        ({"x": numpy.zeros((2, 3))}, TypeError, "x must be a torch.Tensor"),
        ({"x": torch.tensor(1.0)}, ValueError, "x must"),
        ({"model": 3}, TypeError, "model must be callable"),
        ({"sde": torch.linspace(1, 0.1, 5)}, TypeError, "sde"),
        ({"divergence": "trace"}, ValueError, "divergence must be one of 'auto'"),
        ({"probes": 0}, ValueError, "probes must be at least 1, got 0"),
        ({"probes": 1.5}, TypeError, "probes must be an integer"),
        ({"distribution": "uniform"}, ValueError, "distribution must be one of"),
        ({"solver": "heun"}, ValueError, "solver must be one of 'rk45', 'rk23'"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"rtol": -1.0}, ValueError, "rtol must be at least 0"),
        ({"atol": 0.0}, ValueError, "atol must be positive"),
        ({"log_prob_atol": 0.0}, ValueError, "log_prob_atol must be positive"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
        ({"failed": "ignore"}, ValueError, "failed must be one of"),
        ({"prior": 1.0}, TypeError, "prior must be None or a pair"),
        ({"prior": (0.0, -1.0)}, ValueError, r"prior\[1\] must be a standard deviation"),
        ({"prior": (torch.zeros(4), 1.0)}, ValueError, r"prior\[0\] must be of a sample's shape"),
        ({"prior": (torch.tensor(torch.nan), 1.0)}, ValueError, r"prior\[0\]"),
        ({"sigma_data": 0.0}, ValueError, "sigma_data must be positive"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"conditioning": "labels"}, ValueError, "conditioning"),
        ({"prediction": "noise"}, ValueError, "prediction"),
        ({"sigma_range": (30.0, 60.0)}, ValueError, "noise levels"),
        ({"samples": torch.zeros(3, dtype=torch.int64)}, ValueError, "samples"),
        ({"probe": 2}, TypeError, "there is no option 'probe'.*did you mean 'probes'"),
        ({"label": 2}, TypeError, "model_kwargs"),
        ({"model": lambda x, s: x[:1]}, ValueError, "model"),
        ({"model": lambda x, s: x.sum(1)}, ValueError, "model"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model": gaussian, "x": X, "sde": VE, **change}
    with pytest.raises(error, match=message):
        log_likelihood(given.pop("model"), given.pop("x"), given.pop("sde"), **given)


def test_a_process_without_noise_at_the_data() -> None:
    class Bare:
        conditioning, t_eps, t_min = "sigma", 0.0, 0.0

        def alpha(self, t: Any) -> Any:
            return 1.0 + 0 * t

        def sigma(self, t: Any) -> Any:
            return 10 * t

    with pytest.raises(ValueError, match="noise at its t_eps"):
        log_likelihood(gaussian, X, Bare())


# ---- samples that fail ---------------------------------------------------------------------------


def test_data_that_are_not_finite_are_named() -> None:
    x = randn(6, 3)
    x[4, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in sample 4 "):
        log_likelihood(elementwise, x, VE)
    with pytest.raises(ValueError, match="in sample 104 "):
        log_likelihood(elementwise, x, VE, sample_offset=100)
    with pytest.warns(UserWarning, match=r"1 of 6 samples .*\(number 4\); the result tells"):
        found = log_likelihood(elementwise, x, VE, failed="return", chunk_size=6)
    assert found.failed.tolist() == [row == 4 for row in range(6)]
    assert found.log_prob.isnan().tolist() == found.failed.tolist()
    good = torch.tensor([0, 1, 2, 3, 5])
    assert_same(log_likelihood(elementwise, x[good], VE, samples=good), found, good)


@pytest.mark.parametrize("what", ["output", "derivative"])
def test_a_model_that_returns_nan_for_one_sample(what: str) -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        score = elementwise(x, sigma)
        far = (x[:, :1] > 50) & (sigma[:, None] > 1)
        if what == "output":
            return torch.where(far, torch.nan, score)
        return score + torch.where(far, (x - x.detach()).abs().sqrt(), 0.0)

    x = randn(5, 3)
    x[2, 0] = 200.0
    with pytest.raises(RuntimeError, match=r"sample 2 can't meet .* returns NaN or infinity"):
        log_likelihood(model, x, VE)
    with pytest.warns(UserWarning, match="1 of 5 samples"):
        found = log_likelihood(model, x, VE, failed="return")
    assert found.failed.tolist() == [False, False, True, False, False]
    good = torch.tensor([0, 1, 3, 4])
    assert_same(log_likelihood(elementwise, x[good], VE, samples=good), found, good)
    with pytest.raises(RuntimeError, match="sample 2 can't meet"):
        log_likelihood(model, x, VE, steps=12)


def test_tolerances_that_cannot_be_met() -> None:
    with pytest.raises(RuntimeError, match=r"sample 0 can't meet its tolerances .* at t = "):
        log_likelihood(elementwise, randn(2, 3), VE, rtol=0.0, atol=1e-30)
    with pytest.raises(
        RuntimeError, match=r"atol=0.0005, log_prob_atol=1e-20\) at .* max_steps is "
    ):
        log_likelihood(elementwise, randn(2, 3), VE, log_prob_atol=1e-20, max_steps=40)
    with pytest.raises(RuntimeError, match=r"sample 0 can't meet .*it has not arrived"):
        log_likelihood(elementwise, randn(2, 3), VE, max_steps=2)
    with pytest.warns(UserWarning, match="2 of 2 samples"):
        found = log_likelihood(elementwise, randn(2, 3), VE, max_steps=2, failed="return")
    assert bool(found.failed.all())
    assert bool(found.log_prob.isnan().all())


def test_a_model_that_is_called_otherwise_than_it_was_trained_is_noticed() -> None:
    eps = lambda x, sigma: -sigma[:, None] * gaussian(x, sigma)  # noqa: E731
    with pytest.warns(UserWarning, match="at the highest noise level"):
        log_likelihood(eps, randn(4, 3), sde.VE(0.01, 50.0), rtol=1e-2, atol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_likelihood(eps, randn(4, 3), sde.VE(0.01, 50.0), prediction="eps")


def test_a_prior_that_leaves_out_the_spread_of_the_data_is_noticed() -> None:
    score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # noqa: E731
    with pytest.warns(UserWarning, match=r"the data's mean square is .* prior=\(mean, std\)"):
        log_likelihood(score, randn(9, 16), VE, sigma_range=(0.01, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_likelihood(score, randn(9, 16), VE, sigma_range=(0.01, 1.0), prior=(0.0, 1.0))


def test_data_in_another_range_are_noticed() -> None:
    x = MEAN + VARIANCE**0.5 * randn(9, 16)
    with pytest.warns(UserWarning, match="the data may lie in another range"):
        log_likelihood(gaussian, 255 * x, VE, prior=(MEAN, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_likelihood(gaussian, x, VE)
        log_likelihood(gaussian, x, sde.VP(), conditioning="sigma")


def test_a_checkpoint_is_no_model() -> None:
    checkpoint = fastscore.Checkpoint(fastscore.nn.ScoreMLP(3), [1.0, 0.1])
    with pytest.raises(TypeError, match=r"a checkpoint has checkpoint\.log_likelihood"):
        log_likelihood(checkpoint, X, VE)
