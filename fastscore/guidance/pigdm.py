"""Pseudoinverse-guided diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastscore._support.checks import check_int, check_number
from fastscore.guidance._conjugate_gradients import Product, conjugate_gradients
from fastscore.guidance._denoised import Denoised, combined, inverse
from fastscore.guidance._posterior import Posterior, check_noise, variance_left, where_finite
from fastscore.guidance._rows import Rows


class PiGDM(Posterior):
    r"""The score given a measurement by pseudo-inverse guidance (Song et al. 2023).

    Of y = A x_0 + noise n, n ~ N(0, I), and a score S of data under noise of level s, with the
    denoised mean D(x) = x + s^2 S(x, s), the guidance is

        (dD/dx)^T A^T (r^2 A A^T + noise^2)^-1 (y - A D(x)),    r^2 = v s^2/(v + s^2):

    x_0 given x is taken for N(D, r^2 I) (https://openreview.net/forum?id=9_gsMA8MRKQ, equation 7,
    named for the pseudo-inverse that is left where noise is 0). Exact for data of N(m, v I), any m
    and A, and so are the samples, as steps get small; of other data an approximation that is good
    where their covariance given x is near r^2 I.

    Where the rows of A are orthogonal and of one length, as those of masks, of pooling and of parts
    of unitary transforms are, the inverse is a number (that is looked at once); else it is the
    operator's ``solve(y, r2, noise2)``; else, of one without, that of some iterations of conjugate
    gradients, which cost products with A alone. A call takes one of the
    score and one reverse pass through it.

    Args:
        score: of (x, sigma): any model of the library, an adapter, or a function.
        operator: A: any object with ``A(x)`` and ``A_adjoint(y)``, of :mod:`fastscore.operators`
            or another's.
        measurement: y, one for all samples: of the shape that A gives, with or without a batch
            of 1. For one of each sample: None here, and ``model_kwargs={"measurement": y}``.
        noise: the standard deviation of the noise in y, at least 0, one for all; of complex
            numbers, that of the real part. What is left out here is fitted.
        data_variance: v, of the data. Begin with that of an element (``x.var(0).mean()``; within a
            cluster, where there are clusters). Where elements depend on one another, as those of
            pictures do, each step goes too far with it, and samples may diverge: go up, at most to
            the first eigenvalue of their covariance, which never does.
        iterations: of conjugate gradients, where nothing else gives the inverse.

    Attributes:
        data_shape, sigma_range, conditioning, prediction: of the score given y; a score is one of
            (x, sigma).

    Raises:
        ValueError, TypeError: a score of a time, an object without ``A`` or ``A_adjoint``, a
            negative noise level; on call, see ``forward``.

    Example:
        Of N(0, I), and at level 1, x_0 given x = 0 is N(0, 1/2). With y = 1 the score of the first
        element is that of N(1/2, 1) then, at 0:

        >>> import torch, fastscore
        >>> score = fastscore.scores.GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
        >>> class First:
        ...     A = staticmethod(lambda x: x[:, :1])
        ...     A_adjoint = staticmethod(lambda y: torch.nn.functional.pad(y, (0, 1)))
        >>> guided = PiGDM(score, First(), torch.tensor([1.0]), noise=1.0)
        >>> guided(torch.zeros(1, 2), 1.0).total()
        tensor([[0.3333, 0.0000]])
    """

    def __init__(
        self,
        score: Callable[..., Any],
        operator: Any,
        measurement: Tensor | None = None,
        *,
        noise: float = 0.0,
        data_variance: float = 1.0,
        iterations: int = 20,
    ) -> None:
        """See the class."""
        super().__init__(score, operator, measurement)
        name = type(self).__name__
        self.noise = check_noise(name, noise)
        self.data_variance = check_number(name, "data_variance", data_variance, positive=True)
        self.iterations = check_int(name, "iterations", iterations, minimum=1)

    @property
    def diverges_where(self) -> str:
        """What the samplers say besides, where samples run away."""
        return (
            f"PiGDM steps too far where data_variance, here {self.data_variance:g}, is below the "
            "variance of the data in some direction (the largest eigenvalue of their covariance)."
        )

    def _guidance(self, at: Denoised, y: Tensor, rows: Rows | None) -> Tensor:
        r2 = variance_left(at.variance, self.data_variance)
        if rows is None:
            there = where_finite(at.variance, self.noise)
            return at.pulled(self._back(y - self._applied(at.mean), r2), there)
        return at.pulled(self._off(at, y)[1], inverse(rows.scale * r2 + self.noise**2))

    def _back(self, off: Tensor, r2: Tensor | float) -> Tensor:
        """A'(r^2 A A' + noise^2)^-1 of what is off."""
        noise2 = self.noise**2
        if hasattr(self.operator, "solve"):
            return self._adjoint(self._solve(off, r2, noise2))

        def multiply(p: Tensor, _: Tensor) -> Product:
            carried = self._adjoint(p).clone()  # several are kept: the operator's own memory
            value = combined(self._applied(carried), [p], (r2, noise2))
            return Product(value, carried, 0.0)

        return conjugate_gradients(multiply, off, iterations=self.iterations).carried

    def extra_repr(self) -> str:
        """What it has been given, for ``repr``."""
        own = f"noise={self.noise:g}, data_variance={self.data_variance:g}"
        return ", ".join(filter(None, [own, super().extra_repr()]))
