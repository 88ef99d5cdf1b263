"""The file: a safetensors one, with its own marks."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from fastscore._support.checks import fail_type
from fastscore._support.extras import require
from fastscore.nn import ScoreConvNet, ScoreMLP

FORMAT = "fastscore-checkpoint-2"
FIRST_FORMAT = "fastscore-checkpoint-1"  # networks of fastscore.nn alone, under their class's name
NETWORKS: dict[str, Any] = {
    f"fastscore.nn:{kind.__name__}": kind for kind in (ScoreMLP, ScoreConvNet)
}
NAMES = {kind: name for name, kind in NETWORKS.items()}


def require_safetensors(fn: str) -> ModuleType:
    """An optional dependency."""
    return require(fn, "safetensors", "safetensors")


def check_path(fn: str, path: Any) -> str | os.PathLike[str]:
    """A path; the checkpoint, say, where the two have changed places, is none."""
    if not isinstance(path, (str, os.PathLike)):
        fail_type(fn, "path", "the path of a file, which comes first", path)
    return path
