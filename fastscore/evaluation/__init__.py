"""How good a model or its samples are: likelihoods, Fisher divergences, distances of samples.

============================  ====================================================================
``log_likelihood``            the log density of each sample, by the probability flow
``prior_mismatch``            what the published prior is off by, of Gaussian data
``fisher_divergence``         of a model's score from a known one
``sliced_fisher_divergence``  the same along random projections
``frechet_distance``          of two sets of samples: their means and covariances
``sliced_wasserstein``        of two sets of samples: all of their distribution, along directions
``energy_distance``           of two sets of samples: all of their distribution, by their distances
``nearest_distance``          from samples to the nearest data: are they copies?
============================  ====================================================================

>>> import torch, fastscore
>>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
>>> round(fastscore.evaluation.frechet_distance(x, 2 + x), 4)
8.0
"""

from fastscore.evaluation._prior import prior_mismatch
from fastscore.evaluation.distances import (
    energy_distance,
    frechet_distance,
    nearest_distance,
    sliced_wasserstein,
)
from fastscore.evaluation.fisher import fisher_divergence, sliced_fisher_divergence
from fastscore.evaluation.likelihood import LogLikelihood, log_likelihood

__all__ = [
    "LogLikelihood",
    "energy_distance",
    "fisher_divergence",
    "frechet_distance",
    "log_likelihood",
    "nearest_distance",
    "prior_mismatch",
    "sliced_fisher_divergence",
    "sliced_wasserstein",
]


def __dir__() -> list[str]:
    return sorted(__all__)
