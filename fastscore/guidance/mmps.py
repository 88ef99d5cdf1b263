"""Moment matching posterior sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_int
from fastscore.guidance._conjugate_gradients import Product, Solved, conjugate_gradients
from fastscore.guidance._denoised import Denoised, combined, squared
from fastscore.guidance._posterior import (
    Posterior,
    check_noise,
    full_precision,
    variance_left,
    where_finite,
)
from fastscore.guidance._rows import Rows
from fastscore.operators import Mask

ROUNDINGS = 8.0  # of the terms of a curvature: what is below has no sign


class MMPS(Posterior):
    r"""The score given a measurement by moment matching (Rozet et al. 2024).

    Of y = A x_0 + noise n, n ~ N(0, I), and a score S of data under noise of level s, with the
    denoised mean D(x) = x + s^2 S(x, s) and its Jacobian J, the guidance is

        J^T A^T (noise^2 + A s^2 J^T A^T)^-1 (y - A D(x)):

    x_0 given x is taken for the Gaussian with its true mean and covariance, Cov(x_0 | x) = s^2 J
    (https://arxiv.org/abs/2405.13712, section 4). Exact for any Gaussian data with the exact score,
    with as many iterations as A has rows, and so are the samples, as steps get small. Other data
    are not Gaussian given x, those in clusters far apart least: what is drawn is mostly nearer to
    the posterior than by a :class:`PiGDM` that is told the variance of all data, and farther than
    by one that is told the variance within a cluster.

    Of data that are not Gaussian the guided scores of different levels do not quite belong to one
    diffusion, and more steps do not help; a corrector does (``reverse_sde(..., corrector=
    "annealed", snr=0.5)``). A network's Jacobian is not smooth: the likelihood of its posterior
    score may take hundreds of evaluations, or not be found.

    The inverse is that of a few conjugate gradients, each of them one reverse pass through the
    score: ``iterations`` in all, for the products that the guidance needs at last are those of the
    iterations. (Reverse mode, for all share one forward pass: another pass with tangents costs
    more. Of a network J is nearly symmetric only, and J^T what gradients need.) An
    operator's ``solve`` is their preconditioner, where its rows are not orthogonal. A sample where
    the Jacobian is not positive, or where rounding is reached, stops by itself; :meth:`residual`
    says what is left.

    Args:
        score: of (x, sigma): any model of the library, an adapter, or a function.
        operator: A: any object with ``A(x)`` and ``A_adjoint(y)``, of :mod:`fastscore.operators`
            or another's.
        measurement: y, one for all samples: of the shape that A gives, with or without a batch
            of 1. For one of each sample: None here, and ``model_kwargs={"measurement": y}``.
        noise: the standard deviation of the noise in y, at least 0, one for all; of complex
            numbers, that of the real part. What is left out here is fitted; and with none a
            network's Jacobian, which is not quite a covariance, has nothing to hold it.
        iterations: of conjugate gradients, at least 1. On mixtures more than 3 change little.

    Attributes:
        data_shape, sigma_range, conditioning, prediction: of the score given y; a score is one of
            (x, sigma).

    Raises:
        ValueError, TypeError: a score of a time, an object without ``A`` or ``A_adjoint``, a
            negative noise level; on call, see ``forward``.

    Example:
        Data of variances 1 and 4, which :class:`PiGDM` would have to be told. At level 1 and x = 0
        the second element is N(0, 4/5), and N(2/3, ..) with y = 1:

        >>> import torch, fastscore
        >>> score = fastscore.scores.GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 4.0]])
        >>> class Second:
        ...     A = staticmethod(lambda x: x[:, 1:])
        ...     A_adjoint = staticmethod(lambda y: torch.nn.functional.pad(y, (1, 0)))
        >>> guided = MMPS(score, Second(), torch.tensor([1.0]), noise=1.0)
        >>> guided(torch.zeros(1, 2), 1.0).total()
        tensor([[0.0000, 0.4444]])
        >>> guided.residual(torch.zeros(1, 2), 1.0) < 1e-6
        tensor([True])
    """

    def __init__(
        self,
        score: Callable[..., Any],
        operator: Any,
        measurement: Tensor | None = None,
        *,
        noise: float = 0.0,
        iterations: int = 3,
    ) -> None:
        """See the class."""
        super().__init__(score, operator, measurement)
        name = type(self).__name__
        self.noise = check_noise(name, noise)
        self.iterations = check_int(name, "iterations", iterations, minimum=1)
        self.takes_one_product = self.iterations == 1

    def residual(
        self,
        x: Tensor,
        sigma: Tensor | float,
        *,
        measurement: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """What the iterations leave of the system at these points: |b - K v|/|b| of each sample.

        Where it is well below 1, more ``iterations`` change little. Computed when it is asked for,
        at the cost of a call.

        Args, Raises: as ``forward``.

        Returns:
            (batch,), float64; 0 where y = A D already.
        """
        level = self._checked_levels(x, sigma)
        y = self._measurement_of(x, measurement)
        with torch.no_grad():
            at = self._denoised(x, level, model_kwargs)
            with full_precision(x):
                rows = self._rows_of(x, y)
                return self._solved(at, y, rows, want_residual=True).residual

    def _guidance(self, at: Denoised, y: Tensor, rows: Rows | None) -> Tensor:
        return self._solved(at, y, rows).carried

    def _solved(
        self, at: Denoised, y: Tensor, rows: Rows | None, *, want_residual: bool = False
    ) -> Solved:
        noise2, variance = self.noise**2, at.variance
        masked = isinstance(self.operator, Mask)
        off = self.operator.A(at.misfit(y)) if masked else y - self._applied(at.mean)
        if rows is not None and not rows.complete and not masked:
            off = self._applied(self._adjoint(off)) / rows.scale  # the rest takes an iteration
        variance = variance * where_finite(variance, self.noise)
        rounding = ROUNDINGS * torch.finfo(off.dtype).eps * variance

        def multiply(p: Tensor, p2: Tensor) -> Product:
            back = p if masked else self._adjoint(p)  # A' of what is masked is itself
            carried = at.pulled(back)
            seen = self._applied(carried)
            value = combined(seen, [p], (variance, noise2), out=seen if masked else None)
            back2 = squared(back) if rows is None else rows.scale * p2
            return Product(value, carried, rounding * back2)

        def precondition(p: Tensor) -> Tensor:
            # For data of variance 1. Whatever they are, it takes out the operator's own spread.
            return self._solve(p, variance_left(variance, 1.0), noise2)

        return conjugate_gradients(
            multiply,
            off,
            iterations=self.iterations,
            precondition=precondition if rows is None and hasattr(self.operator, "solve") else None,
            want_residual=want_residual,
        )

    def extra_repr(self) -> str:
        """What it has been given, for ``repr``."""
        own = f"noise={self.noise:g}, iterations={self.iterations}"
        return ", ".join(filter(None, [own, super().extra_repr()]))
