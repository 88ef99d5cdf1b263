"""Fused kernels for score-based generative modelling in PyTorch."""

from fastscore import nn, ops, random, reference, scores
from fastscore.jvp import jvp, jvps, quadratic_forms
from fastscore.losses import DSMLoss, dsm_loss
from fastscore.samplers import annealed_langevin, consistent_annealed_langevin, langevin
from fastscore.schedules import (
    geometric_sigmas,
    langevin_step_size,
    noise_scales,
    sigma_max_from_data,
)

__version__ = "0.1.0"

__all__ = [
    "DSMLoss",
    "annealed_langevin",
    "consistent_annealed_langevin",
    "dsm_loss",
    "geometric_sigmas",
    "jvp",
    "jvps",
    "langevin",
    "langevin_step_size",
    "nn",
    "noise_scales",
    "ops",
    "quadratic_forms",
    "random",
    "reference",
    "scores",
    "sigma_max_from_data",
]
