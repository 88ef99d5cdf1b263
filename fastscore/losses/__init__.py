"""Losses whose minimum is the score of the data."""

from fastscore.losses.dsm import DSMLoss, dsm_loss
from fastscore.losses.score_matching import ScoreMatchingLoss, score_matching_loss
from fastscore.losses.ssm import SSMLoss, ssm_loss

__all__ = [
    "DSMLoss",
    "SSMLoss",
    "ScoreMatchingLoss",
    "dsm_loss",
    "score_matching_loss",
    "ssm_loss",
]
