"""Moment matching posterior sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_int
from fastscore.guidance._conjugate_gradients import Product, Solved, conjugate_gradients
from fastscore.guidance._denoised import Denoised, combined, inner
from fastscore.guidance._posterior import Posterior, check_noise

ROUNDINGS = 8.0  # of the terms of a curvature, below which it has no sign


class MMPS(Posterior):
    takes_one_product = False

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

    def residual(
        self,
        x: Tensor,
        sigma: Tensor | float,
        *,
        measurement: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        level = self._checked_levels(x, sigma)
        y = self._measurement_of(x, measurement)
        with torch.no_grad():
            at = self._denoised(x, level, model_kwargs)
            return self._solved(at, y, level, want_residual=True).residual

    def _guidance(self, at: Denoised, y: Tensor, level: Tensor) -> Tensor:
        return self._solved(at, y, level, want_residual=False).carried

    def _solved(self, at: Denoised, y: Tensor, level: Tensor, *, want_residual: bool) -> Solved:
        operator, noise2, variance = self.operator, self.noise**2, at.variance
        off = y - operator.A(at.mean)
        rounding = ROUNDINGS * torch.finfo(off.dtype).eps * variance

        def multiply(p: Tensor) -> Product:
            back = operator.A_adjoint(p)
            carried = at.pulled(back)
            value = combined(operator.A(carried), [p], (variance, noise2))
            return Product(value, carried, rounding * inner(back, back))

        precondition: Callable[[Tensor], Tensor] | None = None
        if hasattr(operator, "solve"):
            # Of data of variance 1: whatever it is, it takes out the operator's own spread.
            r2 = variance / (1 + variance)

            def precondition(p: Tensor) -> Tensor:
                return operator.solve(p, r2, noise2)

        return conjugate_gradients(
            multiply,
            off,
            iterations=self.iterations,
            precondition=precondition,
            want_residual=want_residual,
        )

    def extra_repr(self) -> str:
        """What it has been given, for ``repr``."""
        own = f"noise={self.noise:g}, iterations={self.iterations}"
        return ", ".join(filter(None, [own, super().extra_repr()]))
