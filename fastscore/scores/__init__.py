"""Scores that need no training, and adapters that turn other models into scores.

===================  ==============================================================================
``NetworkScore``     of a network called otherwise, or that predicts something else
``EpsScore``         of a network that predicts the noise
``DenoiserScore``    of a network that predicts the clean sample
``EDMDenoiser``      EDM's preconditioning of a raw network; it predicts the clean sample
``EnergyScore``      of an energy: minus its gradient
``GaussianMixture``  exact at every noise level, with its density and samples
``Parzen``           exact at every noise level, of a data set
``Terms``            a sum of two that a guided score may return, added by the samplers' kernels
===================  ==============================================================================

All are called ``model(x, sigma)`` with sigma of shape (batch,).

>>> import fastscore
>>> mixture = fastscore.scores.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 0.1)
>>> sigmas = fastscore.geometric_sigmas(4.0, 0.1, 10)
>>> fastscore.annealed_langevin(mixture, sigmas, num_samples=3, seed=0).shape
torch.Size([3, 1])
"""

from fastscore._support.terms import Terms
from fastscore.scores.adapters import DenoiserScore, EpsScore, NetworkScore
from fastscore.scores.edm import EDMDenoiser
from fastscore.scores.energy import EnergyScore
from fastscore.scores.mixture import GaussianMixture
from fastscore.scores.parzen import Parzen

__all__ = [
    "DenoiserScore",
    "EDMDenoiser",
    "EnergyScore",
    "EpsScore",
    "GaussianMixture",
    "NetworkScore",
    "Parzen",
    "Terms",
]


def __dir__() -> list[str]:
    return sorted(__all__)
