"""Random shapes, memory layouts, values and numbers of samples, for the fuzzer.

Sizes crowd around those where a kernel does something else: see csrc/cuda/rows.cuh and tiles.cuh.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from helpers import DTYPES
from torch import Tensor

from emulator.side import HASHED

T = TypeVar("T")
Shape = tuple[int, ...]

PACKS = (4, 8)  # elements of a pack: float32 or float64, and half precision
TILE = 1024  # of these, most edges of a tile are multiples
SEGMENT = 1024  # packs of a row that a block sums
MOST = 40_000  # elements of a tensor
FLAT_END = 2**63 - 2**20  # flat indices are less

TAME = (0.0, -0.0, 1e-42, -1e-40, 6e-8, 1e-310)  # zeros, and what is subnormal in some dtype
WILD = (*TAME, math.inf, -math.inf, math.nan)


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory: its dimensions from the outermost to the innermost, how many
    places of each are left out between two elements and behind the last, and where it begins."""

    order: tuple[int, ...]
    steps: tuple[int, ...]
    pads: tuple[int, ...]
    offset: int

    def stacked(self) -> Layout:
        """Of a stack of such tensors, one after the other."""
        order = (0, *(d + 1 for d in self.order))
        return Layout(order, (1, *self.steps), (0, *self.pads), self.offset)

    def __call__(self, x: Tensor) -> Tensor:
        """A copy of x in this layout; what lies between its elements is NaN, or True."""
        strides, span = [0] * x.dim(), 1
        for d in reversed(self.order):
            strides[d] = span * self.steps[d]
            span = strides[d] * max(x.shape[d] + self.pads[d], 1)
        memory = torch.full((self.offset + span,), _filling(x.dtype), dtype=x.dtype)
        return memory.as_strided(x.shape, strides, self.offset).copy_(x)


def _filling(dtype: torch.dtype) -> float:
    """What no op may read."""
    if dtype.is_floating_point:
        return math.nan
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max


@dataclass(frozen=True)
class Numbers:
    """Which noise samples draw: the arguments of every op that draws some."""

    key: Tensor
    sample_offset: int
    samples: Tensor | None
    promised: bool = True  # else no promise is made: any numbers will do, but no fault


class Draw:
    """The random choices of one case, which hang on its words and on the dtypes alone."""

    def __init__(self, *words: object, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
        self.dtypes = dtypes
        self.random = random.Random(" ".join(map(str, words)))
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(63))

    def choice(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def chance(self, odds: float) -> bool:
        return self.random.random() < odds

    def below(self, n: int, first: int = 0) -> int:
        """From ``first`` to n - 1."""
        return self.random.randrange(first, n)

    def dtype(self) -> torch.dtype:
        return self.choice(self.dtypes)

    # ---- shapes --------------------------------------------------------------------------------

    def near(self, edge: int) -> int:
        return max(1, edge + self.below(10, -9))

    def row_size(self) -> int:
        """Elements of a sample: of a thread, of part of a warp, of a warp, of a block, of several,
        or of some tiles."""
        pack = self.choice(PACKS)
        rows = [2 * pack, 16 * pack, 256 * pack, *(k * SEGMENT * pack for k in (1, 2, 3))]
        return self.near(self.choice([1, *rows, *(k * TILE for k in (2, 3, 4, 6))]))

    def shape(self, most: int = MOST) -> Shape:
        """Of a tensor whose first dimension is the batch."""
        while True:
            shape = self.any_shape()
            if math.prod(shape) <= most:
                return self.split(shape) if self.chance(0.3) else shape

    def split(self, shape: Shape) -> Shape:
        """The last dimension as two, one of them small: in most layouts a pack's elements then lie
        here and there."""
        few = self.choice((1, 2, 3, 5))
        many = max(shape[-1] // few, 1)
        last = (many, few) if self.chance(0.7) else (few, many)
        return (*shape[:-1], *last) if shape[-1] >= few else shape

    def any_shape(self) -> Shape:
        kind = self.below(10)
        if kind == 0:
            return (self.near(TILE * self.below(13)),)
        if kind < 3:
            return (self.below(6, 1), self.row_size())
        if kind == 3:
            return (self.below(900, 1), self.below(18, 1))
        if kind == 4:
            rows = self.below(40, 1)
            return (rows, self.near(TILE * self.below(13) // rows))
        if kind == 5:  # a multiple of 1024 elements in each sample
            return (self.below(4, 1), self.choice((1, 2, 3, 4)), 32, self.choice((32, 64, 96)))
        if kind == 6:
            return tuple(self.below(end, 1) for end in (6, 6, 12, 12))
        if kind == 7:
            return tuple(self.choice((1, 2, 2)) for _ in range(self.below(13, 5)))
        if kind == 8:
            return tuple(self.choice((0, 1, 1, 3)) for _ in range(self.below(5, 1)))
        return (self.choice((0, 1, 2, 3, 5, 17, 255, 256, 257)),)

    def long_row(self) -> Shape:
        """More segments than a warp has threads."""
        return (1, self.near(33 * SEGMENT * self.choice(PACKS)))

    # ---- memory --------------------------------------------------------------------------------

    def layout(self, dims: int) -> Layout:
        order, none, zeros = tuple(range(dims)), (1,) * dims, (0,) * dims
        kind = self.below(9)
        if kind < 3 or dims == 0:
            return Layout(order, none, zeros, 0)
        if kind == 3:
            return Layout(order, none, zeros, self.below(17, 1))
        if kind == 4:  # between the innermost elements
            return Layout(order, (*none[1:], self.below(4, 2)), zeros, 0)
        if kind == 5:
            return Layout(order, tuple(self.choice((1, 1, 2)) for _ in order), zeros, 0)
        pads = tuple(self.choice((0, 0, 1, 3)) for _ in order)
        if kind == 6:
            return Layout(order, none, pads, self.choice((0, 0, 1, 4)))
        if kind == 7:  # channels_last, of four
            return Layout((*order[:1], *order[2:], *order[1:2]), none, zeros, 0)
        shuffled = tuple(self.random.sample(order, dims))
        return Layout(shuffled, none, self.choice((zeros, zeros, pads)), self.choice((0, 0, 1, 8)))

    def laid(self, x: Tensor) -> Tensor:
        """A copy of x to be written, in any layout."""
        return self.layout(x.dim())(x)

    def given(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        """A copy of x to be read; one of an unknown layout may have other values, shared by all
        elements along some of its dimensions."""
        if layout is not None:
            return layout(x)
        if x.numel() == 0 or not self.chance(0.15):
            return self.laid(x)
        shared = [d for d in range(x.dim()) if self.chance(0.5)]
        few = x
        for d in shared:
            few = few.narrow(d, 0, 1)
        return self.laid(few).expand(x.shape)

    # ---- values --------------------------------------------------------------------------------

    def values(
        self, shape: Shape, dtype: torch.dtype, scale: float = 1.0, specials: bool = True
    ) -> Tensor:
        """Normals, and among them numbers that are special."""
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        kind = self.below(5)
        if specials and kind < 2 and x.numel():
            flat, some = x.view(-1), 1 + x.numel() // self.choice((3, 20, 500))
            for value in WILD if kind else TAME:
                flat[self.places(x.numel(), some)] = value
        return x.to(dtype)

    def places(self, n: int, count: int) -> Tensor:
        return torch.randint(n, (count,), generator=self.generator)

    def table(self, *shape: int) -> Tensor:
        """A float64 table of coefficients."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def mask(self, shape: Shape) -> Tensor:
        return torch.rand(shape, generator=self.generator) < self.choice((0.0, 0.4, 0.4, 1.0))

    # ---- numbers of samples --------------------------------------------------------------------

    def word(self) -> int:
        return self.choice((0, -1, 2**32 - 1, self.below(2**63, -(2**63))))

    def draw_number(self) -> int:
        return self.choice((0, 1, 2, 5, 77, 2**32 - 1, 2**32 + 3, -1))

    def numbers(self, batch: int, size: int) -> Numbers:
        """For ``batch`` samples of ``size`` elements."""
        size = max(size, 1)
        key, last = torch.tensor([self.word(), self.draw_number()]), FLAT_END // size - batch - 1
        kind = self.below(10)
        if kind < 6:
            # The second lays the end of a tile among the first samples.
            offsets = (0, max(0, TILE // size - 2), self.below(9), 100, 127, 2**33 + 1, last)
            return Numbers(key, min(self.choice(offsets), last), None)
        if kind < 8:
            return self.own_numbers(key, batch, last)
        if self.chance(0.3):
            return Numbers(key.expand(batch, 2), 0, None)
        words = [[self.word(), self.draw_number()] for _ in range(batch)]
        keys = torch.tensor(words, dtype=torch.int64).view(batch, 2)
        return Numbers(self.laid(keys), 0, None)

    def own_numbers(self, key: Tensor, batch: int, last: int) -> Numbers:
        """For each sample one: neighbours, others, some twice, all the same; or what no sample's
        number is, of which only a GPU's host doesn't know."""
        first = self.choice((0, 3, 2**33 + 1, max(last, 0)))
        samples = first + torch.arange(batch)
        kind = self.below(5)
        if kind == 1:
            samples = samples[torch.randperm(batch, generator=self.generator)]
        elif kind == 2 and batch:
            samples = samples[self.places(batch, batch)]
        elif kind == 3:
            samples = samples[:1].expand(batch)
        if self.chance(0.1) and batch:
            wrong = samples.clone()
            wrong[self.places(batch, 1)] = self.choice((-1, -(2**63), 2**63 - 1))
            return Numbers(key, 0, wrong, promised=False)
        return Numbers(key, 0, samples if kind == 3 else self.laid(samples))

    # ---- the emulator ----------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What changes no result: in which order blocks and warps run, and on which device; nor by
        how much approximate reciprocals are off, as far as their documentation allows it."""
        return {
            "order": self.choice(("forwards", "backwards", "shuffled")),
            "seed": self.below(2**31),
            "multiprocessors": self.choice((1, 2, 132)),
            "device": self.below(4),
            "stream": self.below(3),
            "reciprocal": self.choice((0, HASHED)),
        }
