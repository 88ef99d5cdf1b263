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
