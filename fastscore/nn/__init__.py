"""Small noise-conditional score networks, and the moving average of their weights.

===================  =============================================================================
``ScoreMLP``         a multilayer perceptron, for data of the shape (dim,)
``ScoreConvNet``     a small U-Net, for images
``NoisyClassifier``  a multilayer perceptron that tells the class of noisy data, of any shape
``EMA``              the moving average of any network's weights
===================  =============================================================================

The first two are told classes where they are made with ``classes=``.

Any ``torch.nn.Module``, and any function, will do in the place of these networks.

>>> import torch, fastscore
>>> model = fastscore.nn.ScoreMLP(2)
>>> ema = fastscore.nn.EMA(model)
>>> model(torch.zeros(5, 2), torch.ones(5)).shape
torch.Size([5, 2])
"""

import importlib
import warnings
from types import ModuleType

from fastscore.nn.classifier import NoisyClassifier
from fastscore.nn.conv import ScoreConvNet
from fastscore.nn.ema import EMA
from fastscore.nn.mlp import ScoreMLP

__all__ = ["EMA", "NoisyClassifier", "ScoreConvNet", "ScoreMLP"]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> ModuleType:
    """The old name ``fastscore.nn.checkpoint``, for one more version."""
    if name != "checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = "fastscore.checkpoint"
    warnings.warn(f"{__name__}.{name} is now {new}", DeprecationWarning, stacklevel=2)
    return importlib.import_module(new)
