"""The family ``random``: fill a tensor with counter-based noise.

Least traffic: one write of the output. Noise is a pure function of (seed, stream, draw, flat
element index): Philox4x32-10 (Salmon et al. 2011), normals by Box and Muller (1958).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._streams import Stream
from fastscore.ops._library import ops


def normal_(
    out: Tensor, key: Tensor, *, stream: int = Stream.USER, sample_offset: int = 0
) -> Tensor:
    """Fill ``out`` (batch first, any strides) with standard normals; returns ``out``.

    ``key`` is the int64 tensor [seed, draw] on the device of ``out``. The first element has flat
    index ``sample_offset * out[0].numel()``.
    """
    ops.random_normal_.default(out, key, int(stream), sample_offset)
    return out


def uniform_(
    out: Tensor, key: Tensor, *, stream: int = Stream.USER, sample_offset: int = 0
) -> Tensor:
    """Fill ``out`` (batch first, any strides) with uniform numbers in [0, 1); returns ``out``."""
    ops.random_uniform_.default(out, key, int(stream), sample_offset)
    return out


def rademacher_(
    out: Tensor, key: Tensor, *, stream: int = Stream.USER, sample_offset: int = 0
) -> Tensor:
    """Fill ``out`` (batch first, any strides) with -1 and +1 at equal odds; returns ``out``."""
    ops.random_rademacher_.default(out, key, int(stream), sample_offset)
    return out


@torch.library.register_fake("fastscore::random_normal_")
@torch.library.register_fake("fastscore::random_uniform_")
@torch.library.register_fake("fastscore::random_rademacher_")
def _(out: Tensor, key: Tensor, stream: int, sample_offset: int) -> None:
    return None
