"""Counter-based random numbers: the same numbers on every device, thread count and batch split.

A number is a pure function of (seed, stream, draw, flat element index), by Philox4x32-10 (Salmon,
Moraes, Dror and Shaw 2011). The seed and the draw travel together in a *key*, an int64 tensor
[seed, draw] on the device of the data, so that a captured CUDA graph that advances ``key[1]`` draws
fresh numbers at each replay. A sample is known by its number in the whole batch (``sample_offset``,
or ``samples`` for numbers in any order), or by a key of its own. (A network's output is another
matter: its last bits may hang on the number of rows that it is given at once.)

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
from typing import Any

import numpy
import torch
from torch import Tensor

from fastscore import ops
from fastscore._support.checks import (
    check_device,
    check_int,
    check_key,
    check_tensor,
    describe,
    fail,
    fail_type,
)
from fastscore._support.streams import Stream
from fastscore.ops._library import mapped_like, traced

__all__ = ["Stream", "key", "normal", "rademacher", "uniform"]

Seed = int | Sequence[int] | Tensor | None
SEED = "an integer, a sequence of them, an int64 tensor (batch,) or None"

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def key(
    seed: Seed = None,
    *,
    draw: int = 0,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The key [seed, draw] that all noise comes from, or one for each sample.

    Args:
        seed: any integer of 64 bits, signed or unsigned. None draws one from torch's default
            generator (or ``generator``), so that ``torch.manual_seed`` governs. A sequence of
            integers, or an int64 tensor of shape (batch,), gives each sample a seed of its own:
            it then draws what it would alone in a batch of one.
        draw: the number of the step or repetition, 0 to 2^32 - 1.
        device: where the data are; the generator's own device when one is given, that of a tensor
            of seeds, else the CPU.
        generator: source of the seed; not together with ``seed``.

    Returns:
        int64 tensor of shape (2,); of shape (batch, 2) for a seed of each sample's own.

    Raises:
        TypeError, ValueError: seed or draw not such an integer, a tensor of seeds not int64 of one
            dimension, or seed and generator together.

    >>> key(3, draw=5)
    tensor([3, 5])
    >>> key([3, 4], draw=5)
    tensor([[3, 5],
            [4, 5]])
    """
    return make_key("key", seed, draw=draw, device=device, generator=generator)


def _check_draw(fn: str, draw: int) -> None:
    check_int(fn, "draw", draw, minimum=0)
    if draw >= 2**32:
        fail(fn, "draw", "below 2^32", draw)


def _signed(fn: str, seed: Any) -> int:
    """A seed of 64 bits as int64 holds it."""
    if isinstance(seed, Tensor) and seed.dim() == 0 and not seed.is_floating_point():
        seed = seed.item()
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        fail_type(fn, "seed", SEED, seed)
    number = int(seed)
    if not -(2**63) <= number < 2**64:
        fail(fn, "seed", "an integer of 64 bits", number)
    return number - 2**64 if number >= 2**63 else number


def make_key(
    fn: str,
    seed: Seed,
    *,
    draw: int = 0,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`key` on behalf of the function ``fn``, which messages name."""
    _check_draw(fn, draw)
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
    if isinstance(seed, numpy.ndarray) and seed.ndim == 1:
        seed = seed.tolist()
    if isinstance(seed, (Tensor, Sequence)):
        seeds = _seeds(fn, seed, device)
        return torch.stack([seeds, torch.full_like(seeds, draw)], dim=1)
    return torch.tensor([_signed(fn, seed), draw], dtype=torch.int64, device=device)


def _seeds(fn: str, seed: Tensor | Sequence[int], device: torch.device | str | None) -> Tensor:
    """A seed for each sample, (batch,), int64."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 1:
            fail(fn, "seed", "an int64 tensor of shape (batch,)", describe(seed))
        return seed.detach().to(device)
    if isinstance(seed, (str, bytes)):
        fail_type(fn, "seed", SEED, seed)
    return torch.tensor([_signed(fn, each) for each in seed], dtype=torch.int64, device=device)


def noise_key(
    fn: str,
    x: Tensor,
    key: Tensor | None,
    seed: Seed,
    generator: torch.Generator | None,
) -> Tensor:
    """The given key, checked, or one of the seed. A key may be (batch, 2): one for each sample."""
    if key is None:
        return make_key(fn, seed, device=x.device, generator=generator)
    check_key(fn, key, x.shape[0] if x.dim() else 0)
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
    if device.type == "cpu" and not traced() and samples.numel() and int(samples.min()) < 0:
        fail(fn, "samples", "numbers of at least 0", int(samples.min()))
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
    samples: Tensor | None,
) -> Tensor:
    check_tensor(fn, "key", key)
    if samples is not None:
        check_tensor(fn, "samples", samples)
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
    out = mapped_like(key, samples).new_empty(tuple(shape), dtype=dtype)
    return fill(out, key, stream=stream, sample_offset=sample_offset, samples=samples)


def normal(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Standard normals of shape ``shape`` (batch first) on the key's device.

    Made in float32, then converted: every dtype sees the same noise. Box and Muller 1958 on words
    of Philox4x32-10.

    Args:
        key: int64 tensor [seed, draw], see :func:`key`; or (batch, 2), a key of each sample's own.
        shape: of the result; the first dimension is the batch.
        dtype: float32, float64, bfloat16 or float16.
        stream: what the numbers are for; numbers of different streams are independent.
        sample_offset: number of the first sample: shards of a batch draw what the whole would.
        samples: int64 (batch,) on the key's device, at least 0, in place of ``sample_offset``: the
            number of each sample, in any order, repeated or not.

    Raises:
        TypeError, ValueError: an argument does not fit; ``samples``, keys (batch, 2) and a
            ``sample_offset`` exclude one another.

    >>> normal(key(0), (2, 3)).shape
    torch.Size([2, 3])
    >>> whole, some = normal(key(0), (5, 3)), torch.tensor([4, 0, 4])
    >>> torch.equal(normal(key(0), (3, 3), samples=some), whole[some])
    True
    >>> torch.equal(normal(key([7, 8]), (2, 3))[1:], normal(key(8), (1, 3)))
    True
    """
    return _filled("normal", ops.normal_, key, shape, dtype, stream, sample_offset, samples)


def uniform(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24; arguments as for :func:`normal`.

    In bfloat16 and float16 rounding can give 1.

    >>> bool((uniform(key(0), (100,)) < 1).all())
    True
    """
    return _filled("uniform", ops.uniform_, key, shape, dtype, stream, sample_offset, samples)


def rademacher(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """-1 and +1 with equal odds, one bit each; arguments as for :func:`normal`.

    >>> rademacher(key(0), (100,)).abs().unique()
    tensor([1.])
    """
    return _filled("rademacher", ops.rademacher_, key, shape, dtype, stream, sample_offset, samples)


def __dir__() -> list[str]:
    return sorted(__all__)
