"""Diffusion posterior sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_number
from fastscore.guidance._denoised import Denoised, quotient, squared
from fastscore.guidance._posterior import Posterior, variance_left
from fastscore.guidance._rows import Rows, tried


class DPS(Posterior):
    r"""The score given a measurement by diffusion posterior sampling (Chung et al. 2023).

    Of y = A x_0 + n and a score S of data under noise of level s, with the denoised mean
    D(x) = x + s^2 S(x, s) (Tweedie's formula), the guidance is

        -scale sqrt(m)/r grad_x |y - A D(x)|,    r^2 = v s^2/(v + s^2),

    the norm itself and not its square, each sample's own, of m numbers. The published rule takes a
    step zeta grad |y - A D| off each step of a sampler, however many there are, with a zeta found
    by trying (https://arxiv.org/abs/2209.14687, algorithm 1). Here it is a score, which steps
    multiply by their own size, so that the result converges as they get more; and ``scale`` has no
    unit. At ``scale`` 1 it is the guidance of :class:`PiGDM`, for A A^T = 1 and no noise, with
    sqrt(m) r, what the norm is when x is as likely as not, in place of the norm. One step from
    level s to s' takes zeta = scale sqrt(m) alpha alpha' (s^2 - s'^2)/r, in the state alpha x of a
    process: with 1000 steps of the VP process, m = 12288 and ``scale`` 1 from 0.7 to 2.2.

    It is exact for nothing, and does not ask how noisy y is: it pulls y - A D to 0, with the
    default of 2 harder than is right, which on mixtures comes nearest (for much noise less
    does). Where A A^T has a closed form, or several products can be paid,
    :class:`PiGDM` and :class:`MMPS` are better. A call takes one of the score and one reverse
    pass through it.

    Args:
        score: of (x, sigma): any model of the library, an adapter, or a function.
        operator: A: any object with ``A(x)`` and ``A_adjoint(y)``, of :mod:`fastscore.operators`
            or another's.
        measurement: y, one for all samples: of the shape that A gives, with or without a batch
            of 1. For one of each sample: None here, and ``model_kwargs={"measurement": y}``.
        scale: the strength of the guidance, at least 0.
        data_variance: v, of an element of the data.

    Attributes:
        data_shape, sigma_range, conditioning, prediction: of the score given y; a score is one of
            (x, sigma).

    Raises:
        ValueError, TypeError: a score of a time, an object without ``A`` or ``A_adjoint``, a
            negative scale; on call, see ``forward``.

    Example:
        >>> import torch, fastscore
        >>> score = fastscore.scores.GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
        >>> class First:
        ...     A = staticmethod(lambda x: x[:, :1])
        ...     A_adjoint = staticmethod(lambda y: torch.nn.functional.pad(y, (0, 1)))
        >>> guided = DPS(score, First(), torch.tensor([1.0]), scale=1.0)
        >>> guided(torch.zeros(1, 2), 1.0).total()
        tensor([[0.7071, 0.0000]])
    """

    def __init__(
        self,
        score: Callable[..., Any],
        operator: Any,
        measurement: Tensor | None = None,
        *,
        scale: float = 2.0,
        data_variance: float = 1.0,
    ) -> None:
        """See the class."""
        super().__init__(score, operator, measurement)
        name = type(self).__name__
        self.scale = check_number(name, "scale", scale, minimum=0.0)
        self.data_variance = check_number(name, "data_variance", data_variance, positive=True)

    def _guidance(self, at: Denoised, y: Tensor, rows: Rows | None) -> Tensor:
        off, back = self._off(at, y)
        if rows is not None:  # without what A never gives
            return at.pulled(back, self._weight(at, squared(back), rows.scale * rows.rank))
        square, count = squared(off), float(off[:1].numel() * (2 if off.is_complex() else 1))
        if at.x.numel() and not self._looks_at_rows(at.x):  # so by numbers on the device
            found = tried(self.operator, y.detach())
            size, again = squared(back), squared(self._applied(back))
            seen = quotient(size.square(), again, again != 0)
            square = torch.where(found.orthogonal, seen, square)
            rank = torch.where(found.orthogonal, found.rank, count)
            return at.pulled(back, self._weight(at, square, rank))
        return at.pulled(back, self._weight(at, square, count))

    def _weight(self, at: Denoised, square: Tensor, count: Tensor | float) -> Tensor:
        """scale sqrt(m)/(r |y - A D|)."""
        far = square != 0  # a norm has no gradient at 0, nor is one needed
        r2 = variance_left(at.variance, self.data_variance)
        size = (r2 / count * square.where(far, 1.0)).rsqrt()
        return (self.scale * size).where(far, 0.0)

    def extra_repr(self) -> str:
        """What it has been given, for ``repr``."""
        own = f"scale={self.scale:g}, data_variance={self.data_variance:g}"
        return ", ".join(filter(None, [own, super().extra_repr()]))
