"""Small noise-conditional score networks, and the moving average of their weights."""

import importlib
import warnings
from types import ModuleType

from fastscore.nn.conv import ScoreConvNet
from fastscore.nn.ema import EMA
from fastscore.nn.mlp import ScoreMLP

__all__ = ["EMA", "ScoreConvNet", "ScoreMLP"]


def __getattr__(name: str) -> ModuleType:
    """The old name ``fastscore.nn.checkpoint``, for one more version."""
    if name != "checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = "fastscore.checkpoint"
    warnings.warn(f"{__name__}.{name} is now {new}", DeprecationWarning, stacklevel=2)
    return importlib.import_module(new)
