"""Diffusion posterior sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastscore._support.checks import check_number
from fastscore.guidance._denoised import Denoised, inner, quotient
from fastscore.guidance._posterior import Posterior


class DPS(Posterior):
    def __init__(
        self,
        score: Callable[..., Any],
        operator: Any,
        measurement: Tensor | None = None,
        *,
        scale: float = 1.0,
    ) -> None:
        """See the class."""
        super().__init__(score, operator, measurement)
        self.scale = check_number(type(self).__name__, "scale", scale, minimum=0.0)

    def _guidance(self, at: Denoised, y: Tensor, level: Tensor) -> Tensor:
        off = y - self.operator.A(at.mean)
        square = inner(off, off)
        far = square > 0  # a norm has no gradient at 0: there is none needed
        size = quotient(square, square.where(far, 1.0).sqrt(), far)
        strength = self.scale * math.sqrt(off[0].numel())
        weight = quotient(strength / level.double(), size, far)
        return at.pulled(self.operator.A_adjoint(off), weight)

    def extra_repr(self) -> str:
        """What it has been given, for ``repr``."""
        return ", ".join(filter(None, [f"scale={self.scale:g}", super().extra_repr()]))
