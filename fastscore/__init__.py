"""Fused kernels for score-based generative modelling in PyTorch.

============  =====================================================================================
losses        ``dsm_loss``, ``sde_loss``, ``ssm_loss``, ``score_matching_loss``, as modules
              ``DSMLoss``, ``SDELoss``, ``SSMLoss``, ``ScoreMatchingLoss``: in ``losses``; of a
              classifier of noisy data ``classifier_loss``, ``ClassifierLoss``
samplers      ``langevin``, ``annealed_langevin``, ``consistent_annealed_langevin``; in continuous
              time ``reverse_sde``, ``probability_flow``, ``SamplerState``: in ``samplers``
noise scales  ``geometric_sigmas``, ``noise_scales``, ``sigma_max_from_data``, and the step size
              ``langevin_step_size``: in ``schedules``
derivatives   ``jvp``, ``jvps``, ``quadratic_forms``, ``divergence``, ``output_and_divergence``:
              in ``derivatives``
scores        ``scores``: ``NetworkScore``, ``EpsScore``, ``DenoiserScore``, ``EDMDenoiser`` and
              ``EnergyScore`` of other models; ``GaussianMixture`` and ``Parzen``, exact
likelihood    ``log_likelihood``, ``bits_per_dim``, ``dequantize``: in ``evaluation``, with
              ``discrete_log_likelihood``, ``energy_spread``, ``auroc``, ``paired_difference``
evaluation    ``evaluation``: ``frechet_distance``, ``sliced_wasserstein``, ``energy_distance``,
              ``nearest_distance``; ``fisher_divergence``, ``sliced_fisher_divergence``
processes     ``sde``: ``VE``, ``VP``, ``SubVP``, ``Cosine``, ``DDPM``, ``RectifiedFlow``, any
              object with alpha(t) and sigma(t); ``ProcessScore``; ``conversions``, ``grids``
control       ``guidance``: ``ClassifierGuidance``, ``ClassifierFreeGuidance``; of measurements
              ``DPS``, ``PiGDM``, ``MMPS``; ``InBasis``
measurements  ``operators``: ``Mask``, ``Blur``, ``MaskedFourier``, ``Radon`` and others
networks      ``nn``: ``ScoreMLP``, ``ScoreConvNet``, ``NoisyClassifier``, ``EMA``; ``shared`` marks
              an argument that is not the samples'
saving        ``save_checkpoint``, ``load_checkpoint``, ``Checkpoint``: in ``checkpoint``; pictures
              of samples: ``save_grid``
numbers       ``random``: ``key``, ``normal``, ``uniform``, ``rademacher``
kernels       ``ops``, and the same in pure PyTorch, the specification: ``reference``
memory        ``keep_freed_memory``, for training on a CPU
============  =====================================================================================

``help`` says all of a name, and what is in a room: ``help(fastscore.scores)``.

>>> import torch, fastscore
>>> x = torch.randn(256, 2) * 0.1 + torch.tensor([1.0, -1.0])  # data: (batch, ...)
>>> sigmas = fastscore.geometric_sigmas(4.0, 0.05, 20)
>>> model = fastscore.nn.ScoreMLP(2)  # any model(x, sigma) will do
>>> loss = fastscore.dsm_loss(model, x, sigmas)  # to be minimised
>>> fastscore.annealed_langevin(model, sigmas, num_samples=8).shape
torch.Size([8, 2])
"""

import sys

from fastscore import (
    checkpoint,
    derivatives,
    evaluation,
    guidance,
    losses,
    nn,
    operators,
    ops,
    random,
    reference,
    samplers,
    schedules,
    scores,
    sde,
)
from fastscore._support.memory import keep_freed_memory
from fastscore._support.model_kwargs import shared
from fastscore._support.moved import keep_old_names
from fastscore._support.signatures import show_as_written
from fastscore.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastscore.derivatives import divergence, jvp, jvps, output_and_divergence, quadratic_forms
from fastscore.evaluation import (
    bits_per_dim,
    dequantize,
    fisher_divergence,
    log_likelihood,
    sliced_fisher_divergence,
)
from fastscore.losses import (
    ClassifierLoss,
    DSMLoss,
    ScoreMatchingLoss,
    SDELoss,
    SSMLoss,
    classifier_loss,
    dsm_loss,
    score_matching_loss,
    sde_loss,
    ssm_loss,
)
from fastscore.pictures import save_grid
from fastscore.samplers import (
    SamplerState,
    annealed_langevin,
    consistent_annealed_langevin,
    langevin,
    probability_flow,
    reverse_sde,
)
from fastscore.schedules import (
    geometric_sigmas,
    langevin_step_size,
    noise_scales,
    sigma_max_from_data,
)

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "ClassifierLoss",
    "DSMLoss",
    "SDELoss",
    "SSMLoss",
    "SamplerState",
    "ScoreMatchingLoss",
    "annealed_langevin",
    "bits_per_dim",
    "checkpoint",
    "classifier_loss",
    "consistent_annealed_langevin",
    "dequantize",
    "derivatives",
    "divergence",
    "dsm_loss",
    "evaluation",
    "fisher_divergence",
    "geometric_sigmas",
    "guidance",
    "jvp",
    "jvps",
    "keep_freed_memory",
    "langevin",
    "langevin_step_size",
    "load_checkpoint",
    "log_likelihood",
    "losses",
    "nn",
    "noise_scales",
    "operators",
    "ops",
    "output_and_divergence",
    "probability_flow",
    "quadratic_forms",
    "random",
    "reference",
    "reverse_sde",
    "samplers",
    "save_checkpoint",
    "save_grid",
    "schedules",
    "score_matching_loss",
    "scores",
    "sde",
    "sde_loss",
    "shared",
    "sigma_max_from_data",
    "sliced_fisher_divergence",
    "ssm_loss",
]

keep_old_names()
show_as_written(sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
