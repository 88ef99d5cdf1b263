"""Samplers: from the score of a model to samples.

================================  ================================================================
``annealed_langevin``             through all noise levels, a few steps at each
``consistent_annealed_langevin``  the same with one step a level and the right noise after it
``langevin``                      on one density
================================  ================================================================

Each one is a table of step coefficients, run by one loop, so that all have the same options:
inpainting, trajectories, stop and resume, a seed or a number for each sample.

>>> import fastscore
>>> fastscore.samplers.langevin(lambda x: -x, shape=(4, 2), steps=100, step_size=0.1, seed=0).shape
torch.Size([4, 2])
"""

from fastscore.samplers.annealed import annealed_langevin
from fastscore.samplers.consistent import consistent_annealed_langevin
from fastscore.samplers.unadjusted import langevin

__all__ = ["annealed_langevin", "consistent_annealed_langevin", "langevin"]


def __dir__() -> list[str]:
    return sorted(__all__)
