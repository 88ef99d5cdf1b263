"""Counter-based random numbers: the same numbers on every device, thread count and batch split.

A number is a pure function of (seed, stream, draw, flat element index), by Philox4x32-10 (Salmon,
Moraes, Dror and Shaw 2011). The seed and the draw travel together in a *key*, an int64 tensor
[seed, draw] on the device of the data, so that a captured CUDA graph that advances ``key[1]`` draws
fresh numbers at each replay. A sample is known by its number in the whole batch (``sample_offset``,
or ``samples`` for numbers in any order), or by a key of its own. (A network's output is another
matter: its last bits may hang on the number of rows that it is given at once.)

>>> import fastscore
>>> whole = fastscore.random.normal((4, 3), seed=7)
>>> part = fastscore.random.normal((2, 3), seed=7, sample_offset=2)
>>> bool((whole[2:] == part).all())
True
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Annotated, Any, overload

import numpy
import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore import ops
from fastscore._support.checks import (
    check_device,
    check_device_there,
    check_int,
    check_key,
    check_tensor,
    describe,
    fail,
    fail_type,
)
from fastscore._support.common_options import SeedOptions
from fastscore._support.options import Option, takes_options
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
    if device is not None and not isinstance(device, torch.device):
        device = check_device_there(fn, device)
    if generator is not None and not isinstance(generator, torch.Generator):
        fail_type(fn, "generator", "a torch.Generator or None", generator)
    if seed is None:
        source = generator.device if generator is not None else device
        drawn = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator, device=source)
        drawn[1:].fill_(draw)  # not drawn[1] = draw, which waits for a GPU
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


class RandomOptions(SeedOptions, total=False):
    """What the functions that draw numbers take."""

    dtype: Annotated[torch.dtype, Option(torch.float32, "float32, float64, bfloat16 or float16.")]
    device: Annotated[
        torch.device | str | None,
        Option(None, "of the result, where no key says so; the CPU by default."),
    ]
    stream: Annotated[
        int,
        Option(
            Stream.USER,
            "what the numbers are for; numbers of different streams are independent.",
        ),
    ]


Shape = Sequence[int]
Fill = Callable[..., Tensor]


def _filled(
    fn: str, fill: Fill, key: Tensor | Shape | None, shape: Shape | None, options: RandomOptions
) -> Tensor:
    if shape is None and key is not None and not isinstance(key, Tensor):
        key, shape = None, key  # the shape came first
    dtype, samples, offset = options["dtype"], options["samples"], options["sample_offset"]
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
    check_int(fn, "stream", options["stream"], minimum=0)
    check_int(fn, "sample_offset", offset, minimum=0)
    given, key = key, _key_of(fn, key, options)
    if given is None:
        check_numbering(fn, key, samples, offset, shape[0], key.device)
    out = mapped_like(key, samples).new_empty(tuple(shape), dtype=dtype)
    return fill(out, key, stream=options["stream"], sample_offset=offset, samples=samples)


def _key_of(fn: str, key: Any, options: RandomOptions) -> Tensor:
    """The key given, or that of the seed."""
    seed, generator, device = options["seed"], options["generator"], options["device"]
    if device is not None:
        device = check_device_there(fn, device)
    if key is None:
        return make_key(fn, seed, device=device, generator=generator)
    check_tensor(fn, "key", key)
    for name, value in (("seed", seed), ("generator", generator), ("device", device)):
        if value is not None:
            fail(fn, name, "None when key is given", value)
    return key


@overload
def normal(key: Tensor, shape: Shape, **options: Unpack[RandomOptions]) -> Tensor: ...
@overload
def normal(shape: Shape, /, **options: Unpack[RandomOptions]) -> Tensor: ...
@overload
def normal(*, shape: Shape, **options: Unpack[RandomOptions]) -> Tensor: ...
@takes_options(RandomOptions)
def normal(key: Any = None, shape: Shape | None = None, **options: Unpack[RandomOptions]) -> Tensor:
    """Standard normals of shape ``shape`` (batch first): ``normal(shape, seed=...)``, or of a key.

    Made in float32, then converted: every dtype sees the same noise. Box and Muller 1958 on words
    of Philox4x32-10.

    Args:
        key: int64 tensor [seed, draw], see :func:`key`; or (batch, 2), a key of each sample's own.
            In place of ``seed``, ``generator`` and ``device``; it may be left out before the shape.
        shape: of the result; the first dimension is the batch.

    Raises:
        TypeError, ValueError: an argument does not fit; ``samples``, keys (batch, 2) and a
            ``sample_offset`` exclude one another, and so do a key and a seed.

    >>> normal((2, 3), seed=0).shape
    torch.Size([2, 3])
    >>> torch.equal(normal((2, 3), seed=0), normal(key(0), (2, 3)))
    True
    >>> whole, some = normal((5, 3), seed=0), torch.tensor([4, 0, 4])
    >>> torch.equal(normal((3, 3), seed=0, samples=some), whole[some])
    True
    >>> torch.equal(normal((2, 3), seed=[7, 8])[1:], normal((1, 3), seed=8))
    True
    """
    return _filled("normal", ops.normal_, key, shape, options)


@overload
def uniform(key: Tensor, shape: Shape, **options: Unpack[RandomOptions]) -> Tensor: ...
@overload
def uniform(shape: Shape, /, **options: Unpack[RandomOptions]) -> Tensor: ...
@overload
def uniform(*, shape: Shape, **options: Unpack[RandomOptions]) -> Tensor: ...
@takes_options(RandomOptions)
def uniform(
    key: Any = None, shape: Shape | None = None, **options: Unpack[RandomOptions]
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24; arguments as for :func:`normal`.

    In bfloat16 and float16 rounding can give 1.

    >>> bool((uniform((100,), seed=0) < 1).all())
    True
    """
    return _filled("uniform", ops.uniform_, key, shape, options)


@overload
def rademacher(key: Tensor, shape: Shape, **options: Unpack[RandomOptions]) -> Tensor: ...
@overload
def rademacher(shape: Shape, /, **options: Unpack[RandomOptions]) -> Tensor: ...
@overload
def rademacher(*, shape: Shape, **options: Unpack[RandomOptions]) -> Tensor: ...
@takes_options(RandomOptions)
def rademacher(
    key: Any = None, shape: Shape | None = None, **options: Unpack[RandomOptions]
) -> Tensor:
    """-1 and +1 with equal odds, one bit each; arguments as for :func:`normal`.

    >>> rademacher((100,), seed=0).abs().unique()
    tensor([1.])
    """
    return _filled("rademacher", ops.rademacher_, key, shape, options)


def __dir__() -> list[str]:
    return sorted(__all__)
