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
    out: Tensor,
    key: Tensor,
    *,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` (batch first, any strides) with standard normals; returns ``out``.

    Args:
        out: float32, float64, bfloat16 or float16.
        key: int64 [seed, draw] on the device of ``out``; or (batch, 2), a key of each sample's own,
            which is then filled as if it were alone.
        stream: what the numbers are for.
        sample_offset: number of the first sample: its first element has flat index
            ``sample_offset * out[0].numel()``.
        samples: int64 (batch,) on the device of ``out``, at least 0, in place of
            ``sample_offset``: the number of each sample, in any order, repeated or not.

    Raises:
        ValueError: an argument does not fit, or ``samples`` or keys (batch, 2) come together with
            one another or with a ``sample_offset``. On CUDA a negative number goes unnoticed, and
            the sample gets noise of some other number.

    >>> import fastscore
    >>> out = torch.empty(2, 3)
    >>> normal_(out, fastscore.random.key(0)) is out
    True
    """
    op = ops.random_normal_.default
    return call_("normal_", op, ("out",), out, key, stream, sample_offset, samples)


def uniform_(
    out: Tensor,
    key: Tensor,
    *,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` with uniform numbers in [0, 1); arguments as for :func:`normal_`.

    >>> import fastscore
    >>> bool((uniform_(torch.empty(2, 3), fastscore.random.key(0)) < 1).all())
    True
    """
    op = ops.random_uniform_.default
    return call_("uniform_", op, ("out",), out, key, stream, sample_offset, samples)


def rademacher_(
    out: Tensor,
    key: Tensor,
    *,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` with -1 and +1 at equal odds; arguments as for :func:`normal_`.

    >>> import fastscore
    >>> rademacher_(torch.empty(2, 3), fastscore.random.key(0)).abs()
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    op = ops.random_rademacher_.default
    return call_("rademacher_", op, ("out",), out, key, stream, sample_offset, samples)


def _register_fake(name: str) -> None:
    @torch.library.register_fake(f"fastscore::random_{name}_")
    def _(
        out: Tensor, key: Tensor, stream: int, sample_offset: int, samples: Tensor | None = None
    ) -> None:
        check_same_device(f"{name}_", out, key=key, samples=samples)


for _name in ("normal", "uniform", "rademacher"):
    _register_fake(_name)
    map_slices(f"random_{_name}_")
