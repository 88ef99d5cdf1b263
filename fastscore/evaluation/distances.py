"""How near samples are to data: measures that need no trained network.

All of them take two sets of samples, of any numbers, and give a Python float computed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore import ops, random
from fastscore._support.checks import (
    check_device,
    check_finite,
    check_floating,
    check_int,
    fail,
    largest,
)

# PyTorch has all that this takes (sort, cdist, qr), and SciPy's distances are of one dimension. POT
# has the sliced one (ot.sliced_wasserstein_distance): a compiled package for some thirty lines,
# which keeps the projections of all directions at once.

_BLOCK_ELEMENTS = 2**22  # float64 numbers of one block: 32 MiB
_LARGEST = 1e150  # whose square fits float64


def _rows(fn: str, arg: str, x: Tensor, *, fewest: int = 1) -> Tensor:
    check_floating(fn, arg, x, min_dim=2)
    if x.shape[0] < fewest:
        fail(fn, arg, f"at least {fewest} sample{'s' * (fewest > 1)}", x.shape[0])
    if x.numel() == 0:
        fail(fn, arg, "samples with at least one element", f"shape {tuple(x.shape)}")
    rows = x.detach().flatten(1).double()
    check_finite(fn, arg, rows)
    if (size := largest(rows)) > _LARGEST:
        fail(fn, arg, f"at most {_LARGEST:g} in magnitude, so that squares fit float64", size)
    return rows


def _two_sets(
    fn: str, arg: str, a: Tensor, other: str, b: Tensor, *, fewest: int = 1
) -> tuple[Tensor, Tensor]:
    """Both sets as (samples, elements) in float64, on one device."""
    rows = _rows(fn, arg, a, fewest=fewest)
    others = _rows(fn, other, b, fewest=fewest)
    if a.shape[1:] != b.shape[1:]:
        shapes = tuple(a.shape[1:]), tuple(b.shape[1:])
        fail(fn, other, f"samples of shape {shapes[0]}, as those of {arg}", shapes[1])
    check_device(fn, other, b, a.device, f"where {arg} is")
    return rows, others


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of samples.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}) on the values themselves, not
    on a network's features (Dowson and Landau 1982; the measure behind the FID of Heusel et al.
    2017). It sees means and covariances, nothing else; with no more samples than dimensions these
    are poorly known, and the distance of two sets of one distribution is far from 0.

    Args:
        a, b: samples, (n, ...) and (m, ...), floating point, equal shapes after the first.

    Raises:
        ValueError: fewer than 2 samples, different shapes or devices, NaN or infinity.
        TypeError: not a tensor.

    >>> x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(x, x + 2.0), 4)
    12.0
    """
    a, b = _two_sets("frechet_distance", "a", a, "b", b, fewest=2)
    mean_a, mean_b = a.mean(0), b.mean(0)
    # C = R'R with R of at most d rows. The eigenvalues of C_a^{1/2} C_b C_a^{1/2} are the squared
    # singular values of R_a R_b': no root of a rounding error, as eigenvalues would have it.
    root_a, root_b = _root_of_covariance(a - mean_a), _root_of_covariance(b - mean_b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(0.0, float((mean_a - mean_b).square().sum() + spread))


def _root_of_covariance(centred: Tensor) -> Tensor:
    """R with R'R the covariance of the rows: (min(n, d), d)."""
    scaled = centred / math.sqrt(len(centred) - 1)
    return torch.linalg.qr(scaled, mode="r").R if len(scaled) > scaled.shape[1] else scaled


def sliced_wasserstein(
    a: Tensor,
    b: Tensor,
    *,
    projections: int = 500,
    p: int = 2,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> float:
    r"""Sliced Wasserstein distance of two sets of samples.

    SW_p = (mean over directions t of W_p(t'a, t'b)^p)^{1/p}, with t uniform on the unit sphere and
    W_p the Wasserstein distance in one dimension, which sorting solves exactly (Rabin, Peyré, Delon
    and Bernot 2012; Bonneel, Rabin, Peyré and Pfister 2015, https://doi.org/10.1007/s10851-014-0506-3).
    The sets may be of different sizes: their quantile functions are compared where they are, with
    no interpolation. It sees all of a distribution, and sets of any size fit.

    A shift by c has SW_2 = |c|/sqrt(d): directions are not scaled by the dimension. Two sets of one
    distribution are not at 0 but nearer to it the more samples they have: compare with the distance
    of two halves of the data.

    Args:
        a, b: samples, (n, ...) and (m, ...), floating point, equal shapes after the first.
        projections: how many directions, at least 1; the error falls with their square root. In
            one dimension there is one, and the result is W_p itself.
        p: 1 or 2.
        seed: governs the directions, so that models are compared along the same ones; None draws
            one from PyTorch's default generator.
        generator: where to draw the seed from instead.

    Raises:
        ValueError: no samples, different shapes or devices, NaN or infinity, an argument out of its
            range.
        TypeError: an argument of the wrong type.

    >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> round(sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), projections=2000, seed=0), 1)
    3.5
    >>> sliced_wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]]), p=1)
    0.8333333333333333
    """
    fn = "sliced_wasserstein"
    check_int(fn, "projections", projections, minimum=1)
    if check_int(fn, "p", p, minimum=1) > 2:
        fail(fn, "p", "1 or 2", p)
    a, b = _two_sets(fn, "a", a, "b", b)
    key = random.make_key(fn, seed, device=a.device, generator=generator)
    if key.dim() > 1:
        fail(fn, "seed", "one integer", f"{len(key)} of them")
    dim = a.shape[1]
    directions = ops.projections(
        key, (projections if dim > 1 else 1, dim), 1, distribution="sphere", dtype=torch.float64
    )
    directions = torch.nn.functional.normalize(directions[0], dim=1)  # to all 53 bits
    at_a, at_b, lengths = _merged_steps(len(a), len(b), a.device)
    total = 0.0
    for some in directions.split(max(1, _BLOCK_ELEMENTS // (len(a) + len(b)))):
        quantiles_a, quantiles_b = (some @ a.T).sort(1).values, (some @ b.T).sort(1).values
        gaps = quantiles_a[:, at_a].sub_(quantiles_b[:, at_b]).abs_()
        total += float((gaps.square_() if p == 2 else gaps).matmul(lengths).sum())
    mean = total / len(directions)
    return math.sqrt(mean) if p == 2 else mean


def _merged_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where quantile functions of n and of m steps are constant: both steps, and the lengths."""
    # In units of 1/(nm), in which all ends of steps are whole numbers.
    own, other = (torch.arange(1, k + 1, device=device) for k in (n, m))
    ends = torch.cat([own * m, other * n]).unique()
    lengths = ends.diff(prepend=ends.new_zeros(1))
    return (ends - 1) // m, (ends - 1) // n, lengths.double() / (n * m)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'| of two sets of samples.

    With Euclidean norms, x and x' from the one distribution, y and y' from the other, all
    independent (Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018). It is 0 for
    equal distributions only, needs no direction and no choice, and takes of the order of
    (n + m)^2 d operations in memory that does not grow with n m. ``scipy.stats.energy_distance``,
    for one dimension, is its square root.

    The means are over all pairs, a sample with itself too (a V-statistic): never negative, 0 for
    equal sets, and for two sets of one distribution E|x - x'| (1/n + 1/m) in the mean.

    Args:
        a, b: samples, (n, ...) and (m, ...), floating point, equal shapes after the first.

    Raises:
        ValueError: no samples, different shapes or devices, NaN or infinity.
        TypeError: not a tensor.

    >>> energy_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    1.0
    """
    a, b = _two_sets("energy_distance", "a", a, "b", b)
    between = sum(float(_cdist(rows, b).sum()) for rows in a.split(_block_rows(len(b))))
    within = _mean_distance(a) + _mean_distance(b)
    return max(0.0, 2 * between / (len(a) * len(b)) - within)


def _mean_distance(x: Tensor) -> float:
    """The mean of |x_i - x_j| over all i and j, each pair of blocks once."""
    total, end = 0.0, 0
    for rows in x.split(_block_rows(len(x))):
        end += len(rows)
        total += float(_cdist(rows, rows).sum()) + 2 * float(_cdist(rows, x[end:]).sum())
    return total / len(x) ** 2


def nearest_distance(x: Tensor, data: Tensor) -> float:
    """Median Euclidean distance from a sample to its nearest neighbour in ``data``.

    Far below what held-out data have, the samples are copies; far above, they are off the data.
    Memory does not grow with n m.

    Args:
        x, data: (n, ...) and (m, ...), floating point, equal shapes after the first.

    Raises:
        ValueError: fewer than 2 samples, different shapes or devices, NaN or infinity.
        TypeError: not a tensor.

    >>> nearest_distance(torch.zeros(2, 1), torch.tensor([[3.0], [4.0]]))
    3.0
    """
    rows, others = _two_sets("nearest_distance", "x", x, "data", data, fewest=2)
    nearest = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    size = _block_rows(len(others))
    for some, place in zip(rows.split(size), nearest.split(size), strict=True):
        # Into its place: small results kept between the blocks would pin the heap at each of them.
        torch.amin(_cdist(some, others), 1, out=place)
    return float(nearest.median())


def _block_rows(columns: int) -> int:
    return max(1, _BLOCK_ELEMENTS // columns)


def _cdist(x: Tensor, y: Tensor) -> Tensor:
    # From differences: |x|^2 + |y|^2 - 2xy, faster above a hundred dimensions or so, puts copies at
    # 1e-8 |x| from their originals.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
