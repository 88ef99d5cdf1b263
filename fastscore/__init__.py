"""Fused kernels for score-based generative modelling in PyTorch."""

from fastscore import checkpoint, nn, ops, random, reference, scores, sde
from fastscore._support.memory import keep_freed_memory
from fastscore._support.model_kwargs import shared
from fastscore._support.moved import keep_old_names
from fastscore.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastscore.derivatives import divergence, jvp, jvps, output_and_divergence, quadratic_forms
from fastscore.evaluation import fisher_divergence, sliced_fisher_divergence
from fastscore.losses import (
    DSMLoss,
    ScoreMatchingLoss,
    SSMLoss,
    dsm_loss,
    score_matching_loss,
    ssm_loss,
)
from fastscore.pictures import save_grid
from fastscore.samplers import annealed_langevin, consistent_annealed_langevin, langevin
from fastscore.schedules import (
    geometric_sigmas,
    langevin_step_size,
    noise_scales,
    sigma_max_from_data,
)

__version__ = "0.1.0"

keep_old_names()

__all__ = [
    "Checkpoint",
    "DSMLoss",
    "SSMLoss",
    "ScoreMatchingLoss",
    "annealed_langevin",
    "checkpoint",
    "consistent_annealed_langevin",
    "divergence",
    "dsm_loss",
    "fisher_divergence",
    "geometric_sigmas",
    "jvp",
    "jvps",
    "keep_freed_memory",
    "langevin",
    "langevin_step_size",
    "load_checkpoint",
    "nn",
    "noise_scales",
    "ops",
    "output_and_divergence",
    "quadratic_forms",
    "random",
    "reference",
    "save_checkpoint",
    "save_grid",
    "score_matching_loss",
    "scores",
    "sde",
    "shared",
    "sigma_max_from_data",
    "sliced_fisher_divergence",
    "ssm_loss",
]
