"""The area under the curve and differences of pairs, with their errors."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastscore.evaluation import auroc, paired_difference


def scores(n: int, seed: int, shift: float = 0.0, *, ties: bool = False) -> Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    return (2 * x).round() if ties else x


def over_all_pairs(inside: Tensor, outside: Tensor) -> Tensor:
    """1 where the outlier is higher, 1/2 where both are equal: (outside, inside)."""
    gaps = outside[:, None] - inside
    return (gaps > 0).double() + (gaps == 0).double() / 2


def delong(inside: Tensor, outside: Tensor) -> float:
    """The definition, by all pairs."""
    pairs = over_all_pairs(inside, outside)
    of_outside, of_inside = pairs.mean(1), pairs.mean(0)
    return math.sqrt(of_outside.var() / len(outside) + of_inside.var() / len(inside))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (30, 70), (200, 5)])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 2.0])
def test_against_all_pairs(n: int, m: int, shift: float, ties: bool) -> None:
    inside, outside = scores(n, 0, ties=ties), scores(m, 1, shift, ties=ties)
    value, stderr = auroc(inside, outside)
    assert value == pytest.approx(float(over_all_pairs(inside, outside).mean()), abs=1e-14)
    assert stderr == pytest.approx(delong(inside, outside), abs=1e-14)
    assert auroc(outside, inside).value == pytest.approx(1 - value, abs=1e-14)
    assert auroc(outside, inside).stderr == pytest.approx(stderr, abs=1e-14)


@pytest.mark.parametrize("ties", [False, True])
def test_against_scikit_learn(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = scores(300, 0, ties=ties), scores(200, 1, 0.7, ties=ties)
    labels = torch.cat([torch.zeros(300), torch.ones(200)])
    expected = metrics.roc_auc_score(labels.numpy(), torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside).value == pytest.approx(expected, abs=1e-13)


def test_the_truth_of_two_gaussians() -> None:
    value, stderr = auroc(scores(20_000, 0), scores(20_000, 1, 1.0))
    assert value == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=4 * stderr)
    assert 0.001 < stderr < 0.004


def test_the_error_is_the_spread_over_data_sets() -> None:
    """Of 600 pairs of sets: the mean of the estimates is the standard deviation of the values."""
    drawn = [auroc(scores(60, 2 * k), scores(40, 2 * k + 1, 0.8)) for k in range(600)]
    value, stderr = torch.tensor(drawn, dtype=torch.float64).unbind(1)
    assert float(stderr.square().mean().sqrt()) == pytest.approx(float(value.std()), rel=0.09)
    inside = ((value - stats.norm.cdf(0.8 / math.sqrt(2))).abs() < 1.96 * stderr).double()
    assert float(inside.mean()) > 0.91


def test_the_error_is_that_of_a_bootstrap() -> None:
    inside, outside = scores(150, 0, ties=True), scores(90, 1, 0.6, ties=True)
    generator = torch.Generator().manual_seed(0)

    def again(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(x),), generator=generator)]

    values = [auroc(again(inside), again(outside)).value for _ in range(800)]
    spread = float(torch.tensor(values).std())
    assert auroc(inside, outside).stderr == pytest.approx(spread, rel=0.1)


def test_told_apart_without_exception_or_not_at_all() -> None:
    low, high = torch.tensor([1.0, 2.0]), torch.tensor([3.0, math.inf, 5.0])
    assert auroc(low, high) == (1.0, 0.0)
    assert auroc(high, low) == (0.0, 0.0)
    assert auroc(torch.ones(5), torch.ones(4)) == (0.5, 0.0)
    minus = torch.tensor([-math.inf, 0.0])
    assert auroc(minus, minus).value == 0.5


def test_small_differences_are_kept_in_any_dtype() -> None:
    value, _ = auroc(torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 3.0]).double())
    assert value == (0.5 + 1 + 0 + 1) / 4
    near = 1 + torch.tensor([0.0, 2e-16], dtype=torch.float64)
    assert auroc(near[:1].repeat(2), near[1:].repeat(2)).value == 1.0


def test_by_sorting() -> None:
    begin = time.perf_counter()
    auroc(scores(300_000, 0), scores(300_000, 1))
    assert time.perf_counter() - begin < 5  # 9e10 pairs would take minutes


def test_differences_of_pairs() -> None:
    easy, gain = 3 * scores(4000, 0), 0.1 + 0.02 * scores(4000, 1)
    mean, stderr = paired_difference(easy + gain, easy)
    assert mean == pytest.approx(float(gain.mean()), abs=1e-12)
    assert stderr == pytest.approx(float(gain.std()) / math.sqrt(4000), rel=1e-9)
    assert paired_difference(easy, easy + gain).mean == pytest.approx(-mean, abs=1e-12)
    expected = stats.ttest_rel((easy + gain).numpy(), easy.numpy())
    assert mean / stderr == pytest.approx(expected.statistic, rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (torch.zeros(1), torch.zeros(1), ValueError, r"must be a number of each sample, \(n,\)"),
        (torch.zeros(3, 1), torch.zeros(3, 1), ValueError, "must be a number of each sample"),
        (torch.zeros(3).long(), torch.zeros(3), ValueError, "must be a floating-point tensor"),
        ([1.0, 2.0], torch.zeros(3), TypeError, "must be a torch.Tensor"),
    ],
)
def test_what_is_refused(a: Any, b: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^auroc: inside {message}"):
        auroc(a, b)
    with pytest.raises(error, match=f"^paired_difference: a {message}"):
        paired_difference(a, b)


def test_the_sample_is_named() -> None:
    good, bad = torch.zeros(3), torch.tensor([0.0, 1.0, math.nan])
    with pytest.raises(ValueError, match="outside must be without NaN, got nan of sample 2"):
        auroc(good, bad)
    with pytest.raises(ValueError, match="b must be finite, got nan of sample 2"):
        paired_difference(good, bad)
    with pytest.raises(ValueError, match="a must be finite, got inf of sample 1"):
        paired_difference(torch.tensor([0.0, math.inf]), good[:2])
    with pytest.raises(ValueError, match=r"b must be of shape \(3,\) \(that of a\)"):
        paired_difference(good, good[:2])
