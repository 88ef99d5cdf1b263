"""How good a model or its samples are: Fisher divergences, and distances between samples."""

from fastscore.evaluation.distances import frechet_distance, nearest_distance
from fastscore.evaluation.fisher import fisher_divergence, sliced_fisher_divergence

__all__ = [
    "fisher_divergence",
    "frechet_distance",
    "nearest_distance",
    "sliced_fisher_divergence",
]
