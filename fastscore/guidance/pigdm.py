"""Pseudoinverse-guided diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastscore._support.checks import check_int, check_number
from fastscore.guidance._conjugate_gradients import Product, conjugate_gradients
from fastscore.guidance._denoised import Denoised, combined
from fastscore.guidance._posterior import Posterior, check_noise


class PiGDM(Posterior):
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

    def _guidance(self, at: Denoised, y: Tensor, level: Tensor) -> Tensor:
        off = y - self.operator.A(at.mean)
        v, square = self.data_variance, level.double().square()
        r2 = v * square / (v + square)
        return at.pulled(self._back(off, r2))

    def _back(self, off: Tensor, r2: Tensor) -> Tensor:
        """A'(r^2 A A' + noise^2)^-1 of what is off."""
        operator, noise2 = self.operator, self.noise**2
        if hasattr(operator, "solve"):
            back: Tensor = operator.A_adjoint(operator.solve(off, r2, noise2))
            return back

        def multiply(p: Tensor) -> Product:
            carried = operator.A_adjoint(p)
            return Product(combined(p, [operator.A(carried)], (noise2, r2)), carried, 0.0)

        return conjugate_gradients(multiply, off, iterations=self.iterations).carried

    def extra_repr(self) -> str:
        """What it has been given, for ``repr``."""
        own = f"noise={self.noise:g}, data_variance={self.data_variance:g}"
        return ", ".join(filter(None, [own, super().extra_repr()]))
