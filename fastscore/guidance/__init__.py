"""Control: a score given a class or a measurement, made of a score given nothing.

Everything conditional is the same samplers with another score, score(x) + grad log p(y | x).
"""

from fastscore.guidance.basis import InBasis
from fastscore.guidance.dps import DPS
from fastscore.guidance.mmps import MMPS
from fastscore.guidance.pigdm import PiGDM

__all__ = ["DPS", "InBasis", "MMPS", "PiGDM"]


def __dir__() -> list[str]:
    return sorted(__all__)
