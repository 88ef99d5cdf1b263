"""Noise scales and step sizes: Techniques 1, 2 and 4 of Song & Ermon 2020 (NCSNv2).

Song & Ermon, "Improved Techniques for Training Score-Based Generative Models", NeurIPS 2020,
https://arxiv.org/abs/2006.09011.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_device_there,
    check_finite,
    check_int,
    check_number,
    check_sigmas,
    fail,
    fail_type,
)
from fastscore._support.spread import check_data, standard_deviation

__all__ = ["geometric_sigmas", "langevin_step_size", "noise_scales", "sigma_max_from_data"]

CONVENTIONS = ("half", "full")

_BLOCK_ELEMENTS = 2**22  # float64 elements of one block of rows: 32 MiB
_BLOCK_ROWS = 1024
# Neighbouring levels are taken to overlap within three standard deviations: at ratio 1 this much.
_MAX_OVERLAP = math.erf(3 / math.sqrt(2))
_FORMULA_DIMS = 5  # elements per sample from which Technique 2's equation has a solution
_MAX_RATIO = 1.2  # of neighbouring scales
_SIGMA_MIN = 0.01  # as a share of the data's standard deviation


def geometric_sigmas(
    sigma_max: float,
    sigma_min: float,
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Noise scales in geometric progression, from ``sigma_max`` down to ``sigma_min``.

    The choice of Song & Ermon 2019 (https://arxiv.org/abs/1907.05600), section 3. Computed in
    float64 and rounded once; both ends are exact.

    Args:
        sigma_max: the largest scale, sigma_1.
        sigma_min: the smallest scale, sigma_L.
        n: the number of scales L, at least 2.
        dtype: floating dtype of the result.
        device: device of the result.

    Returns:
        Tensor of shape (n,), strictly decreasing.

    Raises:
        ValueError: scales that are not positive, ``sigma_max <= sigma_min``, ``n < 2``, or more
            scales than ``dtype`` can tell apart.
        TypeError: an argument of the wrong type.

    Example:
        >>> geometric_sigmas(8.0, 1.0, 4)
        tensor([8., 4., 2., 1.])
    """
    fn = "geometric_sigmas"
    high = check_number(fn, "sigma_max", sigma_max, positive=True)
    low = check_number(fn, "sigma_min", sigma_min, positive=True)
    count = check_int(fn, "n", n, minimum=2)
    if not isinstance(dtype, torch.dtype):
        fail_type(fn, "dtype", "a torch.dtype", dtype)
    if not dtype.is_floating_point:
        fail(fn, "dtype", "a floating-point dtype", dtype)
    if device is not None:
        check_device_there(fn, device)
    if high <= low:
        fail(fn, "sigma_max", f"larger than sigma_min = {low}", high)
    position = torch.arange(count, dtype=torch.float64) / (count - 1)
    sigmas = high * torch.exp(position * (math.log(low) - math.log(high)))
    sigmas[0], sigmas[-1] = high, low
    sigmas = sigmas.to(dtype)
    if not bool((sigmas[1:] < sigmas[:-1]).all() and sigmas[-1] > 0 and sigmas[0].isfinite()):
        fail(fn, "n", f"a number of levels that {dtype} can tell apart from {high} to {low}", count)
    return sigmas.to(device)


def sigma_max_from_data(x: Tensor) -> float:
    """The largest Euclidean distance between two samples: Technique 1's choice of sigma_1.

    With it a chain can pass from any training sample to any other (Song & Ermon 2020, section
    3.1). All N(N-1)/2 pairs count, but no N x N matrix exists: memory beyond ``x`` is about
    150 MB at most for samples of up to 4 million elements, whatever N is. Integer images are to
    be converted to the scale the model is trained on first.

    The distances come from |a|^2 + |b|^2 - 2ab in float64 on data with the mean taken off. The
    largest distance is never below the largest norm R of centred data, so the rounding error,
    of order 1e-16 * D * R^2, stays below 1e-12 of the largest squared distance for D = 3072, and
    the distance of the pair found is then computed from the difference itself.

    Args:
        x: samples, shape (n, ...), n at least 2, any floating dtype.

    Returns:
        The largest pairwise distance, right to float32 rounding (about 1e-12).

    Raises:
        ValueError: fewer than two samples, NaN or infinity in ``x``, or all samples equal.
        TypeError: ``x`` is not a tensor.

    Example:
        >>> sigma_max_from_data(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
        5.0
    """
    fn = "sigma_max_from_data"
    check_data(fn, x)
    x = x.detach()
    center, order, radius = _by_radius(fn, x)

    def rows(index: Tensor) -> Tensor:
        return x[index].reshape(len(index), -1).double() - center

    size = _rows_per_block(x)
    starts = range(0, len(x), size)
    best, pair = 0.0, (order[0], order[0])
    for i in starts:
        # Radii decrease: from here on no pair can be farther apart than twice this one.
        if 2 * radius[i] <= best:
            break
        a = rows(order[i : i + size])
        for j in starts[i // size :]:
            if radius[i] + radius[j] <= best:
                break
            b = a if i == j else rows(order[j : j + size])
            farthest, index = _farthest_pair(a, b)
            if farthest > best:
                best, pair = farthest, (order[i + index[0]], order[j + index[1]])
    distance = float((x[pair[0]].double() - x[pair[1]].double()).norm())
    if distance == 0:
        fail(fn, "x", "samples that are not all equal", f"{len(x)} equal samples")
    return distance


def _rows_per_block(x: Tensor) -> int:
    return max(1, min(_BLOCK_ROWS, _BLOCK_ELEMENTS // x[0].numel()))


def _by_radius(fn: str, x: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """The mean, the samples' order by decreasing distance from it, and those distances."""
    blocks = x.split(_rows_per_block(x))
    # Summing differences from one sample keeps a far-off data set from losing its spread.
    first = x[0].reshape(-1).double()
    center = first.clone()
    for block in blocks:
        center += (block.reshape(len(block), -1).double() - first).sum(0) / len(x)
    radius = torch.cat([(b.reshape(len(b), -1).double() - center).norm(dim=1) for b in blocks])
    if not bool(torch.isfinite(4 * radius.square()).all()):
        check_finite(fn, "x", x)
        fail(fn, "x", "small enough that squared distances fit float64", "an overflow")
    radius, order = radius.sort(descending=True)
    return center, order, radius.tolist()


def _farthest_pair(a: Tensor, b: Tensor) -> tuple[float, tuple[int, int]]:
    """The largest distance between a row of ``a`` and a row of ``b``, and the two rows."""
    square = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    square += a.square().sum(1, keepdim=True)
    flat = int(square.argmax())
    return math.sqrt(max(0.0, float(square.flatten()[flat]))), divmod(flat, len(b))


def noise_scales(
    x: Tensor,
    *,
    sigma_min: float | None = None,
    overlap: float = 0.5,
    max_ratio: float | None = _MAX_RATIO,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The noise scales that Techniques 1 and 2 choose for a data set, and more in few dimensions.

    sigma_1 is the largest pairwise distance (Technique 1). The ratio gamma of neighbouring
    scales solves Phi(sqrt(2D)(gamma - 1) + 3 gamma) - Phi(sqrt(2D)(gamma - 1) - 3 gamma) =
    ``overlap``: the share of one level's samples whose distance from the data is usual for the
    next level (Technique 2), with D the number of elements per sample. The number of scales is
    the smallest whose ratio is at most gamma, so that the overlap is at least what was asked, and
    at most ``max_ratio``, which is smaller below D = 160 or so.

    For CIFAR-10 (D = 3072, sigma 50 to 0.01), the overlap 0.5 gives 220 scales; the paper's 232
    stand for an overlap of about 0.57.

    Few dimensions ask for more scales than that. The equation takes the norm of Gaussian noise to
    be Gaussian: it has no solution below D = 5, and gamma = 4.0 at D = 8, 1.36 at D = 64. With the
    norm's exact law it has one everywhere (399, 23, 8.9, 5.6 at D = 1 to 4; 2.8 and 1.34 at 8 and
    64), which is of no use: what limits gamma there is not whether levels overlap, but how far a
    few Langevin steps carry a chain. Sliced Wasserstein distance of samples from ten Gaussians, in
    percent of the data's standard deviation, with the exact score and 5 steps at each scale
    (``benchmarks/defaults.py``):

    =======  =====  =====  =====  =====  =====  =====  ==========
    gamma    4      2      1.5    1.3    1.2    1.1    fresh data
    =======  =====  =====  =====  =====  =====  =====  ==========
    D = 1    38.5   21.9   14.4   10.2   8.9    7.3    3.2
    D = 2    29.6   14.6   9.4    6.9    5.7    5.1    2.7
    D = 4    15.6   7.7    5.2    4.4    2.3    3.0    3.0
    D = 8    14.2   6.4    4.3    4.1    2.8    3.2    2.8
    D = 64   13.8   8.6    5.4    4.9    4.4    2.8    2.4
    =======  =====  =====  =====  =====  =====  =====  ==========

    So the ratio is 1.2 at most, which makes some 36 scales. For about as many calls of the network,
    two steps at each of more scales are worse (4.7 for gamma = 1.1 at D = 8), and ten at each of
    fewer no better (3.4 for gamma = 1.5).

    Args:
        x: the data set, shape (n, ...), any floating dtype.
        sigma_min: the smallest scale, sigma_L. By default a hundredth of the data's standard
            deviation about their mean. Of the study's three sets, two were drawn better with it
            than with 0.003 of that, and better still with 0.03, having as much noise of their own;
            the third did not mind. The paper takes 0.01 for data in [0, 1].
        overlap: C, in (0, 0.9973); 0.5 in the paper. Without effect below 5 dimensions.
        max_ratio: the largest ratio of neighbouring scales, above 1. None is Technique 2 alone, as
            published, for 5 dimensions or more.
        dtype: floating dtype of the result.
        device: device of the result.

    Returns:
        Tensor of shape (L,), strictly decreasing from the largest pairwise distance to
        ``sigma_min``.

    Raises:
        ValueError: as ``sigma_max_from_data``; ``sigma_min`` not positive or not below the largest
            distance; ``overlap`` out of range; ``max_ratio`` not above 1, or None below 5
            dimensions.
        TypeError: an argument of the wrong type.

    Example:
        >>> x = torch.zeros(2, 3072)
        >>> x[1, 0] = 50.0
        >>> sigmas = noise_scales(x, sigma_min=0.01)
        >>> len(sigmas), sigmas[0], sigmas[-1]
        (220, tensor(50.), tensor(0.0100))
        >>> points = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> len(noise_scales(points))
        38
    """
    fn = "noise_scales"
    low = sigma_min
    if low is not None:
        low = check_number(fn, "sigma_min", low, positive=True)
    share = check_number(fn, "overlap", overlap, positive=True)
    if share >= _MAX_OVERLAP:
        fail(fn, "overlap", f"below {_MAX_OVERLAP:.4f}, the overlap of equal levels", share)
    limit = max_ratio
    if limit is not None and (limit := check_number(fn, "max_ratio", limit)) <= 1:
        fail(fn, "max_ratio", "above 1, or None", limit)
    check_data(fn, x)
    high = sigma_max_from_data(x)
    if low is None:
        low = _SIGMA_MIN * standard_deviation(fn, x)
    if high <= low:
        fail(fn, "sigma_min", f"below the largest pairwise distance {high}", low)
    steps = math.log(high / low) / math.log(_scale_ratio(fn, x, share, limit))
    n = 1 + max(1, math.ceil(steps - 1e-9))
    return geometric_sigmas(high, low, n, dtype=dtype, device=device)


def _scale_ratio(fn: str, x: Tensor, overlap: float, limit: float | None) -> float:
    """Technique 2's ratio where there is one, and ``limit`` where that is smaller."""
    dim = x[0].numel()
    if dim >= _FORMULA_DIMS:
        ratio = _level_ratio(dim, overlap)
        return ratio if limit is None else min(ratio, limit)
    if limit is None:
        expected = f"a number below {_FORMULA_DIMS} elements per sample, where Technique 2 has none"
        fail(fn, "max_ratio", expected, f"None, and x of shape {tuple(x.shape)}")
    return limit


def _level_ratio(dim: int, overlap: float) -> float:
    """Technique 2's gamma > 1. The overlap rises, then falls to 0: one root above 1."""
    scale = math.sqrt(2 * dim)

    def excess(gamma: float) -> float:
        shift = scale * (gamma - 1)
        return _normal_cdf(shift + 3 * gamma) - _normal_cdf(shift - 3 * gamma) - overlap

    high = 2.0
    while excess(high) > 0:
        high *= 2
    return _bisect(lambda gamma: -excess(gamma), 1.0, high)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """The root of ``f``, negative at ``low`` and positive at ``high``, to the last bit."""
    while low < (middle := 0.5 * (low + high)) < high:
        if f(middle) < 0:
            low = middle
        else:
            high = middle
    return high


def langevin_step_size(sigmas: Tensor, steps: int, *, convention: str = "half") -> float:
    """The step size that Technique 4 chooses for annealed Langevin dynamics.

    A chain that enters a level with the variance of the level before should leave it, after
    ``steps`` steps, with that level's own. For a one-point data set the ratio of the two is
    r = (1 - eta)^(2T) (gamma^2 - b) + b, with b = 2 / (2 - eta), gamma the ratio of neighbouring
    scales, T the steps and eta = step_size / sigma_L^2 in the full convention. For 0 < eta < 2,
    where the chain is stable, r is a mean of gamma^2 and b and so above 1: the best eta is the
    minimum of r. It lies below 1, since 2 - eta has the same power and a smaller b than an
    eta > 1; and there dr/deta has exactly one root, which is found by bisection.

    Data are not one point, and few steps at each level leave too much noise in their spread,
    however many levels there are: of N(0, 0.25^2), with its exact score and 1000 scales from 50 to
    0.01, samples have the standard deviation 0.355 at T = 1, 0.289 at T = 2, 0.264 at T = 5 and
    0.257 at T = 10.

    Args:
        sigmas: noise scales, shape (L,), decreasing, L at least 2; a tensor or a list. If they
            are not geometric, the largest ratio counts: r is worst there.
        steps: Langevin steps per scale, T.
        convention: ``"half"``, the step of Song & Ermon 2019, x += a/2 s + sqrt(a) z; or
            ``"full"``, that of NCSNv2 and its code, x += a s + sqrt(2a) z. In both,
            a_i = step_size * sigma_i^2 / sigma_L^2. The half convention's number is twice the
            full one's, for the same chain.

    Returns:
        The step size at the smallest scale, in the convention asked for.

    Raises:
        ValueError: fewer than two scales, or scales that are not positive, finite and decreasing;
            ``steps`` below 1; an unknown ``convention``.
        TypeError: an argument of the wrong type.

    Example:
        >>> sigmas = geometric_sigmas(50.0, 0.01, 232)
        >>> f"{langevin_step_size(sigmas, 5, convention='full'):.3g}"
        '6.18e-06'
        >>> f"{langevin_step_size(sigmas, 5):.3g}"
        '1.24e-05'
    """
    fn = "langevin_step_size"
    levels = check_sigmas(fn, sigmas, minimum_levels=2).detach().double().cpu()
    count = check_int(fn, "steps", steps, minimum=1)
    check_choice(fn, "convention", convention, CONVENTIONS)
    gap = math.expm1(2 * math.log(float((levels[:-1] / levels[1:]).max())))  # gamma^2 - 1

    def slope(eta: float) -> float:
        log_rest = math.log1p(-eta)
        above = gap - eta / (2 - eta)  # gamma^2 - b
        pull = -2 * count * math.exp((2 * count - 1) * log_rest) * above
        return pull - 2 * math.expm1(2 * count * log_rest) / (2 - eta) ** 2

    step_size = _bisect(slope, 0.0, 1.0) * float(levels[-1]) ** 2
    return step_size if convention == "full" else 2 * step_size


def __dir__() -> list[str]:
    return sorted(__all__)
