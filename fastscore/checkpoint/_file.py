"""The file: a safetensors one, with its own marks."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from torch import nn

from fastscore._support.checks import fail_type
from fastscore._support.extras import require
from fastscore.nn import NoisyClassifier, ScoreConvNet, ScoreMLP
from fastscore.nn._contents import contents
from fastscore.scores.adapters import Wrapper

FORMAT = "fastscore-checkpoint-3"
SECOND_FORMAT = "fastscore-checkpoint-2"  # without a process
FIRST_FORMAT = "fastscore-checkpoint-1"  # networks of fastscore.nn alone, under their class's name
NETWORKS: dict[str, Any] = {
    f"fastscore.nn:{kind.__name__}": kind for kind in (ScoreMLP, ScoreConvNet, NoisyClassifier)
}
NAMES = {kind: name for name, kind in NETWORKS.items()}


def adapters_of(network: nn.Module) -> dict[str, dict[str, Any]]:
    """The adapters in a network by name, and how each calls what it is made around."""
    found = contents(network).modules.items()
    return {name: part.convention() for name, part in found if isinstance(part, Wrapper)}


def require_safetensors(fn: str) -> ModuleType:
    """An optional dependency."""
    return require(fn, "safetensors", "safetensors")


def check_path(fn: str, path: Any) -> str | os.PathLike[str]:
    """A path; the checkpoint, say, where the two have changed places, is none."""
    if not isinstance(path, (str, os.PathLike)):
        fail_type(fn, "path", "the path of a file, which comes first", path)
    return path
