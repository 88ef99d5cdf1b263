"""Counter-based random numbers in pure PyTorch.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a keyed
bijection of 128-bit counters. The counter holds (block low, block high, draw, stream) and the key
the two halves of the seed, so that every random number is a pure function of
(seed, stream, draw, flat element index).

PyTorch has no full set of operations on unsigned 32-bit words, so a word is an int64 between 0 and
2^32 - 1 here.

The flat index of element j of a sample is j + (its number) * (elements of a sample), numbers
counting from ``sample_offset`` or being ``samples``: int64 (batch,), in any order, repeated or not.
With a key for each sample, (batch, 2), it is j: the sample is what it would be alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_key, check_samples, describe, fail
from fastscore._support.streams import Stream

MASK32 = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1, in units of 2^-32

WORDS_PER_BLOCK = 4
BITS_PER_BLOCK = 128

Counter = tuple[Tensor, Tensor, Tensor, Tensor]


# ---- bits ------------------------------------------------------------------------------------


def mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product of two words."""
    product = b * a  # wraps around 2^64: the bits are those of the unsigned product
    return (product >> 32) & MASK32, product & MASK32


def philox4x32(counter: Counter, key: tuple[Tensor, Tensor]) -> Counter:
    """The ten rounds of Philox4x32-10: four random words for each counter.

    ``counter`` is four and ``key`` two int64 tensors of words that broadcast against each other.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        hi0, lo0 = mul_hi_lo(MULTIPLIERS[0], c0)
        hi1, lo1 = mul_hi_lo(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0 = (k0 + WEYL[0]) & MASK32
        k1 = (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def random_words(key: Tensor, stream: int, block: Tensor) -> Tensor:
    """The four words of each block: int64 of shape (*block.shape, 4).

    ``key`` is the int64 tensor [seed, draw], or (batch, 2) for as many rows of block numbers.
    """
    seed, draw = (word.reshape(-1, *[1] * (block.dim() - 1)) for word in key.unbind(-1))
    counter = (
        block & MASK32,
        (block >> 32) & MASK32,
        (draw & MASK32).expand_as(block),
        torch.full_like(block, stream),
    )
    words = philox4x32(counter, (seed & MASK32, (seed >> 32) & MASK32))
    return torch.stack(words, dim=-1)


# ---- from words to numbers -------------------------------------------------------------------


def uniform_from_word(word: Tensor) -> Tensor:
    """Uniform in [0, 1): the top 24 bits of the word times 2^-24, exact in float32."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def cos_sin_of_turn(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi word 2^-32 in float64.

    The word is reduced to the nearest quarter turn first, in exact integer arithmetic, so that
    the zeros of cos and sin are exact and their neighbours keep their relative accuracy.
    """
    quarter = (word + 2**29) >> 30
    rest = (word - (quarter << 30)).to(torch.float64) * (2.0 * math.pi * 2.0**-32)
    cos, sin = torch.cos(rest), torch.sin(rest)
    quarter = quarter & 3
    swap = (quarter & 1).bool()
    cos_sign = torch.where((quarter == 1) | (quarter == 2), -1.0, 1.0).to(torch.float64)
    sin_sign = torch.where(quarter >= 2, -1.0, 1.0).to(torch.float64)
    return cos_sign * torch.where(swap, sin, cos), sin_sign * torch.where(swap, cos, sin)


def normal_from_words(even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals in float64 from two words (Box and Muller 1958).

    The even word gives the radius through (w + 1/2) 2^-32, which is never 0; the odd one the angle.
    """
    radius = torch.sqrt(-2.0 * torch.log((even.to(torch.float64) + 0.5) * 2.0**-32))
    cos, sin = cos_sin_of_turn(odd)
    return radius * cos, radius * sin


def _normal_block(words: Tensor) -> Tensor:
    z0, z1 = normal_from_words(words[..., 0], words[..., 1])
    z2, z3 = normal_from_words(words[..., 2], words[..., 3])
    return torch.stack([z0, z1, z2, z3], dim=-1).to(torch.float32)


def _rademacher_block(words: Tensor) -> Tensor:
    shifts = torch.arange(32, device=words.device)
    bits = (words.unsqueeze(-1) >> shifts) & 1  # least significant bit first
    return (2 * bits - 1).flatten(-2).to(torch.float32)


def sample_starts(
    fn: str, key: Tensor, batch: int, size: int, sample_offset: int, samples: Tensor | None
) -> Tensor:
    """The flat index of each sample's first element, (batch,), its arguments checked.

    A sample counts from its number in the whole batch, times its size; with keys of each sample's
    own from 0, as if it were alone.
    """
    check_key(fn, key, batch)
    if sample_offset and (samples is not None or key.dim() == 2):
        given = "samples are" if samples is not None else "keys (batch, 2) are"
        fail(fn, "sample_offset", f"0 when {given} given", sample_offset)
    if samples is None:
        numbers = sample_offset + torch.arange(batch, device=key.device)
        return numbers * (0 if key.dim() == 2 else size)
    check_samples(fn, samples, batch, key.device)
    if key.dim() == 2:
        fail(fn, "samples", "None when keys (batch, 2) are given", describe(samples))
    return samples * size


def _flat(
    fn: str,
    block: Callable[[Tensor], Tensor],
    per_block: int,
    key: Tensor,
    shape: Sequence[int],
    stream: int,
    sample_offset: int,
    samples: Tensor | None,
) -> Tensor:
    """The numbers of the flat indices that ``shape`` covers, in float32."""
    batch, size = shape[0], math.prod(shape[1:])
    start = sample_starts(fn, key, batch, size, sample_offset, samples)
    if batch * size == 0:
        return torch.zeros(tuple(shape), dtype=torch.float32, device=key.device)
    if samples is None and key.dim() == 1:  # one sample as long as all: blocks are shared
        start, batch, size = start[:1], 1, batch * size
    first = start // per_block
    blocks = first.unsqueeze(1) + torch.arange((size - 1) // per_block + 2, device=key.device)
    numbers = block(random_words(key, stream, blocks)).flatten(1)
    place = (start - first * per_block).unsqueeze(1) + torch.arange(size, device=key.device)
    return numbers.gather(1, place).reshape(tuple(shape))


def normal(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Standard normals, made in float32 and then converted to ``dtype``."""
    args = (key, shape, stream, sample_offset, samples)
    return _flat("normal", _normal_block, WORDS_PER_BLOCK, *args).to(dtype)


def uniform(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1), made in float32 and then converted to ``dtype``."""
    args = (key, shape, stream, sample_offset, samples)
    return _flat("uniform", uniform_from_word, WORDS_PER_BLOCK, *args).to(dtype)


def rademacher(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """-1 or +1 with equal probability: one bit each, +1 where the bit is set."""
    args = (key, shape, stream, sample_offset, samples)
    return _flat("rademacher", _rademacher_block, BITS_PER_BLOCK, *args).to(dtype)


def labels(
    key: Tensor,
    count: int,
    levels: int,
    *,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Uniform integers in [0, levels): the high word of word * levels, stream LABEL."""

    def block(words: Tensor) -> Tensor:
        return (words * levels) >> 32

    args = (key, (count,), Stream.LABEL, sample_offset, samples)
    return _flat("labels", block, WORDS_PER_BLOCK, *args).long()


# ---- the ops ---------------------------------------------------------------------------------


def normal_(
    out: Tensor,
    key: Tensor,
    *,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` (batch first) with standard normals; returns ``out``."""
    how: Any = {"stream": stream, "sample_offset": sample_offset, "samples": samples}
    return out.copy_(normal(key, out.shape, **how))


def uniform_(
    out: Tensor,
    key: Tensor,
    *,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` (batch first) with uniform numbers in [0, 1); returns ``out``."""
    how: Any = {"stream": stream, "sample_offset": sample_offset, "samples": samples}
    return out.copy_(uniform(key, out.shape, **how))


def rademacher_(
    out: Tensor,
    key: Tensor,
    *,
    stream: int = Stream.USER,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` (batch first) with -1 and +1 at equal odds; returns ``out``."""
    how: Any = {"stream": stream, "sample_offset": sample_offset, "samples": samples}
    return out.copy_(rademacher(key, out.shape, **how))
