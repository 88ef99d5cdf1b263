"""Small noise-conditional score networks, the moving average of their weights, and checkpoints."""

from fastscore.nn import checkpoint
from fastscore.nn.conv import ScoreConvNet
from fastscore.nn.ema import EMA
from fastscore.nn.mlp import ScoreMLP

__all__ = ["EMA", "ScoreConvNet", "ScoreMLP", "checkpoint"]
