"""How good a model or its samples are: likelihoods, bits, outliers, distances of samples.

============================  ====================================================================
``log_likelihood``            the log density of each sample, by the probability flow
``prior_mismatch``            what the published prior is off by, of Gaussian data
``discrete_log_likelihood``   bits per dimension of discrete data: a ``DiscreteLikelihood``
``bits_per_dim``              the same from log densities of dequantised data
``dequantize``, ``quantize``  discrete data made continuous by uniform noise, and back
``energy_spread``             of an energy and of the flow of its gradient: an ``EnergySpread``
``auroc``                     how well a score tells outliers, with its standard error
``paired_difference``         of two models on the same samples, with its standard error
``fisher_divergence``         of a model's score from a known one
``sliced_fisher_divergence``  the same along random projections
``frechet_distance``          of two sets of samples: their means and covariances
``sliced_wasserstein``        of two sets of samples: all of their distribution, along directions
``energy_distance``           of two sets of samples: all of their distribution, by their distances
``nearest_distance``          from samples to the nearest data: are they copies?
============================  ====================================================================

What they return: ``LogLikelihood``, ``DiscreteLikelihood``, ``EnergySpread``, floats and pairs.

>>> import torch, fastscore
>>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
>>> round(fastscore.evaluation.frechet_distance(x, 2 + x), 4)
8.0
"""

from fastscore.evaluation._prior import prior_mismatch
from fastscore.evaluation.bits import bits_per_dim, dequantize, quantize
from fastscore.evaluation.discrete import DiscreteLikelihood, discrete_log_likelihood
from fastscore.evaluation.distances import (
    energy_distance,
    frechet_distance,
    nearest_distance,
    sliced_wasserstein,
)
from fastscore.evaluation.energies import EnergySpread, energy_spread
from fastscore.evaluation.fisher import fisher_divergence, sliced_fisher_divergence
from fastscore.evaluation.likelihood import LogLikelihood, log_likelihood
from fastscore.evaluation.outliers import auroc, paired_difference

__all__ = [
    "DiscreteLikelihood",
    "EnergySpread",
    "LogLikelihood",
    "auroc",
    "bits_per_dim",
    "dequantize",
    "discrete_log_likelihood",
    "energy_distance",
    "energy_spread",
    "fisher_divergence",
    "frechet_distance",
    "log_likelihood",
    "nearest_distance",
    "paired_difference",
    "prior_mismatch",
    "quantize",
    "sliced_fisher_divergence",
    "sliced_wasserstein",
]


def __dir__() -> list[str]:
    return sorted(__all__)
