"""Control: a score given a class or a measurement, made of a score given nothing.

Everything conditional is the same samplers with another score, score(x) + grad log p(y | x).

==========================  ========================================================================
``ClassifierGuidance``      of a class, by a classifier of noisy data
``ClassifierFreeGuidance``  of any condition, by a network trained with and without it
==========================  ========================================================================
"""

from fastscore.guidance.classifier import ClassifierGuidance
from fastscore.guidance.classifier_free import ClassifierFreeGuidance

__all__ = ["ClassifierFreeGuidance", "ClassifierGuidance"]


def __dir__() -> list[str]:
    return sorted(__all__)
