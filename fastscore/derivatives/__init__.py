"""Derivatives of networks: values, Jacobian-vector products, traces, divergence, projections.

===================  ============================================================================
``forward``          output and Jacobian-vector products of an unchanged network in one pass
``closed_form``      the exact trace of a multilayer perceptron, from weights and slopes
``traces``           the exact trace of any network, and reverse mode
``projections``      v'J v by each way of taking it: what sliced losses and estimates are made of
``hutchinson``       the divergence of a vector field, exact or estimated
===================  ============================================================================
"""

from fastscore.derivatives.forward import jvp, jvps, quadratic_forms
from fastscore.derivatives.hutchinson import divergence, output_and_divergence

__all__ = ["divergence", "jvp", "jvps", "output_and_divergence", "quadratic_forms"]
