"""Scores that need no training, and adapters that turn other models into scores."""

from fastscore.scores.adapters import DenoiserScore, EpsScore, NetworkScore
from fastscore.scores.energy import EnergyScore
from fastscore.scores.mixture import GaussianMixture
from fastscore.scores.parzen import Parzen

__all__ = ["DenoiserScore", "EnergyScore", "EpsScore", "GaussianMixture", "NetworkScore", "Parzen"]
