"""The masked unitary Fourier transform of magnetic resonance imaging."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_floating, check_tensor, describe, fail
from fastscore.operators._base import LinearOperator
from fastscore.operators._common import (
    check_data,
    check_mask,
    check_mask_fits,
    check_on,
    inverse_of,
    levels,
    masked_over,
    over,
    times,
    widened,
)

DATA = ("real", "complex", "channels")
OUTPUT = ("complex", "channels")
PLANE = (-2, -1)


class MaskedFourier(LinearOperator):
    """Some frequencies of an image are measured: MRI with one coil.

    y = mask F x, with F the unitary 2-D transform of the last two dimensions (``norm="ortho"``), in
    the full grid of frequencies, with 0 where nothing is measured. What an unmeasured element of y
    holds does not matter to ``A_adjoint`` and ``A_dagger``.

    - Of complex data (``data="complex"``, or as channels) A A^* = diag(mask): the adjoint
      F^* mask y is the pseudo-inverse, and ``solve`` is y/(r2 + noise2) where measured, y/noise2
      elsewhere.
    - Of real data the adjoint is the real part of that. A frequency k and its opposite -k say the
      same: where both are measured, A A^T is the projection on (y(k) + conj y(-k))/2, where one is,
      half the identity (a frequency that is its own opposite counts as both). ``solve`` and
      A_dagger are exact with these eigenvalues, 1, 1/2 and 0.

    Inner products are real: Re <u, v>, which is that of the real and imaginary parts as channels.

    Args:
        mask: a bool tensor, True where measured, that broadcasts to (..., height, width) of a
            sample's frequencies; the same for all samples. One of (width,) measures whole columns.
        data: what x is: "real", of any shape (batch, ..., height, width); "complex", of a complex
            dtype; or "channels", real of shape (batch, 2 C, height, width): the C real parts, then
            the C imaginary parts.
        output: what y is: "complex", of a complex dtype; or "channels", (batch, 2 C, height,
            width). By default "channels" for data of channels, else "complex".
        centred: the zero frequency stands in the middle, of mask and y, and the image's origin in
            its middle, as in deepinv's and fastMRI's transforms. Without it, first: the order of
            ``torch.fft.fft2``.

    Attributes:
        mask: the buffer.
        gram: 1 if all is measured of complex data, else None.
        cogram: 1 if all is measured, else None.

    Half-precision data are computed with in float32; their complex measurements are complex64.

    Raises:
        ValueError: a mask that is not bool or False everywhere, an unknown choice.
        TypeError: an argument of the wrong type.

    Example:
        >>> lines = torch.tensor([True, False, True, False])  # of the columns
        >>> mri = MaskedFourier(lines, data="channels")
        >>> x = torch.randn(8, 2, 4, 4)  # real part, imaginary part
        >>> y = mri.A(x)
        >>> y.shape, bool((y[..., 1] == 0).all())
        (torch.Size([8, 2, 4, 4]), True)
        >>> torch.allclose(mri.A(mri.A_dagger(y)), y, atol=1e-6)
        True
    """

    mask: Tensor

    def __init__(
        self,
        mask: Tensor,
        *,
        data: str = "real",
        output: str | None = None,
        centred: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "MaskedFourier"
        self.register_buffer("mask", check_mask(fn, mask))
        if not self.mask.dim():
            self.mask = self.mask[None]
        self.data = check_choice(fn, "data", data, DATA)
        default = "channels" if data == "channels" else "complex"
        self.output = default if output is None else check_choice(fn, "output", output, OUTPUT)
        self.centred = centred
        if bool(self.mask.all()):
            self.cogram = 1.0
            self.gram = None if data == "real" else 1.0

    def extra_repr(self) -> str:
        """How it was made."""
        centred = ", centred" if self.centred else ""
        return f"data={self.data!r}, output={self.output!r}{centred}"

    # ---- data and measurements as complex numbers, and back -------------------------------------

    def _image(self, fn: str, x: Any) -> Tensor:
        """x as numbers that can be transformed."""
        if self.data == "complex":
            check_tensor(fn, "x", x, min_dim=3)
            if not x.is_complex():
                way = 'data="real" and data="channels" are for real tensors'
                fail(fn, "x", f"complex ({way})", describe(x))
            wide = x
        elif self.data == "channels":
            wide = _joined(fn, "x", x)
        else:
            check_floating(fn, "x", x, min_dim=3 if self.output == "complex" else 4)
            wide = widened(x)
        self._fits(fn, "x", wide)
        return wide

    def _frequencies(self, fn: str, y: Any) -> Tensor:
        """y as complex numbers."""
        if self.output == "channels":
            wide = _joined(fn, "y", y)
        else:
            check_tensor(fn, "y", y, min_dim=3)
            if not y.is_complex():
                fail(fn, "y", 'complex (output="channels" is of real tensors)', describe(y))
            wide = y
        self._fits(fn, "y", wide)
        return wide

    def _fits(self, fn: str, arg: str, z: Tensor) -> None:
        check_on(fn, arg, z, self.mask)
        check_mask_fits(fn, arg, self.mask, z, z.shape, "image")

    def _as_output(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Complex measurements as they are returned; ``dtype`` is that of real channels."""
        return _split(y).to(dtype) if self.output == "channels" else y

    def _as_data(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A complex image as data; ``dtype`` is that of real channels."""
        if self.data == "complex":
            return x
        return (_split(x) if self.data == "channels" else x.real).to(dtype)

    def _dtype_of(self, y: Tensor) -> torch.dtype:
        """The real dtype that belongs to a measurement or an image."""
        return y.real.dtype if y.is_complex() else y.dtype

    # ---- the transform ---------------------------------------------------------------------------

    def _forward(self, x: Tensor) -> Tensor:
        if not x.numel():  # of which some libraries have no transform
            return x + 0j
        x = torch.fft.ifftshift(x, PLANE) if self.centred else x
        y = torch.fft.fft2(x, norm="ortho")
        return torch.fft.fftshift(y, PLANE) if self.centred else y

    def _backward(self, y: Tensor) -> Tensor:
        if not y.numel():
            return y
        y = torch.fft.ifftshift(y, PLANE) if self.centred else y
        x = torch.fft.ifft2(y, norm="ortho")
        return torch.fft.fftshift(x, PLANE) if self.centred else x

    def _opposite(self, y: Tensor) -> Tensor:
        """y(-k) at the place of k."""
        for dim in PLANE[-y.dim() :]:
            size = y.shape[dim]
            middle = size // 2 if self.centred else 0
            at = (2 * middle - torch.arange(size, device=y.device)) % size
            y = y.index_select(dim, at)
        return y

    def _split_mask(self) -> tuple[Tensor, Tensor]:
        """Where k and -k are measured, and where k alone is."""
        opposite = self._opposite(self.mask)
        return self.mask & opposite, self.mask & ~opposite

    def A(self, x: Tensor) -> Tensor:
        """The frequencies that are measured, 0 at the others."""
        y = torch.where(self.mask, self._forward(self._image("MaskedFourier.A", x)), 0.0)
        return self._as_output(y, self._dtype_of(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The image of the frequencies that are measured."""
        seen = torch.where(self.mask, self._frequencies("MaskedFourier.A_adjoint", y), 0.0)
        return self._as_data(self._backward(seen), self._dtype_of(y))

    def A_dagger(self, y: Tensor) -> Tensor:
        """The image of least norm that measures as y, or as near to it as can be."""
        z = self._frequencies("MaskedFourier.A_dagger", y)
        if self.data != "real":
            seen = torch.where(self.mask, z, 0.0)
        else:  # of the adjoint's real part, half of what has no opposite is lost
            both, lone = self._split_mask()
            seen = torch.where(both, z, torch.where(lone, 2.0 * z, 0.0))
        return self._as_data(self._backward(seen), self._dtype_of(y))

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """(r2 A A^T + noise2)^-1 y: see the class; a quotient by 0 is 0."""
        fn = "MaskedFourier.solve"
        z = self._frequencies(fn, y)
        r2, noise2 = levels(fn, z, r2, noise2)
        if self.data == "real":
            out = self._solve_real(z, r2, noise2)
        else:
            out = masked_over(z, self.mask, r2, noise2)
        return self._as_output(out, self._dtype_of(y))

    def _solve_real(self, z: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """``solve`` for real data.

        With e = (y(k) + conj y(-k))/2 of what is measured, and o = y - e, it is e/(r2 + noise2) +
        o/noise2 where k and -k are measured; where k alone is, e = o, both over r2/2 + noise2.
        """
        both, lone = self._split_mask()
        seen = torch.where(self.mask, z, 0.0)
        even = 0.5 * (seen + self._opposite(seen).conj())
        one, half, none = map(inverse_of, (r2 + noise2, 0.5 * r2 + noise2, noise2))
        zero = torch.zeros((), dtype=z.real.dtype, device=z.device)
        factors = [
            torch.where(both, zero + of_pairs, torch.where(lone, zero + half, zero))
            for of_pairs in (one, none)
        ]
        out = times(even, factors[0]) + times(seen - even, factors[1])
        if not isinstance(none, Tensor) and not none:
            return out
        return torch.where(self.mask, out, over(z, noise2))


def _joined(fn: str, arg: str, x: Any) -> Tensor:
    """Real and imaginary parts as channels, as complex numbers."""
    check_data(fn, arg, x, min_dim=4, real=True)
    if x.shape[1] % 2 or not x.shape[1]:
        expected = "of an even number of channels, the real parts and the imaginary parts"
        fail(fn, arg, expected, f"shape {tuple(x.shape)}")
    return torch.complex(*widened(x).chunk(2, 1))


def _split(x: Tensor) -> Tensor:
    """Complex numbers as channels."""
    return torch.cat([x.real, x.imag], 1)
