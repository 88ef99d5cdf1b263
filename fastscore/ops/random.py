"""The family ``random``: fill a tensor with counter-based noise.

Least traffic: one write of the output. Noise is a pure function of (seed, stream, draw, flat
element index): Philox4x32-10 (Salmon et al. 2011), normals by Box and Muller (1958).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._support.streams import Stream
from fastscore.ops._library import call_, check_same_device, ops
from fastscore.ops._vmap import map_slices


def normal_(
    out: Tensor, key: Tensor, *, stream: int = Stream.USER, sample_offset: int = 0
) -> Tensor:
    """Fill ``out`` (batch first, any strides) with standard normals; returns ``out``.

    ``key`` is the int64 tensor [seed, draw] on the device of ``out``. The first element has flat
    index ``sample_offset * out[0].numel()``.
    """
    return call_("normal_", ops.random_normal_.default, ("out",), out, key, stream, sample_offset)


def uniform_(
    out: Tensor, key: Tensor, *, stream: int = Stream.USER, sample_offset: int = 0
) -> Tensor:
    """Fill ``out`` (batch first, any strides) with uniform numbers in [0, 1); returns ``out``."""
    return call_("uniform_", ops.random_uniform_.default, ("out",), out, key, stream, sample_offset)


def rademacher_(
    out: Tensor, key: Tensor, *, stream: int = Stream.USER, sample_offset: int = 0
) -> Tensor:
    """Fill ``out`` (batch first, any strides) with -1 and +1 at equal odds; returns ``out``."""
    return call_(
        "rademacher_", ops.random_rademacher_.default, ("out",), out, key, stream, sample_offset
    )


def _register_fake(name: str) -> None:
    @torch.library.register_fake(f"fastscore::random_{name}_")
    def _(out: Tensor, key: Tensor, stream: int, sample_offset: int) -> None:
        check_same_device(f"{name}_", out, key=key)


for _name in ("normal", "uniform", "rademacher"):
    _register_fake(_name)
    map_slices(f"random_{_name}_")
