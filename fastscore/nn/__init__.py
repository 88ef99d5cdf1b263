"""Small noise-conditional score networks, the moving average of their weights, and checkpoints.

================  ================================================================================
``ScoreMLP``      a multilayer perceptron, for data of the shape (dim,)
``ScoreConvNet``  a small U-Net, for images
``EMA``           the moving average of any network's weights
``checkpoint``    files of a network, its noise scales and how to sample with them
================  ================================================================================

Any ``torch.nn.Module``, and any function, will do in the place of these networks.

>>> import torch, fastscore
>>> model = fastscore.nn.ScoreMLP(2)
>>> ema = fastscore.nn.EMA(model)
>>> model(torch.zeros(5, 2), torch.ones(5)).shape
torch.Size([5, 2])
"""

from fastscore.nn import checkpoint
from fastscore.nn.conv import ScoreConvNet
from fastscore.nn.ema import EMA
from fastscore.nn.mlp import ScoreMLP

__all__ = ["EMA", "ScoreConvNet", "ScoreMLP", "checkpoint"]


def __dir__() -> list[str]:
    return sorted(__all__)
