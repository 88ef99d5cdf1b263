"""How well a number tells outliers, and by how much two models differ on the same samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore._support.checks import check_device, check_floating, check_shape, describe, fail

# scikit-learn has roc_auc_score, without an error; it is no package that this one needs.


class AUROC(NamedTuple):
    """The area under the curve, and its standard error."""

    value: float
    stderr: float


class Difference(NamedTuple):
    """The mean of differences, and its standard error."""

    mean: float
    stderr: float


def auroc(inside: Tensor, outside: Tensor) -> AUROC:
    r"""The probability that an outlier scores higher than a sample of the data.

    The area under the receiver operating characteristic: the part of all pairs in which the outlier
    has the higher score, ties by half (Mann and Whitney 1947); 1 tells all outliers, 1/2 none, and
    below 1/2 outliers score lower than data do (as images of less detail often do: Nalisnick et al.
    2019, https://arxiv.org/abs/1810.09136). By sorting, in float64.

    The standard error is that of DeLong, DeLong and Clarke-Pearson 1988: with V_j the part of the
    data below outlier j and W_i the part of the outliers above data sample i (the placements),
    var(V)/m + var(W)/n. It is 0 where the two are told apart without exception, which is no proof
    that there will be none.

    Args:
        inside: (n,), scores of the data: bits per dimension, or minus log densities.
        outside: (m,), scores of the outliers; likewise floating point, at least two of each.

    Returns:
        A pair of floats ``(value, stderr)``.

    Raises:
        ValueError: fewer than two of either, another shape, other devices; NaN, whose sample is
            named. Infinite scores are as good as others.
        TypeError: not a tensor.

    >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0]))
    AUROC(value=0.75, stderr=0.28867513459481287)
    """
    fn = "auroc"
    data = _scores(fn, "inside", inside, infinite=True).sort().values
    others = _scores(fn, "outside", outside, infinite=True).sort().values
    check_device(fn, "outside", outside, inside.device, "where inside is")
    below, above = _placements(others, data), 1 - _placements(data, others)
    return AUROC(float(below.mean()), math.sqrt(_variance(below) + _variance(above)))


def paired_difference(a: Tensor, b: Tensor) -> Difference:
    """The mean of a - b over the same samples, and its standard error.

    Of two models on the same data: what makes a sample easy or hard for both cancels, so that the
    error is far below that of either's mean.

    Args:
        a, b: (n,), a number of each sample and the other model's of the same, floating point, n at
            least 2.

    Returns:
        A pair of floats ``(mean, stderr)``, in float64.

    Raises:
        ValueError: fewer than two, different shapes or devices; NaN or infinity, whose sample is
            named.
        TypeError: not a tensor.

    >>> paired_difference(torch.tensor([3.0, 5.0]), torch.tensor([2.0, 2.0]))
    Difference(mean=2.0, stderr=1.0)
    """
    fn = "paired_difference"
    first, second = _scores(fn, "a", a), _scores(fn, "b", b)
    check_shape(fn, "b", b, a.shape, "that of a")
    check_device(fn, "b", b, a.device, "where a is")
    gaps = first - second
    return Difference(float(gaps.mean()), math.sqrt(_variance(gaps)))


def _scores(fn: str, arg: str, values: Tensor, *, infinite: bool = False) -> Tensor:
    check_floating(fn, arg, values)
    if values.dim() != 1 or len(values) < 2:
        fail(fn, arg, "a number of each sample, (n,), of at least two", describe(values))
    bad = values.isnan() if infinite else ~values.isfinite()
    if bool(bad.any()):
        sample = int(bad.nonzero()[0])
        expected = "without NaN" if infinite else "finite"
        fail(fn, arg, expected, f"{float(values[sample])} of sample {sample}")
    return values.detach().double()


def _placements(values: Tensor, among: Tensor) -> Tensor:
    """The part of ``among`` that is below each value, ties by half; both sorted."""
    left = torch.searchsorted(among, values)
    right = torch.searchsorted(among, values, right=True)
    return (left + right).double() / (2 * len(among))


def _variance(values: Tensor) -> float:
    """That of the mean."""
    return float(values.var()) / len(values)
