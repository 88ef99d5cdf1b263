r"""Bits per dimension of discrete data, and the noise that makes such data continuous.

Data of ``levels`` levels, such as the 256 of an image, have probabilities; a flow has a density.
Uniform noise spreads each level over a box of its own, and the boxes fill the range (Uria, Murray
and Larochelle 2013; Theis, van den Oord and Bethge 2016, https://arxiv.org/abs/1511.01844): level
k of [lo, hi] lies on the grid at lo + (hi - lo) k/(levels - 1), its box is

    [lo + (hi - lo) k/levels, lo + (hi - lo) (k + 1)/levels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore import random
from fastscore._support.checks import (
    check_floating,
    check_int,
    check_sequence,
    check_tensor,
    check_value_range,
    describe,
    fail,
)
from fastscore._support.common_options import SeedOptions
from fastscore._support.options import takes_options
from fastscore._support.warn import warn_caller

Range = tuple[float, float]
UNIT: Range = (0.0, 1.0)
BYTES, ENOUGH = 256, 64  # levels; and numbers to tell that most of them are not used

_BLOCK_ELEMENTS = 2**22  # float64 numbers at a time: 32 MiB
_ROUNDED = 1e-3  # of the distance of two levels: so far may a number be from its own
_FURTHEST = 0.25  # the same, where its dtype is that coarse


def bits_per_dim(
    log_prob: Tensor,
    shape: Sequence[int],
    levels: int = 256,
    data_range: Range = UNIT,
) -> Tensor:
    r"""The bits per dimension of discrete data whose dequantised density is known.

        bits = -log_prob/(D ln 2) + log2(levels/(hi - lo))

    with D dimensions: 8 is added for 256 levels on [0, 1], 7 on [-1, 1], 0 for 256 on [0, 256].

    Where that comes from: the model's probability of a discrete x is the mass of its box B, of
    volume V = ((hi - lo)/levels)^D. With y uniform in B (:func:`dequantize`)

        log P(x) = log int_B p(y) dy = log V + log E p(y) >= log V + E log p(y),

    by Jensen's inequality (Theis et al. 2016, https://arxiv.org/abs/1511.01844), and log V/(D ln 2)
    is minus the constant. So the bits of one draw, or the mean of those of several, are in
    expectation an upper bound on -log2 P(x)/D, what a coder with this model needs for a dimension
    of x. Instead of the mean of log p over M draws their log-mean-exp, log (1/M) sum p(y_m), is
    nearer to log P the more draws there are, and in expectation still below it (the importance
    weighted bound of Burda, Grosse and Salakhutdinov 2015, https://arxiv.org/abs/1509.00519): fewer
    bits, and an upper bound too. That holds of densities known exactly: errors of a solver, or of
    an estimated divergence, may have any sign. See :func:`discrete_log_likelihood`.

    Args:
        log_prob: log densities of dequantised data, in nats, of any shape; the density must be that
            of the data in the units of ``data_range``.
        shape: that of one sample, without the batch: its product is D. ``x.shape[1:]``.
        levels: how many the data have, at least 2.
        data_range: (lo, hi), where the dequantised data lie.

    Returns:
        float64 of log_prob's shape. NaN where log_prob is: of a sample that failed.

    Raises:
        ValueError, TypeError: an argument out of its range or of a wrong type.

    A uniform density on [0, 1] has log p = 0, and all 256 levels are as probable: 8 bits.

    >>> bits_per_dim(torch.zeros(2), (3, 32, 32))
    tensor([8., 8.], dtype=torch.float64)
    >>> bits_per_dim(torch.zeros(1), (3, 32, 32), data_range=(-1, 1))  # a density of 1 on it
    tensor([7.], dtype=torch.float64)
    """
    fn = "bits_per_dim"
    check_floating(fn, "log_prob", log_prob)
    dims = dimensions(fn, shape)
    if len(shape) > 1 and log_prob.shape == tuple(shape[:1]) and len(log_prob) > 1:
        warn_caller(
            f"{fn}: shape is that of one sample, x.shape[1:], and its first size, {shape[0]}, is "
            "the number of log densities: is it the batch's?",
            UserWarning,
        )
    count, (lo, hi) = check_levels(fn, levels, data_range)
    return log_prob.detach().double() / (-dims * math.log(2)) + math.log2(count / (hi - lo))


def dimensions(fn: str, shape: Any) -> int:
    """How many dimensions a sample of this shape has."""
    check_sequence(fn, "shape", shape, "the sizes of one sample, x.shape[1:]")
    return math.prod(check_int(fn, "shape", size, minimum=1) for size in shape)


@takes_options(SeedOptions)
def dequantize(
    x: Tensor,
    levels: int | None = None,
    data_range: Range = UNIT,
    *,
    draw: int = 0,
    **draws: Unpack[SeedOptions],
) -> Tensor:
    r"""Discrete data made continuous by uniform noise: ((levels - 1) x + u)/levels on [0, 1].

    Each level becomes a number of its own box (see :func:`bits_per_dim`), so that a density has
    bits per dimension, and a network can be trained on data that are no spikes. After rounding,
    too, every result lies in its box: :func:`quantize` gives back the data exactly.

    Args:
        x: integers 0 ... levels - 1 of any integer dtype, uint8 say, (batch, ...); or
            floating-point numbers on the grid lo + (hi - lo) k/(levels - 1) of ``data_range``, as
            ``images / 255`` are, within a thousandth of a level, or what rounding does.
        levels: how many there are, at least 2; by default 256, with a warning where integers are
            all in the lower half.
        data_range: (lo, hi), of the result, and of floating-point data.
        draw: the number of the repetition, 0 to 2^32 - 1: another gives other noise.

    Returns:
        Of x's shape, in [lo, hi), float64 if x is and else float32; without a graph. (Half
        precision has too few numbers within a box; with too few for the levels it is refused, as
        bfloat16 is for 256.)

    Raises:
        ValueError: numbers off the grid, out of range or NaN, named by their sample; a dtype too
            coarse for the levels; an argument out of its range.
        TypeError: an argument of the wrong type.

    >>> x = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
    >>> y = dequantize(x, seed=0)
    >>> (256 * y).floor()
    tensor([[  0., 128., 255.]])
    >>> torch.equal(y, dequantize(x / 255, seed=0))
    True
    >>> torch.equal(quantize(y), x / 255)
    True
    """
    return dequantized("dequantize", x, levels, data_range, draw=draw, **draws)


@torch.no_grad()
def dequantized(
    fn: str,
    x: Tensor,
    levels: int | None,
    data_range: Range,
    *,
    draw: int,
    seed: random.Seed = None,
    generator: torch.Generator | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What :func:`dequantize` does, for ``fn``, which messages name; in another dtype if asked."""
    check_tensor(fn, "x", x, min_dim=1)
    if x.dtype == torch.bool or x.is_complex():
        fail(fn, "x", "integers or floating-point numbers (x.to(torch.uint8))", describe(x))
    count, (lo, hi) = check_levels(fn, levels_of_data(fn, x, levels), data_range)
    if x.is_floating_point():
        _check_fine(fn, "x", x.dtype, count, lo, hi)
    if dtype is None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    _check_fine(fn, "data_range", dtype, count, lo, hi)
    key = random.make_key(fn, seed, draw=draw, device=x.device, generator=generator)
    random.check_numbering(fn, key, samples, sample_offset, len(x), x.device)
    out = torch.empty_like(x, dtype=dtype)
    for start, end in _blocks(x):
        number = _levels_of(fn, x[start:end], count, lo, hi, start)
        noise = random.uniform(
            key if key.dim() == 1 else key[start:end],
            number.shape,
            dtype=torch.float64,
            stream=random.Stream.DEQUANTIZE,
            sample_offset=sample_offset + start if samples is None and key.dim() == 1 else 0,
            samples=None if samples is None else samples[start:end],
        )
        out[start:end] = _within(number, noise, count, lo, hi, dtype)
    return out


@torch.no_grad()
def quantize(x: Tensor, levels: int = 256, data_range: Range = UNIT) -> Tensor:
    """The level in whose box a number lies, as a number of the grid: the inverse of dequantize.

    floor(levels x)/(levels - 1) on [0, 1]. What lies beyond the range goes to the first and the
    last level, as some of what a model draws does.

    Args:
        x: (batch, ...), floating point.
        levels: how many there are, at least 2.
        data_range: (lo, hi), of x and of the result.

    Returns:
        Of x's shape and dtype: lo + (hi - lo) k/(levels - 1) for whole k. Without a graph.

    Raises:
        ValueError: NaN, named by its sample; a dtype too coarse for the levels; an argument out of
            its range.
        TypeError: an argument of the wrong type.

    >>> quantize(torch.tensor([[0.0, 0.49, 0.51, 1.2]]), levels=2)
    tensor([[0., 0., 1., 1.]])
    """
    fn = "quantize"
    check_floating(fn, "x", x, min_dim=1)
    count, (lo, hi) = check_levels(fn, levels, data_range)
    _check_fine(fn, "x", x.dtype, count, lo, hi)
    out = torch.empty_like(x)
    for start, end in _blocks(x):
        values = x[start:end].double()
        _refuse(fn, values.isnan(), values, "numbers", start)
        number = ((values - lo) / (hi - lo) * count).floor().clamp(0, count - 1)
        # Where division rounds across an edge: what an edge is, is said in one place.
        number += (values >= _edge(number + 1, count, lo, hi)).double()
        number -= (values < _edge(number, count, lo, hi)).double()
        number.clamp_(0, count - 1)
        out[start:end] = _grid(number, count, lo, hi)
    return out


def levels_of_data(fn: str, x: Tensor, levels: int | None) -> int:
    """As said, or those that bytes have; where data use few of them, a word."""
    if levels is not None:
        return levels
    few = x.is_floating_point() or x.numel() < ENOUGH
    if not few and (highest := int(x.double().max())) < BYTES // 2 - 1:
        warn_caller(
            f"{fn}: the data have no value above {highest}, of {BYTES} levels: levels= says how "
            "many there are, if these are fewer.",
            UserWarning,
        )
    return BYTES


def check_levels(fn: str, levels: Any, data_range: Any) -> tuple[int, Range]:
    """At least two levels, and where they lie."""
    lo, hi = check_value_range(fn, "data_range", data_range)
    return check_int(fn, "levels", levels, minimum=2), (lo, hi)


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    """First and last of samples that are taken at a time."""
    size = max(1, _BLOCK_ELEMENTS * len(x) // max(1, x.numel()))
    return [(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def _grid(number: Tensor, levels: int, lo: float, hi: float) -> Tensor:
    """Where a level lies on the grid, float64."""
    value = lo + ((hi - lo) * number) / (levels - 1)
    return torch.where(number == levels - 1, hi, value)


def _edge(number: Tensor, levels: int, lo: float, hi: float) -> Tensor:
    """The lower edge of a level's box, float64."""
    value = lo + ((hi - lo) * number) / levels
    return torch.where(number == levels, hi, value)


def _check_fine(fn: str, arg: str, dtype: torch.dtype, levels: int, lo: float, hi: float) -> None:
    """Whether neighbouring levels can be told apart in a dtype."""
    if arg == "data_range" and (hi - lo) / levels < torch.finfo(dtype).tiny:
        fail(fn, "data_range", f"one whose {levels} boxes are no subnormal numbers", (lo, hi))
    off = torch.finfo(dtype).eps / 2 * max(abs(lo), abs(hi)) / (hi - lo) * (levels - 1)
    if off <= _FURTHEST:
        return
    # A bound: numbers on the grid may be exact, as whole ones are. What is smaller is few levels.
    if levels <= 2**16:
        number = torch.arange(levels, dtype=torch.float64)
        held = _grid(number, levels, lo, hi).to(dtype).double()
        off = float((_position(held, levels, lo, hi) - number).abs().max())
    if not off <= _FURTHEST:
        expected = f"{levels} levels on [{lo:g}, {hi:g}]"
        if arg == "x":
            fail(fn, arg, f"of a dtype that can tell {expected} apart (integers, float64)", dtype)
        fail(fn, arg, f"one on which {dtype} can tell its {levels} levels apart", (lo, hi))


def _position(x: Tensor, levels: int, lo: float, hi: float) -> Tensor:
    """Where on the grid a number lies, in levels."""
    return (x - lo) / (hi - lo) * (levels - 1)


def _levels_of(fn: str, x: Tensor, levels: int, lo: float, hi: float, first: int) -> Tensor:
    """The level of each element, whole numbers in float64."""
    values = x.double()
    if not x.is_floating_point():
        outside = (values < 0) | (values > levels - 1)
        expected = f"integers of 0 to {levels - 1} (levels= says how many levels there are)"
        _refuse(fn, outside, x, expected, first)
        return values
    position = _position(values, levels, lo, hi)
    number = position.round()
    scale = max(abs(lo), abs(hi)) / (hi - lo) * (levels - 1)
    # float64 numbers may have been float32.
    eps = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = min(_FURTHEST, max(_ROUNDED, 2 * eps * scale))
    near = (position - number).abs() <= tolerance
    outside = ~(near & (number >= 0) & (number <= levels - 1))
    expected = f"on the grid of {levels} levels on [{lo:g}, {hi:g}]: round it, or say the levels="
    _refuse(fn, outside, x, expected + " and data_range= that it has", first)
    return number


def _refuse(fn: str, bad: Tensor, x: Tensor, expected: str, first: int) -> None:
    """Name the first sample with a bad element, and the element."""
    if bool(bad.any()):
        _name_sample(fn, bad, x, expected, first)


def _name_sample(fn: str, bad: Tensor, x: Tensor, expected: str, first: int) -> NoReturn:
    sample = int(bad.reshape(len(x), -1).any(1).nonzero()[0])
    value = x[sample][bad[sample]].reshape(-1)[0].item()
    shown = f"{value:.7g}" if isinstance(value, float) else value
    fail(fn, "x", expected, f"{shown} in sample {first + sample}")


def _within(
    number: Tensor, noise: Tensor, levels: int, lo: float, hi: float, dtype: torch.dtype
) -> Tensor:
    """A number of each box, rounded to ``dtype`` inside of it."""
    y = (lo + ((hi - lo) * (number + noise)) / levels).to(dtype)
    low, high = _edge(number, levels, lo, hi), _edge(number + 1, levels, lo, hi)
    up, down = (torch.full((), end, dtype=dtype, device=y.device) for end in (math.inf, -math.inf))
    y = torch.where(y.double() >= high, torch.nextafter(y, down), y)
    return torch.where(y.double() < low, torch.nextafter(y, up), y)
