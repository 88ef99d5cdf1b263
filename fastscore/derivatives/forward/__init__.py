"""Jacobian-vector products of a network, in one forward pass that shares the value."""

from fastscore.derivatives.forward import (  # noqa: F401  rules
    attention,
    elementary,
    elementwise,
    linear,
    norms,
    pooling,
    queries,
    shapes,
)
from fastscore.derivatives.forward.api import jvp, jvps, quadratic_forms

__all__ = ["jvp", "jvps", "quadratic_forms"]
