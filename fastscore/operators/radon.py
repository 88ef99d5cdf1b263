"""The Radon transform of computed tomography, parallel beams, as a matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_finite, check_int, fail, fail_type
from fastscore.operators._base import LinearOperator
from fastscore.operators._common import (
    check_data,
    check_on,
    check_size,
    inverse_of,
    levels,
    over,
    widened,
)

DENSE = 2**16  # elements up to which a dense matrix is the faster one; a larger one is kept sparse
_BETA = ["Sparse CSR tensor support is in beta state"]  # a warning that has not been given yet
DECOMPOSED = 2**30  # rows x columns x the fewer: a decomposition of about a second on one core


class Radon(LinearOperator):
    """Sums of an image along parallel rays at some angles: computed tomography.

    y[..., u, a] is the sum of column u of the image turned by ``angles[a]`` about its middle. A ray
    is sampled once a pixel, bilinearly, with 0 outside of the image, as by
    ``skimage.transform.radon(image, angles, circle)``: to rounding it is the same with
    ``centre="pixel"``, and of images of an odd size with ``circle``. The weights are kept as a
    matrix, dense if it is small and else sparse (two or three entries for each angle and pixel,
    kept in the order of both products); so the adjoint is exactly the transpose. At a sparse one
    ``torch.compile`` breaks its graph.

    With a singular value decomposition of the matrix, A_dagger and ``solve`` are exact; without it
    they are not there, and conjugate gradients do.

    Args:
        angles: in degrees; or how many, spread evenly over 180 degrees from 0 on.
        size: of the image: (height, width), or an integer for a square one.
        circle: as many bins as the (square) image has columns, so that what lies outside of the
            inscribed circle is seen at some angles only. If False, as many as its diagonal is long.
        centre: "middle", that of the image; or "pixel", the pixel of index size // 2, which is off
            by half a pixel in even sizes: there a row is lost at 90 degrees with ``circle``.
        svd: whether to decompose the matrix, when this is made, in float64: of m rows and n columns
            it takes some 6 m n min(m, n) operations, and 8 (m + n) min(m, n) bytes are kept. By
            default where m n min(m, n) is at most 2^30, a second or so on one core.
        rcond: singular values of at most ``rcond`` of the largest count as 0 in A_dagger, and in
            ``solve`` at noise2 = 0.
        dtype: in which the weights are kept; torch's default one if None. Data of another dtype
            than float32 and float64 are computed with in float32, float64 ones in float64.

    Attributes:
        size, bins: of images (height, width), and of their sums.
        angles: the angles in degrees, a tuple.

    Raises:
        ValueError: no angle, a size below 1, an image that is not square with ``circle``.
        TypeError: an argument of the wrong type.

    Example:
        >>> ct = Radon([0.0, 90.0], 4)
        >>> ct.A(torch.arange(16.0).reshape(1, 1, 4, 4))[0, 0].T  # sums of columns, and of rows
        tensor([[24., 28., 32., 36.],
                [54., 38., 22.,  6.]])
        >>> ct = Radon(2, 8)  # 16 numbers of 64
        >>> ct.A(torch.ones(5, 1, 8, 8)).shape, hasattr(ct, "solve")
        (torch.Size([5, 1, 8, 2]), True)
    """

    def __init__(
        self,
        angles: int | Sequence[float] | Tensor,
        size: int | Sequence[int],
        *,
        circle: bool = True,
        centre: str = "middle",
        svd: bool | None = None,
        rcond: float = 1e-6,
        dtype: torch.dtype | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "Radon"
        self.angles = _angles(fn, angles)
        height, width = check_size(fn, "size", size, 2)
        self.size = (height, width)
        if circle and height != width:
            fail(fn, "size", "that of a square with circle=True", self.size)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            fail(fn, "dtype", "torch.float32 or torch.float64", dtype)
        pixel = check_choice(fn, "centre", centre, ("middle", "pixel")) == "pixel"
        self.bins = width if circle else math.ceil(math.sqrt(2.0) * max(height, width))
        if not pixel:  # so that bins are columns at 0 degrees
            self.bins += (self.bins - width) % 2
        rows, columns, weights = _weights(self.angles, self.size, self.bins, pixel)
        shape = (len(self.angles) * self.bins, height * width)
        self._dense = shape[0] * shape[1] <= DENSE
        if self._dense:
            self._keep("matrix", _dense(rows, columns, weights, shape).to(dtype))
        else:
            self._keep_sparse("", rows, columns, weights.to(dtype), shape[0])
            order = columns.argsort(stable=True)
            entries = columns[order], rows[order], weights[order].to(dtype)
            self._keep_sparse("_t", *entries, shape[1])
        if svd or (svd is None and shape[0] * shape[1] * min(shape) <= DECOMPOSED):
            whole = _dense(rows, columns, weights, shape)
            u, s, v = torch.linalg.svd(whole, full_matrices=False)
            s = torch.where(s > rcond * s[0], s, 0.0)
            self._keep("left", u)
            self._keep("singular", s)
            self._keep("right", v)

    matrix: Tensor
    left: Tensor
    singular: Tensor
    right: Tensor

    def _keep(self, name: str, value: Tensor) -> None:
        """What can be made again from the arguments: no part of a checkpoint."""
        self.register_buffer(name, value.contiguous(), persistent=False)

    def _keep_sparse(
        self, end: str, rows: Tensor, columns: Tensor, weights: Tensor, count: int
    ) -> None:
        """Entries in the order of their rows."""
        ends = torch.bincount(rows, minlength=count).cumsum(0)
        self._keep("crow" + end, torch.cat([ends.new_zeros(1), ends]))
        self._keep("col" + end, columns)
        self._keep("weight" + end, weights)

    def extra_repr(self) -> str:
        """What it was made of."""
        return f"{len(self.angles)} angles, size={self.size}, bins={self.bins}"

    # ---- the products ---------------------------------------------------------------------------

    def _product(self, flat: Tensor, transposed: bool) -> Tensor:
        """Rows times the matrix's transpose, or times the matrix."""
        if not self._dense:
            return _Product.apply(flat, self, transposed)
        matrix = self.matrix.to(flat.dtype)
        return flat @ (matrix if transposed else matrix.T)

    def sparse_product(self, flat: Tensor, transposed: bool) -> Tensor:
        """The same of the matrix as it is kept if large, without a derivative of its own."""
        end = "_t" if transposed else ""
        crow, col, weight = (getattr(self, name + end) for name in ("crow", "col", "weight"))
        shape = (len(crow) - 1, flat.shape[1])
        return (_compressed(crow, col, weight.to(flat.dtype), shape) @ flat.T).T

    def _image(self, fn: str, x: Any) -> Tensor:
        """Images as rows."""
        self._check(fn, "x", x, self.size, "the image")
        return widened(x).reshape(math.prod(x.shape[:-2]), self.size[0] * self.size[1])

    def _sums(self, fn: str, y: Any) -> Tensor:
        """Sums as rows, in the order of the matrix: the bins of each angle together."""
        shape = (self.bins, len(self.angles))
        self._check(fn, "y", y, shape, "bins and angles")
        return widened(y).mT.reshape(math.prod(y.shape[:-2]), shape[0] * shape[1])

    def _check(self, fn: str, arg: str, x: Any, shape: tuple[int, int], what: str) -> None:
        check_data(fn, arg, x, min_dim=3, real=True)
        check_on(fn, arg, x, self.matrix if self._dense else self.get_buffer("weight"))
        if tuple(x.shape[-2:]) != shape:
            fail(fn, arg, f"of last dimensions {shape} ({what})", f"shape {tuple(x.shape)}")

    def _as_sums(self, rows: Tensor, like: Tensor) -> Tensor:
        shape = (*like.shape[:-2], len(self.angles), self.bins)
        return rows.reshape(shape).mT.to(like.dtype)

    def A(self, x: Tensor) -> Tensor:
        """The sums: (batch, ..., bins, angles) of (batch, ..., height, width)."""
        return self._as_sums(self._product(self._image("Radon.A", x), False), x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Every sum put back along its ray, unfiltered."""
        flat = self._product(self._sums("Radon.A_adjoint", y), True)
        return flat.reshape(*y.shape[:-2], *self.size).to(y.dtype)

    @property
    def A_dagger(self) -> Callable[[Tensor], Tensor]:
        """The pseudo-inverse; there if the matrix has been decomposed."""
        return self._dagger if "singular" in self._buffers else _absent("A_dagger")

    @property
    def solve(self) -> Callable[[Tensor, Tensor | float, Tensor | float], Tensor]:
        """(r2 A A^T + noise2)^-1 y; there if the matrix has been decomposed."""
        return self._solve if "singular" in self._buffers else _absent("solve")

    def _dagger(self, y: Tensor) -> Tensor:
        flat = self._sums("Radon.A_dagger", y).double()
        x = over(flat @ self.left, self.singular) @ self.right
        return x.reshape(*y.shape[:-2], *self.size).to(y.dtype)

    def _solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        flat = self._sums("Radon.solve", y)
        rows = flat.reshape(y.shape[0], math.prod(y.shape[1:-2]), flat.shape[1])
        r2, noise2 = levels("Radon.solve", rows, r2, noise2)
        left, singular = self.left.to(rows.dtype), self.singular.to(rows.dtype)
        # y/noise2 beyond the range of A, and within it that corrected.
        beyond = inverse_of(noise2)
        within = inverse_of(r2 * singular.square() + noise2) - beyond
        return self._as_sums((rows @ left * within) @ left.T + rows * beyond, y)


def _absent(name: str) -> NoReturn:
    raise AttributeError(name)


def _dense(rows: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix of entries that come once each, in float64."""
    matrix = torch.zeros(shape, dtype=torch.float64)
    matrix[rows, columns] = weights
    return matrix


def _compressed(crow: Tensor, col: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix by rows; without PyTorch's warning that they are new, once a process."""
    if _BETA:
        _BETA.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return _compressed(crow, col, weight, shape)
    return torch.sparse_csr_tensor(crow, col, weight, shape, check_invariants=False)


class _Product(torch.autograd.Function):
    """A sparse product, with all the derivatives: PyTorch's own has no vmap and no second."""

    @staticmethod
    def forward(flat: Tensor, operator: Radon, transposed: bool) -> Tensor:
        return operator.sparse_product(flat, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.operator, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Product.apply(grad, ctx.operator, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _Product.apply(tangent, ctx.operator, ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: Any, flat: Tensor, operator: Radon, transposed: bool) -> Any:
        flat = flat.movedim(in_dims[0], 0)
        out = _Product.apply(flat.flatten(0, 1), operator, transposed)
        return out.unflatten(0, flat.shape[:2]), 0


def _angles(fn: str, angles: Any) -> tuple[float, ...]:
    """Angles in degrees."""
    if isinstance(angles, Tensor) or (isinstance(angles, Sequence) and not isinstance(angles, str)):
        try:
            found = torch.as_tensor(angles, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            fail_type(fn, "angles", "a number of angles, or angles in degrees", angles)
        if found.dim() != 1 or not len(found):
            fail(fn, "angles", "at least one angle, in one dimension", f"{tuple(found.shape)}")
        check_finite(fn, "angles", found)
        return tuple(found.tolist())
    count = check_int(fn, "angles", angles, minimum=1)
    return tuple(180.0 * i / count for i in range(count))


def _weights(
    angles: tuple[float, ...], size: tuple[int, int], bins: int, pixel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the matrix, in float64, by rows and then by columns."""
    # About which place is turned: in the square of bins x bins, and in the image.
    middle = bins // 2 if pixel else (bins - 1) / 2
    centre = [s // 2 if pixel else (s - 1) / 2 for s in size]
    at = torch.arange(bins, dtype=torch.float64) - middle
    u, v = at[None, :], at[:, None]
    columns = size[0] * size[1]
    places, values = [], []
    for a, angle in enumerate(angles):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        x = cos * u + sin * v + centre[1]
        y = cos * v - sin * u + centre[0]
        x0, y0 = x.floor(), y.floor()
        row = (torch.arange(bins) + a * bins).expand(bins, bins)
        place, value = [], []
        for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
            for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
                px, py, weight = x0.long() + dx, y0.long() + dy, wx * wy
                inside = (px >= 0) & (px < size[1]) & (py >= 0) & (py < size[0]) & (weight != 0)
                place.append((row * columns + py * size[1] + px)[inside])
                value.append(weight[inside])
        found, which = torch.cat(place).unique(return_inverse=True)  # sorted
        places.append(found)
        total = torch.zeros(len(found), dtype=torch.float64)
        values.append(total.index_add_(0, which, torch.cat(value)))
    every = torch.cat(places)
    return every // columns, every % columns, torch.cat(values)
