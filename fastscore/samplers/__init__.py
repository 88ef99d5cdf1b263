"""Samplers: each one is a table of step coefficients, run by the one loop in ``_loop.py``."""

from fastscore.samplers.annealed import annealed_langevin
from fastscore.samplers.consistent import consistent_annealed_langevin
from fastscore.samplers.unadjusted import langevin

__all__ = ["annealed_langevin", "consistent_annealed_langevin", "langevin"]
