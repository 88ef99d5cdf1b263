"""Do the sides compute the same thing? Against the reference, or by statistics of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.apps.bench.case import Agreement

STANDARD_SCORES = 6.0  # a right side fails by chance about once in 10^9 checks
FEWEST_NUMBERS = 4096  # that a statistic is taken over
NORMAL_ULPS = 4  # by which a normal may differ from the correctly rounded one


def max_error(got: Tensor, exact: Tensor) -> float:
    """The largest absolute difference."""
    if got.shape != exact.shape:
        return math.inf
    if not got.numel():
        return 0.0
    return float((got.detach().cpu().double() - exact.detach().cpu().double()).abs().max())


def against_reference(
    got: Tensor, reference: Tensor, exact: Tensor, *, noise: bool = False
) -> Agreement:
    """The library's rule: at most twice the error of the reference in the same dtype.

    ``exact`` is the reference's result from the same inputs in float64. One unit in the last place
    of the largest element is allowed besides, as a few elements may all be exact by luck on one
    side; and, where the result contains ``noise``, the units in the last place by which the
    kernels' normals may differ from correctly rounded ones.
    """
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    tolerance = 2 * max_error(reference, exact) + torch.finfo(got.dtype).eps * scale
    if noise:
        tolerance += NORMAL_ULPS * torch.finfo(torch.float32).eps * scale
    return Agreement("reference", max_error(got, exact), tolerance)


def same_formula(got: Tensor, exact: Tensor) -> Agreement:
    """For peers: the same result but for rounding; half of the dtype's digits are asked for."""
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    tolerance = math.sqrt(torch.finfo(got.dtype).eps) * scale
    return Agreement("reference", max_error(got, exact), tolerance)


def worst(*found: Agreement) -> Agreement:
    """The one that is nearest to its tolerance, or furthest beyond it."""

    def share(agreement: Agreement) -> float:
        if math.isnan(agreement.error):
            return math.inf
        if agreement.error == 0:
            return 0.0
        return agreement.error / agreement.tolerance if agreement.tolerance else math.inf

    return max(found, key=share)


def _statistics(scores: list[float]) -> Agreement:
    bad = any(math.isnan(score) for score in scores)
    error = math.nan if bad else max(abs(score) for score in scores)
    return Agreement("statistics", error, STANDARD_SCORES)


def standard_normal(z: Tensor, *unrelated: Tensor) -> Agreement:
    """Are these independent standard normals, and uncorrelated with the ``unrelated`` tensors?

    Standard scores of the mean, the variance, the third and fourth moment, the correlation of
    neighbours and the correlation with each of the others.
    """
    z = z.detach().double().cpu().flatten()
    n = z.numel()
    square = z * z
    scores = [
        z.mean() * math.sqrt(n),
        (square.mean() - 1) * math.sqrt(n / 2),
        (square * z).mean() * math.sqrt(n / 15),
        (square * square).mean().sub(3) * math.sqrt(n / 96),
        (z[1:] * z[:-1]).mean() * math.sqrt(n - 1),
    ]
    for other in unrelated:
        other = other.detach().double().cpu().flatten()
        scores.append((z * other).mean() / other.square().mean().sqrt() * math.sqrt(n))
    return _statistics([float(score) for score in scores])


def uniform(u: Tensor) -> Agreement:
    """Are these independent uniform numbers in [0, 1)?"""
    if bool((u < 0).any()) or bool((u > 1).any()):
        return Agreement("statistics", math.inf, STANDARD_SCORES)
    centred = u.detach().double().cpu().flatten() - 0.5
    n = centred.numel()
    scores = [
        centred.mean() * math.sqrt(12 * n),
        (centred.square().mean() - 1 / 12) * math.sqrt(180 * n),
        (centred[1:] * centred[:-1]).mean() * 12 * math.sqrt(n - 1),
    ]
    return _statistics([float(score) for score in scores])


def signs(v: Tensor) -> Agreement:
    """Are these independent and -1 or +1 at equal odds?"""
    v = v.detach().double().cpu().flatten()
    if not bool((v.abs() == 1).all()):
        return Agreement("statistics", math.inf, STANDARD_SCORES)
    n = v.numel()
    scores = [v.mean() * math.sqrt(n), (v[1:] * v[:-1]).mean() * math.sqrt(n - 1)]
    return _statistics([float(score) for score in scores])


def normal_about(x: Tensor, mean: Tensor, variance: float) -> Agreement:
    """Is x normal about ``mean`` with this variance, elements independent?"""
    z = (x.detach().double().cpu() - mean.double().cpu()) / math.sqrt(variance)
    return standard_normal(z)


def same_mean(a: Tensor, b: Tensor) -> Agreement:
    """Have two sets of independent numbers the same mean? Welch's statistic."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    error = (a.var() / len(a) + b.var() / len(b)).sqrt()
    return _statistics([float((a.mean() - b.mean()) / error)])


def gathered(draw: Callable[[], Tensor]) -> Tensor:
    """Results of ``draw`` until there are enough numbers for a statistic, flat."""
    first = draw().detach().flatten().clone()
    more = range(repeats(len(first)) - 1)
    return torch.cat([first, *(draw().detach().flatten().clone() for _ in more)])


def repeats(numbers: int) -> int:
    """How many times so many numbers are enough for a statistic."""
    return max(1, math.ceil(FEWEST_NUMBERS / numbers))


def some(x: Tensor, most: int = 2**21) -> Tensor:
    """The elements of x, or as many from its start and its end as a statistic needs."""
    flat = x.detach().flatten()
    if len(flat) <= most:
        return flat
    return torch.cat([flat[: most // 2], flat[-(most // 2) :]])
