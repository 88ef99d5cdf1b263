"""Blur: a circular convolution of the last dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_finite,
    check_floating,
    check_number,
    fail,
)
from fastscore.operators._base import LinearOperator
from fastscore.operators._common import check_data, check_on, levels, widened

WIDTHS = 4  # of a Gaussian kernel, in standard deviations on each side: 6e-5 is cut off


class Blur(LinearOperator):
    """Convolution with a kernel, every channel by itself, with a circular boundary.

    (A x)_i = sum_j k_j x_(i - j + c), c the middle of the kernel (half its size, rounded down), and
    indices wrap around: at the left edge, what is beyond the right edge enters. So the Fourier
    transform K of the kernel diagonalises A, and all is exact by FFT: the adjoint multiplies by
    conj(K), ``solve`` divides by r2 |K|^2 + noise2, A_dagger multiplies by conj(K)/|K|^2 where |K|
    is not negligible and by 0 elsewhere. A kernel larger than the image wraps around too.

    Half-precision data are computed with in float32.

    Args:
        kernel: a tensor with as many dimensions as are blurred (two for images), used as it is; or
            a number, the standard deviation in pixels of a Gaussian for the last two dimensions,
            cut off at four of them, whose sum is 1.
        rcond: frequencies where |K| is at most ``rcond`` of the largest |K| count as lost in
            A_dagger, and in ``solve`` at noise2 = 0: there rounding errors would be divided by |K|.

    Attributes:
        kernel: the buffer.

    Raises:
        ValueError: a kernel that is empty or not finite, a standard deviation that is not positive.
        TypeError: an argument of the wrong type.

    Example:
        >>> x = torch.zeros(1, 1, 1, 5)
        >>> x[..., 0] = 1.0
        >>> Blur(torch.tensor([[1.0, 2.0, 4.0]])).A(x).round(decimals=4) + 0.0
        tensor([[[[2., 4., 0., 0., 1.]]]])
        >>> Blur(1.0).kernel.shape  # a Gaussian
        torch.Size([9, 9])
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor | float, *, rcond: float = 1e-5) -> None:
        """See the class."""
        super().__init__()
        fn = "Blur"
        if not hasattr(kernel, "shape"):
            width = check_number(fn, "kernel", kernel, positive=True)
            radius = math.ceil(WIDTHS * width)
            at = torch.arange(-radius, radius + 1, dtype=torch.float64)
            line = (-0.5 * (at / width).square()).exp()
            kernel = torch.outer(line, line) / line.sum().square()
        kernel = check_floating(fn, "kernel", kernel, min_dim=1)
        if not kernel.numel():
            fail(fn, "kernel", "not empty", f"shape {tuple(kernel.shape)}")
        check_finite(fn, "kernel", kernel)
        self.rcond = check_number(fn, "rcond", rcond, minimum=0.0)
        self.register_buffer("kernel", kernel.detach().double())

    def extra_repr(self) -> str:
        """What it was made of."""
        return f"kernel of shape {tuple(self.kernel.shape)}"

    def _checked(self, fn: str, arg: str, x: Any) -> Tensor:
        check_data(fn, arg, x, min_dim=1 + self.kernel.dim(), real=True)
        check_on(fn, arg, x, self.kernel)
        return widened(x)

    def _spectrum(self, x: Tensor) -> Tensor:
        """The transform of the kernel at the size of x, computed in float64."""
        k = self.kernel
        sizes = x.shape[-k.dim() :]
        for dim, size in enumerate(sizes):
            if k.shape[dim] < size:
                short = (*k.shape[:dim], size - k.shape[dim], *k.shape[dim + 1 :])
                k = torch.cat([k, k.new_zeros(short)], dim)
            elif k.shape[dim] > size:
                short = (*k.shape[:dim], -k.shape[dim] % size, *k.shape[dim + 1 :])
                k = torch.cat([k, k.new_zeros(short)], dim)
                k = k.unflatten(dim, (-1, size)).sum(dim)
        centre = [-(n // 2) for n in self.kernel.shape]
        k = k.roll(centre, tuple(range(k.dim())))
        spectrum = torch.fft.rfftn(k)
        return spectrum if x.dtype == torch.float64 else spectrum.to(torch.complex64)

    def _multiply(self, x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """x with its transform multiplied."""
        if not x.numel():  # of which some libraries have no transform
            return x.to(dtype)
        dims = tuple(range(-self.kernel.dim(), 0))
        product = torch.fft.rfftn(x, dim=dims) * factor
        return torch.fft.irfftn(product, s=x.shape[-len(dims) :], dim=dims).to(dtype)

    def A(self, x: Tensor) -> Tensor:
        """x convolved with the kernel."""
        wide = self._checked("Blur.A", "x", x)
        return self._multiply(wide, self._spectrum(wide), x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """y correlated with the kernel."""
        wide = self._checked("Blur.A_adjoint", "y", y)
        return self._multiply(wide, self._spectrum(wide).conj(), y.dtype)

    def A_dagger(self, y: Tensor) -> Tensor:
        """y with every frequency that is not lost divided by the kernel's."""
        wide = self._checked("Blur.A_dagger", "y", y)
        spectrum = self._spectrum(wide)
        power, kept = self._power(spectrum)
        factor = torch.where(kept, spectrum.conj() / torch.where(kept, power, 1.0), 0.0)
        return self._multiply(wide, factor, y.dtype)

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """y with every frequency divided by r2 |K|^2 + noise2."""
        fn = "Blur.solve"
        wide = self._checked(fn, "y", y)
        r2, noise2 = levels(fn, wide, r2, noise2)
        power, kept = self._power(self._spectrum(wide))
        below = r2 * power + noise2
        there = below > 0
        if isinstance(noise2, Tensor):
            there = there & (kept | (noise2 > 0))
        elif not noise2:
            there = there & kept
        factor = torch.where(there, 1.0 / torch.where(there, below, 1.0), 0.0)
        return self._multiply(wide, factor, y.dtype)

    def _power(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """|K|^2, and whether it is more than negligible."""
        power = spectrum.real.square() + spectrum.imag.square()
        return power, power > power.amax() * self.rcond**2
