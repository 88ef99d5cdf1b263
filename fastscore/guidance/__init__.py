"""Control: a score given a class or a measurement, made of a score given nothing.

Everything conditional is the same samplers with another score, score(x) + grad log p(y | x).

==========================  ========================================================================
``ClassifierGuidance``      of a class, by a classifier of noisy data
``ClassifierFreeGuidance``  of any condition, by a network trained with and without it
``DPS``                     of a linear measurement, by the gradient of its residual
``PiGDM``                   the same, with a Gaussian of isotropic variance about the denoised mean
``MMPS``                    the same, with the covariance that the score's own Jacobian says
``InBasis``                 of the data in another orthogonal basis: colorization as inpainting
==========================  ========================================================================

>>> import torch, fastscore
>>> score = fastscore.scores.GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
>>> first = fastscore.operators.Mask(torch.tensor([True, False]))
>>> posterior = PiGDM(score, first, torch.tensor([2.0, 0.0]), noise=0.1)
>>> sde = fastscore.sde.VE(0.01, 10.0)
>>> x = fastscore.reverse_sde(posterior, sde, steps=50, shape=(1000, 2), seed=0)
>>> bool((x.mean(0) - torch.tensor([1.98, 0.0])).abs().max() < 0.1)
True
"""

from fastscore.guidance.basis import InBasis
from fastscore.guidance.classifier import ClassifierGuidance
from fastscore.guidance.classifier_free import ClassifierFreeGuidance
from fastscore.guidance.dps import DPS
from fastscore.guidance.mmps import MMPS
from fastscore.guidance.pigdm import PiGDM

__all__ = ["DPS", "MMPS", "ClassifierFreeGuidance", "ClassifierGuidance", "InBasis", "PiGDM"]


def __dir__() -> list[str]:
    return sorted(__all__)
