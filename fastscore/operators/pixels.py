"""What is measured of some elements: masks, every so-manyth, averages of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore._support.checks import fail, fail_type
from fastscore.operators._base import LinearOperator
from fastscore.operators._common import (
    check_data,
    check_divides,
    check_factors,
    check_mask,
    check_mask_fits,
    check_size,
    divided,
    kept,
    levels,
    masked_over,
    widened,
)


class Mask(LinearOperator):
    """Some elements are measured, the others are 0: inpainting.

    A x = mask x, in the shape of x, as that of deepinv's ``Inpainting``. A is its own adjoint and
    its own pseudo-inverse, and A A^T = diag(mask): ``solve`` is y/(r2 + noise2) where measured, and
    y/noise2 (0 at noise2 = 0) elsewhere. What an unmeasured element of y or of x holds, be it NaN,
    does not matter to ``A``, ``A_adjoint`` and ``A_dagger``.

    Args:
        mask: a bool tensor, True where measured, that broadcasts to the shape of a sample; the same
            for all samples.

    Attributes:
        mask: the buffer.
        gram, cogram: 1 if all is measured, else None.

    Raises:
        ValueError: a mask that is not bool, or False everywhere.
        TypeError: no tensor.

    Example:
        >>> upper = Mask(torch.tensor([[True], [False]]))  # of images of two rows
        >>> upper.A(torch.arange(1.0, 5.0).reshape(1, 1, 2, 2))
        tensor([[[[1., 2.],
                  [0., 0.]]]])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("mask", check_mask("Mask", mask))
        if bool(self.mask.all()):
            self.gram = self.cogram = 1.0

    def _masked(self, fn: str, arg: str, x: Tensor) -> Tensor:
        check_data(fn, arg, x)
        check_mask_fits(fn, arg, self.mask, x, x.shape)
        return kept(x, self.mask)

    def A(self, x: Tensor) -> Tensor:
        """x where measured, 0 elsewhere."""
        return self._masked("Mask.A", "x", x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """y where measured, 0 elsewhere."""
        return self._masked("Mask.A_adjoint", "y", y)

    def A_dagger(self, y: Tensor) -> Tensor:
        """y where measured, 0 elsewhere."""
        return self._masked("Mask.A_dagger", "y", y)

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """y/(r2 + noise2) where measured, y/noise2 elsewhere; a quotient by 0 is 0."""
        fn = "Mask.solve"
        check_data(fn, "y", y)
        check_mask_fits(fn, "y", self.mask, y, y.shape)
        wide = widened(y)
        r2, noise2 = levels(fn, wide, r2, noise2)
        return masked_over(wide, self.mask, r2, noise2).to(y.dtype)


class Subsample(LinearOperator):
    """Every so-manyth element of the last dimensions is measured: super-resolution without blur.

    A x = x[..., ::factor, ::factor]; the adjoint, which is the pseudo-inverse too, puts 0 between.
    A A^T = I: ``solve`` is y/(r2 + noise2).

    Args:
        factor: an integer for the last two dimensions, or a tuple of one for each of as many last
            dimensions; or a slice, or a tuple of slices, for as many last dimensions.
        size: the sizes of these dimensions in x. Needed with slices; with factors, where these
            don't divide the sizes.

    Attributes:
        gram: 1.

    Raises:
        ValueError: a factor below 1, a slice that selects nothing or runs backwards, no ``size``
            where one is needed.
        TypeError: an argument of the wrong type.

    Example:
        >>> y = Subsample(2).A(torch.arange(16.0).reshape(1, 1, 4, 4))
        >>> y
        tensor([[[[ 0.,  2.],
                  [ 8., 10.]]]])
        >>> Subsample(2).A_adjoint(y).shape
        torch.Size([1, 1, 4, 4])
        >>> Subsample(slice(3), size=8).A(torch.arange(8.0)[None])  # the first three of eight
        tensor([[0., 1., 2.]])
    """

    gram = 1.0

    def __init__(
        self,
        factor: int | slice | Sequence[int] | Sequence[slice],
        *,
        size: int | Sequence[int] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "Subsample"
        given: Any = (factor,) if isinstance(factor, slice) else factor
        sliced = isinstance(given, Sequence) and any(isinstance(s, slice) for s in given)
        self._factors = (1,) * len(given) if sliced else check_factors(fn, "factor", given)
        self.size = None if size is None else check_size(fn, "size", size, len(self._factors))
        slices = given if sliced else [slice(None, None, f) for f in self._factors]
        if not all(isinstance(s, slice) for s in slices):
            fail_type(fn, "factor", "integers or slices, not both", given)
        if sliced and self.size is None:
            fail(fn, "size", "the sizes of the dimensions that slices are taken of", None)
        self._slices: tuple[slice, ...] = tuple(slices)
        self._ranges = tuple(map(_range, slices, self.size)) if self.size is not None else None

    def extra_repr(self) -> str:
        """What it was made of."""
        return f"{self._slices}, size={self.size}"

    def A(self, x: Tensor) -> Tensor:
        """The elements of x that are measured."""
        fn, count = "Subsample.A", len(self._slices)
        check_data(fn, "x", x, min_dim=1 + count)
        if self.size is None:
            check_divides(fn, x, self._factors)
        elif tuple(x.shape[-count:]) != self.size:
            fail(fn, "x", f"of last dimensions {self.size}", f"shape {tuple(x.shape)}")
        at: tuple[Any, ...] = (..., *self._slices)
        return x[at]

    def A_adjoint(self, y: Tensor) -> Tensor:
        """y at the elements that are measured, 0 at the others."""
        return self._spread("Subsample.A_adjoint", y)

    def A_dagger(self, y: Tensor) -> Tensor:
        """y at the elements that are measured, 0 at the others."""
        return self._spread("Subsample.A_dagger", y)

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """y/(r2 + noise2)."""
        return divided("Subsample.solve", y, r2, noise2, 1.0)

    def _spread(self, fn: str, y: Tensor) -> Tensor:
        count = len(self._slices)
        check_data(fn, "y", y, min_dim=1 + count)
        sizes = tuple(y.shape[-count:])
        if self._ranges is None or self.size is None:
            full = [n * factor for n, factor in zip(sizes, self._factors, strict=True)]
            ranges = [range(0, n, f) for n, f in zip(full, self._factors, strict=True)]
        else:
            full, ranges = list(self.size), list(self._ranges)
            expected = tuple(map(len, ranges))
            if sizes != expected:
                fail(fn, "y", f"of last dimensions {expected}", f"shape {tuple(y.shape)}")
        for i in reversed(range(count)):
            dim = y.dim() - count + i
            zeros = y.new_zeros(*y.shape[:dim], full[i], *y.shape[dim + 1 :])
            at = ranges[i]
            y = torch.slice_scatter(zeros, y, dim, at.start, at.stop, at.step)
        return y


def _range(at: slice, size: int) -> range:
    """The places that a slice selects: at least one, forwards."""
    step = 1 if at.step is None else at.step
    if step < 1:
        fail("Subsample", "factor", "slices of a step of at least 1", at)
    places = range(*at.indices(size))
    if not places:
        fail("Subsample", "factor", f"slices that select something of {size}", at)
    return places


class AveragePool(LinearOperator):
    """Means of blocks are measured: super-resolution.

    A x is the mean of every block of n = product of the factors; A_dagger repeats a mean over its
    block, the adjoint is A_dagger/n. A A^T = I/n: ``solve`` is y/(r2/n + noise2).

    Args:
        factor: the sides of a block: an integer for the last two dimensions, or a tuple of one for
            each of as many last dimensions, which must be multiples of them.

    Attributes:
        gram: 1/n.

    Raises:
        ValueError: a factor below 1.
        TypeError: one that is no integer.

    Example:
        >>> AveragePool(2).A(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """

    def __init__(self, factor: int | Sequence[int]) -> None:
        """See the class."""
        super().__init__()
        self.factors = check_factors("AveragePool", "factor", factor)
        self.gram: float = 1.0 / math.prod(self.factors)

    def extra_repr(self) -> str:
        """What it was made of."""
        return f"{self.factors}"

    def A(self, x: Tensor) -> Tensor:
        """The mean of each block."""
        fn, count = "AveragePool.A", len(self.factors)
        check_data(fn, "x", x, min_dim=1 + count)
        check_divides(fn, x, self.factors)
        lead = x.shape[: x.dim() - count]
        if count == 2 and x.numel() and not x.is_complex():  # some three times faster
            pooled = F.avg_pool2d(x.reshape(math.prod(lead), *x.shape[-2:]), self.factors)
            return pooled.reshape(*lead, *pooled.shape[-2:])
        blocks = [
            part
            for size, factor in zip(x.shape[-count:], self.factors, strict=True)
            for part in (size // factor, factor)
        ]
        within = tuple(range(len(lead) + 1, len(lead) + 2 * count, 2))
        return x.reshape(*lead, *blocks).mean(within)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Each mean's n-th at every element of its block."""
        fn = "AveragePool.A_adjoint"
        check_data(fn, "y", y, min_dim=1 + len(self.factors))
        return self._repeated(fn, (widened(y) * self.gram).to(y.dtype))

    def A_dagger(self, y: Tensor) -> Tensor:
        """Each mean at every element of its block."""
        return self._repeated("AveragePool.A_dagger", y)

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """y/(r2/n + noise2)."""
        return divided("AveragePool.solve", y, r2, noise2, self.gram)

    def _repeated(self, fn: str, y: Tensor) -> Tensor:
        count = len(self.factors)
        check_data(fn, "y", y, min_dim=1 + count)
        # The last dimension first, the others by whole rows: a third of the time of all at once.
        for back, factor in enumerate(reversed(self.factors)):
            sizes, after = list(y.shape), y.dim() - back
            sizes.insert(after, factor)
            y = y.unsqueeze(after).expand(sizes).flatten(after - 1, after)
        return y
