"""How near samples are to data: measures that need no trained network."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._support.checks import check_floating, fail


def _rows(fn: str, arg: str, x: Tensor) -> Tensor:
    check_floating(fn, arg, x, min_dim=2)
    if x.shape[0] < 2:
        fail(fn, arg, "at least 2 samples", x.shape[0])
    return x.flatten(1).double()


def _check_alike(fn: str, arg: str, x: Tensor, like: str, other: Tensor) -> None:
    if x.shape[1:] != other.shape[1:]:
        shapes = tuple(other.shape[1:]), tuple(x.shape[1:])
        fail(fn, arg, f"samples of shape {shapes[0]}, as those of {like}", shapes[1])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of samples.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}) on the values themselves, not
    on a network's features (Dowson and Landau 1982; the measure behind the FID of Heusel et al.
    2017).

    Args:
        a, b: samples, (n, ...) and (m, ...), floating point, equal shapes after the first.

    Raises:
        ValueError: fewer than 2 samples, or different shapes.

    >>> x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(x, x + 2.0), 4)
    12.0
    """
    fn = "frechet_distance"
    rows, others = _rows(fn, "a", a), _rows(fn, "b", b)
    _check_alike(fn, "b", b, "a", a)
    a, b = rows, others
    values, vectors = torch.linalg.eigh(torch.cov(a.T))
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp_min(0).sqrt().sum()
    spread = torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def nearest_distance(x: Tensor, data: Tensor) -> float:
    """Median Euclidean distance from a sample to its nearest neighbour in ``data``.

    Far below what held-out data have, the samples are copies; far above, they are off the data.

    Args:
        x, data: (n, ...) and (m, ...), floating point, equal shapes after the first.

    Raises:
        ValueError: fewer than 2 samples, or different shapes.

    >>> nearest_distance(torch.zeros(2, 1), torch.tensor([[3.0], [4.0]]))
    3.0
    """
    fn = "nearest_distance"
    rows, others = _rows(fn, "x", x), _rows(fn, "data", data)
    _check_alike(fn, "data", data, "x", x)
    return float(torch.cdist(rows, others).min(1).values.median())
