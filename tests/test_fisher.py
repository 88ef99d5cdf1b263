"""Distances between scores: closed forms, the sliced form's mean, bad input."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch
from exact import F64, energy_of, mlp
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor

from fastscore.evaluation import fisher
from fastscore.evaluation.fisher import fisher_divergence, sliced_fisher_divergence
from fastscore.ops import projections
from fastscore.scores import GaussianMixture

SHIFTED = GaussianMixture([1.0], torch.full((1, 3), 0.5), 1.0).double()
CENTRED = GaussianMixture([1.0], torch.zeros(1, 3), 1.0).double()
WIDE = GaussianMixture([1.0], torch.zeros(1, 3), 4.0).double()


def test_closed_forms() -> None:
    """N(m, I) against N(0, I): 1/2 |m|^2, everywhere. N(0, 4 I): 1/2 (3/4)^2 d, on average."""
    x = randn(200_000, 3, dtype=F64)
    shift = fisher_divergence(SHIFTED, CENTRED, x)
    torch.testing.assert_close(shift, torch.tensor(0.5 * 3 * 0.25, dtype=F64))
    scale = fisher_divergence(WIDE, CENTRED, x, reduction="none")
    want = 0.5 * 0.75**2 * 3
    assert abs(float(scale.mean()) - want) < 5 * float(scale.std()) / math.sqrt(len(x))
    torch.testing.assert_close(scale, (0.75 * x).square().sum(1) / 2)
    assert fisher_divergence(CENTRED, CENTRED, x) == 0


def test_noise_levels_and_values() -> None:
    x, sigma = randn(6, 3, dtype=F64), torch.linspace(0, 2, 6, dtype=F64)
    got = fisher_divergence(SHIFTED, CENTRED, x, sigma, reduction="none")
    torch.testing.assert_close(got, 0.5 * 3 * (0.5 / (1 + sigma**2)).square())
    by_values = fisher_divergence(SHIFTED, CENTRED(x, sigma), x, sigma, reduction="none")
    assert_same_bytes(by_values, got)
    torch.testing.assert_close(
        fisher_divergence(SHIFTED, CENTRED, x, 2.0), torch.tensor(0.5 * 3 * 0.01, dtype=F64)
    )


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
def test_the_sliced_form(distribution: str) -> None:
    n = 100_000
    x, model = randn(n, 3, dtype=F64), mlp(3)
    options: dict[str, Any] = {"distribution": distribution, "seed": 1, "reduction": "none"}
    each = sliced_fisher_divergence(model, CENTRED, x, **options)
    gap = each - fisher_divergence(model, CENTRED, x, reduction="none")
    assert abs(float(gap.mean())) < 5 * float(gap.std()) / math.sqrt(n)
    got = sliced_fisher_divergence(model, CENTRED, x[:5], projections=4, **options)
    v = projections(make_key(1), (5, 3), 4, distribution=distribution, dtype=F64)
    difference = (model(x[:5]) - CENTRED(x[:5])).detach()
    torch.testing.assert_close(got, (v * difference).sum(2).square().mean(0) / 2)
    rest = sliced_fisher_divergence(
        model, CENTRED, x[2:5], projections=4, sample_offset=2, **options
    )
    torch.testing.assert_close(rest, got[2:])


def test_both_forms() -> None:
    """Images, energies, half precision, reductions; no graph, nothing changed."""
    images = randn(4, 2, 3, 3)
    energy = energy_of(mlp(out=1))
    for metric in (fisher_divergence, sliced_fisher_divergence):
        each = metric(lambda x: 2 * x, torch.ones_like(images), images, reduction="none")
        assert each.shape == (4,)
        assert metric(energy, energy, randn(3, 4, dtype=F64)) == 0
        value = metric(energy, lambda x: -x, randn(3, 4, dtype=F64))
        assert not value.requires_grad
        half = metric(lambda x: 2 * x, lambda x: x, torch.ones(5, 64).half(), reduction="none")
        assert half.dtype == torch.float32
    torch.testing.assert_close(
        fisher_divergence(lambda x: x, lambda x: -x, images, reduction="none"),
        2 * images.square().sum((1, 2, 3)),
    )
    total = fisher_divergence(lambda x: x, lambda x: -x, images, reduction="sum")
    torch.testing.assert_close(total, 2 * images.square().sum())
    assert fisher_divergence(lambda x: x, lambda x: -x, images[:0], reduction="none").shape == (0,)


def scores(name: str) -> Any:
    return {"fisher_divergence": fisher_divergence}.get(name, sliced_fisher_divergence)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": 1.0}, TypeError, "x must be a torch.Tensor"),
    ({"x": torch.zeros(2, 3, dtype=torch.int32)}, ValueError, "x must be a floating-point"),
    ({"model": "net"}, TypeError, "model must be callable"),
    ({"model": lambda x: x[:, :1]}, ValueError, r"model must be a model whose output .* \(2, 3\)"),
    ({"true_score": lambda x: x[:1]}, ValueError, r"true_score must be a model whose output"),
    ({"true_score": torch.zeros(2)}, ValueError, r"true_score must be of shape \(2, 3\)"),
    ({"true_score": 0.0}, TypeError, "true_score must be callable or a tensor"),
    ({"sigma": torch.ones(3)}, ValueError, r"sigma must be .* of shape \(2,\)"),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
]
SLICED_BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"projections": 0}, ValueError, "projections must be at least 1"),
    ({"distribution": "normal"}, ValueError, "distribution must be one of"),
    ({"sample_offset": -1}, ValueError, "sample_offset must be at least 0"),
]


@pytest.mark.parametrize("name", ["fisher_divergence", "sliced_fisher_divergence"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(
    name: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    good: dict[str, Any] = {"model": negative, "true_score": negative, "x": torch.zeros(2, 3)}
    with pytest.raises(error, match=f"^{name}: {message}"):
        scores(name)(**{**good, **arguments})


@pytest.mark.parametrize(("arguments", "error", "message"), SLICED_BAD)
def test_bad_projections(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^sliced_fisher_divergence: {message}"):
        sliced_fisher_divergence(negative, negative, torch.zeros(2, 3), **arguments)


def negative(x: Tensor, *_: Tensor) -> Tensor:
    return -x


def test_docstrings() -> None:
    assert doctest.testmod(fisher).failed == 0
