"""Losses whose minimum is the score of the data, as functions and as modules.

=================================================  ================================================
``dsm_loss``, ``DSMLoss``                          denoising score matching, the cheapest
``sde_loss``, ``SDELoss``                          the same in continuous time, of a process
``classifier_loss``, ``ClassifierLoss``            cross-entropy of a classifier of noisy data, to
                                                   guide a score by it
``ssm_loss``, ``SSMLoss``                          sliced score matching, on clean data too
``score_matching_loss``, ``ScoreMatchingLoss``     score matching with the exact trace
=================================================  ================================================

A module checks and prepares its noise levels once: take it in a training loop.

>>> import torch, fastscore
>>> loss_fn = fastscore.losses.DSMLoss(fastscore.geometric_sigmas(4.0, 0.1, 10))
>>> loss_fn(fastscore.nn.ScoreMLP(2), torch.randn(128, 2), seed=0).shape
torch.Size([])
"""

from fastscore.losses.classifier import ClassifierLoss, classifier_loss
from fastscore.losses.dsm import DSMLoss, dsm_loss
from fastscore.losses.score_matching import ScoreMatchingLoss, score_matching_loss
from fastscore.losses.sde import SDELoss, sde_loss
from fastscore.losses.ssm import SSMLoss, ssm_loss

__all__ = [
    "ClassifierLoss",
    "DSMLoss",
    "SDELoss",
    "SSMLoss",
    "ScoreMatchingLoss",
    "classifier_loss",
    "dsm_loss",
    "score_matching_loss",
    "sde_loss",
    "ssm_loss",
]


def __dir__() -> list[str]:
    return sorted(__all__)
