"""Counter-based random numbers: the same numbers on every device, thread count and batch split.

A number is a pure function of (seed, stream, draw, flat element index), by Philox4x32-10 (Salmon,
Moraes, Dror and Shaw 2011). The seed and the draw travel together in a *key*, an int64 tensor
[seed, draw] on the device of the data, so that a captured CUDA graph that advances ``key[1]`` draws
fresh numbers at each replay.

>>> import fastscore
>>> key = fastscore.random.key(seed=7)
>>> whole = fastscore.random.normal(key, (4, 3))
>>> part = fastscore.random.normal(key, (2, 3), sample_offset=2)
>>> bool((whole[2:] == part).all())
True
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore import ops
from fastscore._support.checks import (
    check_device,
    check_int,
    check_tensor,
    describe,
    fail,
    fail_type,
)
from fastscore._support.streams import Stream

__all__ = ["Stream", "key", "normal", "rademacher", "uniform"]

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def key(
    seed: int | None = None,
    *,
    draw: int = 0,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The key [seed, draw] that all noise comes from.

    Args:
        seed: any integer of 64 bits, signed or unsigned. None draws one from torch's default
            generator (or ``generator``), so that ``torch.manual_seed`` governs.
        draw: the number of the step or repetition, 0 to 2^32 - 1.
        device: where the data are; the generator's own device when one is given, else the CPU.
        generator: source of the seed; not together with ``seed``.

    Returns:
        int64 tensor of shape (2,).

    Raises:
        TypeError, ValueError: seed or draw not such an integer, or seed and generator together.

    >>> key(3, draw=5)
    tensor([3, 5])
    """
    return make_key("key", seed, draw=draw, device=device, generator=generator)


def make_key(
    fn: str,
    seed: int | None,
    *,
    draw: int = 0,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`key` on behalf of the function ``fn``, which messages name."""
    check_int(fn, "draw", draw, minimum=0)
    if draw >= 2**32:
        fail(fn, "draw", "below 2^32", draw)
    if generator is not None and not isinstance(generator, torch.Generator):
        fail_type(fn, "generator", "a torch.Generator or None", generator)
    if seed is None:
        source = generator.device if generator is not None else device
        drawn = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator, device=source)
        drawn[1] = draw
        # Asking is cheaper than a call of ``to`` that does nothing.
        return drawn if device is None or drawn.device == device else drawn.to(device)
    if generator is not None:
        fail(fn, "generator", "None when a seed is given", "both")
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        fail_type(fn, "seed", "an integer or None", seed)
    if not -(2**63) <= seed < 2**64:
        fail(fn, "seed", "an integer of 64 bits", seed)
    signed = int(seed) - 2**64 if seed >= 2**63 else int(seed)
    return torch.tensor([signed, draw], dtype=torch.int64, device=device)


def noise_key(
    fn: str,
    x: Tensor,
    key: Tensor | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The given key, checked, or one of the seed."""
    if key is None:
        return make_key(fn, seed, device=x.device, generator=generator)
    check_tensor(fn, "key", key)
    if key.dtype != torch.int64 or key.shape != (2,):
        fail(fn, "key", "an int64 tensor [seed, draw]", describe(key))
    check_device(fn, "key", key, x.device, "where x is")
    for name, value in (("seed", seed), ("generator", generator)):
        if value is not None:
            fail(fn, name, "None when key is given", value)
    return key


def check_numbering(
    fn: str,
    key: Tensor,
    samples: Tensor | None,
    sample_offset: int,
    batch: int,
    device: torch.device,
) -> None:
    """One way at the most of saying which samples of a larger batch these are."""
    check_int(fn, "sample_offset", sample_offset, minimum=0)
    if sample_offset >= 2**63:
        fail(fn, "sample_offset", "below 2^63", sample_offset)
    each = key.dim() == 2
    if each and len(key) != batch:
        fail(fn, "seed", f"one number, or one for each of {batch} samples", f"{len(key)} seeds")
    if each and sample_offset:
        fail(fn, "sample_offset", "0 where each sample has a seed", sample_offset)
    if samples is None:
        return
    check_tensor(fn, "samples", samples)
    if samples.dtype != torch.int64:
        fail(fn, "samples", "an int64 tensor", describe(samples))
    if samples.shape != (batch,):
        fail(fn, "samples", f"of shape {(batch,)}", f"shape {tuple(samples.shape)}")
    check_device(fn, "samples", samples, device, "where the samples are")
    if each:
        fail(fn, "samples", "None where each sample has a seed", describe(samples))
    if sample_offset:
        fail(fn, "sample_offset", "0 where samples are numbered by samples=", sample_offset)


def _filled(
    fn: str,
    fill: Callable[..., Tensor],
    key: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    stream: int,
    sample_offset: int,
) -> Tensor:
    check_tensor(fn, "key", key)
    if not isinstance(dtype, torch.dtype):
        fail_type(fn, "dtype", "a torch.dtype", dtype)
    if dtype not in _FLOATING:
        fail(fn, "dtype", "float32, float64, bfloat16 or float16", dtype)
    if not isinstance(shape, Sequence) or not all(isinstance(n, int) for n in shape):
        fail_type(fn, "shape", "a sequence of integers", shape)
    if len(shape) < 1 or min(shape) < 0:
        fail(fn, "shape", "at least one dimension, the batch, and no negative size", tuple(shape))
    check_int(fn, "stream", stream, minimum=0)
    check_int(fn, "sample_offset", sample_offset, minimum=0)
    out = key.new_empty(tuple(shape), dtype=dtype)  # the key's, so that vmap may map the key
    return fill(out, key, stream=stream, sample_offset=sample_offset)


def normal(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
) -> Tensor:
    """Standard normals of shape ``shape`` (batch first) on the key's device.

    Made in float32, then converted: every dtype sees the same noise. Box and Muller 1958 on words
    of Philox4x32-10.

    Args:
        key: int64 tensor [seed, draw], see :func:`key`.
        shape: of the result; the first dimension is the batch.
        dtype: float32, float64, bfloat16 or float16.
        stream: what the numbers are for; numbers of different streams are independent.
        sample_offset: number of the first sample: shards of a batch draw what the whole would.

    Raises:
        TypeError, ValueError: an argument does not fit.

    >>> normal(key(0), (2, 3)).shape
    torch.Size([2, 3])
    """
    return _filled("normal", ops.normal_, key, shape, dtype, stream, sample_offset)


def uniform(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24; arguments as for :func:`normal`.

    In bfloat16 and float16 rounding can give 1.

    >>> bool((uniform(key(0), (100,)) < 1).all())
    True
    """
    return _filled("uniform", ops.uniform_, key, shape, dtype, stream, sample_offset)


def rademacher(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
) -> Tensor:
    """-1 and +1 with equal odds, one bit each; arguments as for :func:`normal`.

    >>> rademacher(key(0), (100,)).abs().unique()
    tensor([1.])
    """
    return _filled("rademacher", ops.rademacher_, key, shape, dtype, stream, sample_offset)
