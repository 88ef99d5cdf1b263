"""Derivatives of networks: values, Jacobian-vector products, traces, divergence, projections.

=============================================  ====================================================
``jvp``, ``jvps``                              output and Jacobian-vector products in one pass
``quadratic_forms``                            output and v'J v of each sample
``divergence``, ``output_and_divergence``      the trace of the Jacobian, exact or estimated
``known_divergence``                           a model's own function of both, where it has one
=============================================  ====================================================

>>> import torch, fastscore
>>> fastscore.derivatives.divergence(lambda x: -x, torch.zeros(2, 3), method="exact")
tensor([-3., -3.])

The modules:

===================  ============================================================================
``forward``          output and Jacobian-vector products of an unchanged network in one pass
``closed_form``      the exact trace of a multilayer perceptron, from weights and slopes
``known``            models that know their own divergence
``traces``           the exact trace of any network, and reverse mode
``projections``      v'J v by each way of taking it: what sliced losses and estimates are made of
``hutchinson``       the divergence of a vector field, exact or estimated
===================  ============================================================================
"""

from fastscore.derivatives.forward import jvp, jvps, quadratic_forms
from fastscore.derivatives.hutchinson import divergence, output_and_divergence
from fastscore.derivatives.known import known_divergence

__all__ = [
    "divergence",
    "jvp",
    "jvps",
    "known_divergence",
    "output_and_divergence",
    "quadratic_forms",
]


def __dir__() -> list[str]:
    return sorted(__all__)
