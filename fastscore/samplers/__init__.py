"""Samplers: from the score of a model to samples.

================================  ================================================================
``annealed_langevin``             through all noise levels, a few steps at each
``consistent_annealed_langevin``  the same with one step a level and the right noise after it
``langevin``                      on one density
``reverse_sde``                   a process in continuous time, by predictor and corrector
``probability_flow``              its ordinary differential equation: few calls of the model
``SamplerState``                  where such a run has come to, and is resumed from
================================  ================================================================

Each one is a table of step coefficients, run by one loop, so that all have the same options:
inpainting, trajectories, stop and resume, a seed or a number for each sample.

>>> import fastscore
>>> fastscore.samplers.langevin(lambda x: -x, shape=(4, 2), steps=100, step_size=0.1, seed=0).shape
torch.Size([4, 2])
"""

from fastscore.samplers._state import SamplerState
from fastscore.samplers.annealed import annealed_langevin
from fastscore.samplers.consistent import consistent_annealed_langevin
from fastscore.samplers.flow import probability_flow
from fastscore.samplers.reverse import reverse_sde
from fastscore.samplers.unadjusted import langevin

__all__ = [
    "SamplerState",
    "annealed_langevin",
    "consistent_annealed_langevin",
    "langevin",
    "probability_flow",
    "reverse_sde",
]


def __dir__() -> list[str]:
    return sorted(__all__)
