"""Losses whose minimum is the score of the data."""

from fastscore.losses.dsm import DSMLoss, dsm_loss

__all__ = ["DSMLoss", "dsm_loss"]
