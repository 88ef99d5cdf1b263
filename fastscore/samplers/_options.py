"""For type checkers: what all samplers take, so that each can say what it returns by overloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from fastscore.samplers._loop import Callback, Clamp


class SamplerOptions(TypedDict, total=False):
    """Keyword arguments that every sampler has; their meaning stands with each sampler."""

    shape: Sequence[int] | None
    num_samples: int | None
    init: str
    known: Tensor | None
    mask: Tensor | None
    clamp: Clamp | None
    seed: int | None
    generator: torch.Generator | None
    sample_offset: int
    start_step: int
    dtype: torch.dtype | None
    device: torch.device | str | None
    autocast: torch.dtype | None
    progress: bool
    callback: Callback | None
    cuda_graph: bool | str
