"""Jacobian-vector products of a network, in one forward pass that shares the value."""

from fastscore.jvp import elementwise, linear, norms, pooling, queries, shapes  # noqa: F401  rules
from fastscore.jvp.api import jvp, jvps, quadratic_forms

__all__ = ["jvp", "jvps", "quadratic_forms"]
