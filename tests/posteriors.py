"""What the tests of posterior scores share: exact scores, operators, exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore.scores import GaussianMixture

F64 = torch.float64


class Matrix:
    """y = M x of vectors, as little of an operator as there can be."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def A(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x.dtype).T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y.dtype)


class Solvable(Matrix):
    """With the closed form."""

    def solve(self, y: Tensor, r2: Any, noise2: Any) -> Tensor:
        u, s, _ = torch.linalg.svd(self.matrix.double(), full_matrices=False)
        r2 = torch.as_tensor(r2, dtype=F64).expand(len(y)).unsqueeze(1)
        return (y.double() @ u / (r2 * s.square() + noise2) @ u.T).to(y.dtype)


class Picked:
    """y = the chosen coordinates of x, elementwise: bytes do not hang on the batch."""

    def __init__(self, size: int, index: list[int]) -> None:
        self.size, self.index = size, index

    def A(self, x: Tensor) -> Tensor:
        return x[:, self.index]

    def A_adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), self.size)
        return x.index_copy(1, torch.tensor(self.index), y)

    def solve(self, y: Tensor, r2: Any, noise2: Any) -> Tensor:
        r2 = torch.as_tensor(r2).expand(len(y)).unsqueeze(1)
        return y / (r2 + noise2).to(y.dtype)


class Gaussian:
    """The exact score of N(mean, covariance) under noise."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean.double(), covariance.double()
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def __call__(self, x: Tensor, sigma: Tensor, **labels: Tensor) -> Tensor:
        inside = (x.double() - self.mean) @ self.vectors
        inside = inside / (self.values + sigma.double().square().unsqueeze(1))
        return -(inside @ self.vectors.T).to(x.dtype)

    def given(self, matrix: Tensor, y: Tensor, noise: float) -> Gaussian:
        """N given y = M x + noise n, y (m,)."""
        matrix, eye = matrix.double(), torch.eye(len(matrix), dtype=F64)
        spread = matrix @ self.covariance @ matrix.T + noise**2 * eye
        gain = torch.linalg.solve(spread, matrix @ self.covariance).T
        mean = self.mean + gain @ (y.double() - matrix @ self.mean)
        covariance = self.covariance - gain @ matrix @ self.covariance
        return Gaussian(mean, (covariance + covariance.T) / 2)


def some_gaussian(size: int, seed: int = 0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, dtype=F64, generator=generator)
    mean = torch.randn(size, dtype=F64, generator=generator)
    return Gaussian(mean, root @ root.T / size + 0.1 * torch.eye(size, dtype=F64))


def some_matrix(rows: int, size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, dtype=F64, generator=generator) / math.sqrt(size)


def mixture_given(mixture: GaussianMixture, known: list[int], y: Tensor, noise: float) -> Any:
    """The exact posterior of a mixture of which some coordinates are measured: a mixture, too."""
    means, weights = mixture.means.double().clone(), mixture.weights.double()
    variances = mixture.variances.double().reshape(len(means), -1).expand_as(means).clone()
    seen = variances[:, known] + noise**2
    off = y.double() - means[:, known]
    logits = weights.log() - 0.5 * (off.square() / seen + seen.log()).sum(1)
    means[:, known] += variances[:, known] / seen * off
    variances[:, known] *= noise**2 / seen
    parts = (logits.softmax(0), means, variances)
    return GaussianMixture(*(part.to(mixture.means.dtype) for part in parts))


def affine(score: Callable[[Tensor], Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Matrix and offset of an affine function of vectors, from its values at unit vectors."""
    points = torch.cat([torch.zeros(1, size, dtype=F64), torch.eye(size, dtype=F64)])
    values = score(points)
    return (values[1:] - values[0]).T, values[0]
