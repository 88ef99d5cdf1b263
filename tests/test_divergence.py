"""The divergence of vector fields: exactness, variance, standard errors, bad input."""

from __future__ import annotations

import doctest
import importlib
import math
from typing import Any

import pytest
import torch
from exact import (
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
from torch import Tensor, nn

from fastscore.derivatives.hutchinson import divergence, output_and_divergence
from fastscore.ops import projections
from fastscore.scores import GaussianMixture

DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")
NETWORKS = {
    "mlp": (mlp, (4,)),
    "deep": (lambda: mlp(hidden=(5, 6, 5)), (4,)),
    "images": (convnet, (2, 3, 3)),
    "energy": (lambda: energy_of(mlp(out=2)), (4,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_exact(device: torch.device, name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = make().to(device), randn(3, *shape, dtype=F64).to(device)
    for chunk_size in (None, 3):
        got = divergence(model, x, method="exact", chunk_size=chunk_size)
        assert_same_training(got, exact_trace(model, x), model)
    value, stderr = divergence(model, x, method="exact", return_stderr=True)
    torch.testing.assert_close(value, got)
    assert not stderr.any()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_estimate_is_the_mean_over_probes(
    device: torch.device, name: str, distribution: str
) -> None:
    make, shape = NETWORKS[name]
    model, x = make().to(device), randn(3, *shape, dtype=F64).to(device)
    options: dict[str, Any] = {"projections": 5, "distribution": distribution, "seed": 2}
    got, stderr = divergence(model, x, return_stderr=True, **options)
    key = make_key(2, device=device)
    v = projections(key, x.shape, 5, distribution=distribution, dtype=F64).flatten(2)
    forms = torch.einsum("mbi,bij,mbj->mb", v, jacobians(model, x)[1], v)
    assert_same_training(got, forms.mean(0), model)
    torch.testing.assert_close(stderr, forms.std(0) / math.sqrt(5))
    assert not stderr.requires_grad
    assert_same_bytes(divergence(model, x, **options), got)
    output, same = output_and_divergence(model, x, **options)
    torch.testing.assert_close(output, model(x))
    assert_same_bytes(same, got)


def variance_formula(distribution: str, matrix: Tensor) -> float:
    """Of v'Av for one probe v, with the symmetric part of A."""
    a = (matrix + matrix.mT) / 2
    d, square = len(a), a.square().sum()
    if distribution == "gaussian":
        return float(2 * square)
    if distribution == "rademacher":
        return float(2 * (square - a.diagonal().square().sum()))
    return float(2 * d / (d + 2) * (square - a.trace() ** 2 / d))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mean_and_variance_for_a_random_matrix(distribution: str) -> None:
    n, d = 200_000, 6
    matrix = randn(d, d, dtype=F64, seed=1) + torch.eye(d, dtype=F64)
    x = torch.zeros(1, d, dtype=F64).expand(n, d)
    estimates = divergence(lambda x: x @ matrix.mT, x, distribution=distribution, seed=0)
    variance = variance_formula(distribution, matrix)
    assert abs(float(estimates.mean() - matrix.trace())) < 5 * math.sqrt(variance / n)
    squares = (estimates - matrix.trace()).square()
    assert abs(float(squares.mean()) - variance) < 5 * float(squares.std()) / math.sqrt(n)


def test_a_rademacher_trace_of_a_diagonal_is_exact() -> None:
    scales = torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    x = randn(50, 3, dtype=F64)
    got, stderr = divergence(lambda x: x * scales, x, projections=3, return_stderr=True, seed=0)
    torch.testing.assert_close(got, torch.full((50,), 2.0, dtype=F64))
    assert float(stderr.max()) < 1e-12
    for distribution in ("rademacher", "sphere"):
        got = divergence(lambda x: -x, randn(50, 3, 2, 2), distribution=distribution, seed=0)
        torch.testing.assert_close(got, torch.full((50,), -12.0))


def test_the_standard_error_covers_the_error() -> None:
    """The error over its standard error is about standard normal."""
    n, probes = 4_000, 64
    model, x = mlp(8, seed=3), randn(n, 8, dtype=F64)
    with torch.no_grad():
        value, stderr = divergence(model, x, projections=probes, return_stderr=True, seed=0)
        ratio = (value - divergence(model, x, method="exact")) / stderr
    assert abs(float(ratio.mean())) < 0.1
    assert 0.9 < float(ratio.std()) < 1.1


def test_the_divergence_of_an_exact_score() -> None:
    """Of a mixture under noise, against double autograd; sigma a number or one for each sample."""
    mixture = GaussianMixture([0.4, 0.6], [[1.5, 0.0], [-1.5, 0.5]], 0.5).double()
    x, sigma = randn(6, 2, dtype=F64), torch.linspace(0.5, 2, 6, dtype=F64)
    want = exact_trace(mixture, x, sigma)
    torch.testing.assert_close(divergence(mixture, x, sigma, method="exact"), want)
    estimate = divergence(mixture, x, sigma, projections=2_000, distribution="sphere", seed=0)
    torch.testing.assert_close(estimate, want, rtol=0.1, atol=0.1)
    torch.testing.assert_close(
        divergence(mixture, x, 0.5, method="exact"), exact_trace(mixture, x, torch.full((6,), 0.5))
    )


def test_noise_conditional_networks() -> None:
    model, x = Conditioned(convnet()), randn(4, 2, 3, 3, dtype=F64)
    sigma = torch.linspace(0.5, 2, 4, dtype=F64)
    got = divergence(model, x, sigma, method="exact")
    assert_same_training(got, exact_trace(model, x, sigma), model)


@pytest.mark.parametrize("method", ["hutchinson", "exact"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(method: str, mode: Any) -> None:
    for make, shape in NETWORKS.values():
        model, x = make(), randn(3, *shape, dtype=F64)
        want = divergence(model, x, method=method, seed=0)
        with mode():
            got = divergence(model, x, method=method, seed=0)
        assert not got.requires_grad
        torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for make, shape in NETWORKS.values():
        model, x = make(), randn(8, *shape)
        for method in ("hutchinson", "exact"):
            want = divergence(model.double(), x.double(), method=method, seed=0)
            got = divergence(model.to(dtype), x.to(dtype), method=method, seed=0)
            assert got.dtype == torch.float32
            error = 1e-5 if dtype == torch.float32 else 0.05
            torch.testing.assert_close(got.double(), want, rtol=error, atol=error)


def test_seeds_and_shards() -> None:
    model, x = mlp(hidden=(5, 5, 5)), randn(6, 4, dtype=F64)
    whole = divergence(model, x, seed=1, projections=3)
    assert not torch.equal(divergence(model, x, seed=2, projections=3), whole)
    parts = [
        divergence(model, x[:2], seed=1, projections=3),
        divergence(model, x[2:], seed=1, projections=3, sample_offset=2),
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.manual_seed(0)
    a = divergence(model, x)
    assert not torch.equal(divergence(model, x), a)
    torch.manual_seed(0)
    assert_same_bytes(divergence(model, x), a)
    generator = torch.Generator().manual_seed(4)
    b = divergence(model, x, generator=generator)
    assert_same_bytes(divergence(model, x, generator=generator.manual_seed(4)), b)
    assert_same_bytes(divergence(model, x, key=make_key(1), projections=3), whole)
    assert divergence(model, x[:0]).shape == (0,)
    assert not x.requires_grad


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": 1.0}, TypeError, "x must be a torch.Tensor"),
    ({"x": torch.zeros(2, 3, dtype=torch.int32)}, ValueError, "x must be a floating-point"),
    ({"x": torch.tensor(0.0)}, ValueError, "x must be a tensor with at least 1"),
    ({"method": "skilling"}, ValueError, "method must be one of 'hutchinson', 'exact'"),
    ({"distribution": "normal"}, ValueError, "distribution must be one of 'rademacher'"),
    ({"projections": 0}, ValueError, "projections must be at least 1"),
    ({"projections": "many"}, TypeError, "projections must be an integer"),
    ({"return_stderr": True}, ValueError, "projections must be at least 2 with return_stderr=True"),
    ({"chunk_size": 0, "method": "exact"}, ValueError, "chunk_size must be at least 1"),
    ({"sigma": -1.0}, ValueError, "sigma must be at least 0"),
    ({"sigma": torch.ones(3)}, ValueError, r"sigma must be .* of shape \(2,\)"),
    ({"sample_offset": -1}, ValueError, "sample_offset must be at least 0"),
    ({"key": make_key(0), "seed": 1}, ValueError, "seed must be None when key is given"),
    ({"key": torch.zeros(3)}, ValueError, "key must be an int64 tensor"),
    ({"model": "net"}, TypeError, "model must be callable"),
    ({"model": lambda x: x[:, :1]}, ValueError, r"model must be a model whose output .* \(2, 3\)"),
    ({"model": nn.Linear(3, 2)}, ValueError, r"model must be a model whose output .* \(2, 3\)"),
    ({"model": lambda x: [x]}, TypeError, r"model must be a .* got list"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": lambda x: -x.tan().cumsum(1), "x": torch.zeros(2, 3), **arguments}
    with pytest.raises(error, match=f"^divergence: {message}"):
        divergence(**arguments)


def test_docstrings() -> None:
    # The package has the function under the module's name.
    assert doctest.testmod(importlib.import_module("fastscore.derivatives.hutchinson")).failed == 0
