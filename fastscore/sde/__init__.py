"""Continuous time: processes x_t = alpha(t) x_0 + sigma(t) z, and conversions of predictions."""

from fastscore.sde import conversions
from fastscore.sde._process import Process, as_process
from fastscore.sde.processes import DDPM, VE, VP, Cosine, RectifiedFlow, SubVP

__all__ = [
    "DDPM",
    "VE",
    "VP",
    "Cosine",
    "Process",
    "RectifiedFlow",
    "SubVP",
    "as_process",
    "conversions",
]


def __dir__() -> list[str]:
    return sorted(__all__)
