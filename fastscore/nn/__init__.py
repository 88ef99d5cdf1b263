"""Small noise-conditional score networks, and the moving average of their weights."""

from fastscore.nn.conv import ScoreConvNet
from fastscore.nn.ema import EMA
from fastscore.nn.mlp import ScoreMLP

__all__ = ["EMA", "ScoreConvNet", "ScoreMLP"]
