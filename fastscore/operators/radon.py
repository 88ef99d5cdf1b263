"""The Radon transform of computed tomography, parallel beams, as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_finite, check_int, fail, fail_type
from fastscore.operators._base import LinearOperator
from fastscore.operators._common import check_data, check_on, check_size, levels, over, widened

DENSE = 2**24  # elements of a matrix, 64 MB in float32; a larger one is kept sparse
DECOMPOSED = 1024  # rows or columns: a decomposition of about a second on one core


class Radon(LinearOperator):
    """Sums of an image along parallel rays at some angles: computed tomography.

    y[..., u, a] is the sum of column u of the image turned by ``angles[a]`` about its middle. A ray
    is sampled once a pixel, bilinearly, with 0 outside of the image, as by
    ``skimage.transform.radon(image, angles, circle)``: to rounding it is the same of images of an
    odd size, and of all with ``centre="pixel"``. The weights are kept as a matrix, dense up to 2^24
    elements and sparse beyond (some 3 entries for each angle and pixel); so the adjoint is exactly
    the transpose.

    With a singular value decomposition of the matrix, A_dagger and ``solve`` are exact (computed
    with in float64); without it they are not there, and conjugate gradients do.

    Args:
        angles: in degrees; or how many, spread evenly over 180 degrees from 0 on.
        size: of the image: (height, width), or an integer for a square one.
        circle: as many bins as the (square) image has columns, so that what lies outside of the
            inscribed circle is seen at some angles only. If False, as many as its diagonal is long.
        centre: "middle", that of the image; or "pixel", the pixel of index size // 2, which is off
            by half a pixel in even sizes: there a row is lost at 90 degrees with ``circle``.
        svd: whether to decompose the matrix, when this is made: of m rows and n columns it costs
            about 6 m n min(m, n) operations and 16 (m + n) min(m, n) bytes are kept. By default
            where min(m, n) is at most 1024 (a second or so) and the matrix is dense.
        rcond: singular values of at most ``rcond`` of the largest count as 0 in A_dagger, and in
            ``solve`` at noise2 = 0.
        dtype: in which the weights are kept; torch's default one if None. Data of another dtype
            than float32 and float64 are computed with in float32, float64 ones in float64.

    Attributes:
        size, bins: of images (height, width), and of their sums.
        angles: the angles in degrees, a tuple.

    Raises:
        ValueError: no angle, a size below 1, an image that is not square with ``circle``, ``svd``
            of a matrix that is kept sparse.
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
        shape = (self.bins * len(self.angles), height * width)
        small = shape[0] * shape[1] <= DENSE
        self._dense = small
        if svd and not small:
            fail(fn, "svd", f"None or False for more than {DENSE} elements", f"{svd} of {shape}")
        places = torch.stack([rows, columns])
        sparse = torch.sparse_coo_tensor(
            places, weights, shape, check_invariants=False, is_coalesced=False
        ).coalesce()
        if small:
            self._keep("matrix", sparse.to_dense().to(dtype))
        else:
            self._keep_sparse("", sparse, dtype)
            self._keep_sparse("_t", sparse.t().coalesce(), dtype)
        if svd or (svd is None and small and min(shape) <= DECOMPOSED):
            u, s, v = torch.linalg.svd(self.matrix.double(), full_matrices=False)
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

    def _keep_sparse(self, end: str, matrix: Tensor, dtype: torch.dtype) -> None:
        compressed = matrix.to_sparse_csr()
        self._keep("crow" + end, compressed.crow_indices())
        self._keep("col" + end, compressed.col_indices())
        self._keep("weight" + end, compressed.values().to(dtype))

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
        matrix = torch.sparse_csr_tensor(
            crow, col, weight.to(flat.dtype), shape, check_invariants=False
        )
        return (matrix @ flat.T).T

    def _checked(self, fn: str, arg: str, x: Any, shape: tuple[int, int]) -> Tensor:
        """The samples and their channels as rows."""
        check_data(fn, arg, x, min_dim=3, real=True)
        check_on(fn, arg, x, self.matrix if self._dense else self.get_buffer("weight"))
        if tuple(x.shape[-2:]) != shape:
            what = "the image" if arg == "x" else "bins and angles"
            fail(fn, arg, f"of last dimensions {shape} ({what})", f"shape {tuple(x.shape)}")
        return widened(x).reshape(math.prod(x.shape[:-2]), shape[0] * shape[1])

    def _seen(self) -> tuple[int, int]:
        return self.bins, len(self.angles)

    def A(self, x: Tensor) -> Tensor:
        """The sums: (batch, ..., bins, angles) of (batch, ..., height, width)."""
        flat = self._checked("Radon.A", "x", x, self.size)
        return self._product(flat, False).reshape(*x.shape[:-2], *self._seen()).to(x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Every sum put back along its ray, unfiltered."""
        flat = self._checked("Radon.A_adjoint", "y", y, self._seen())
        return self._product(flat, True).reshape(*y.shape[:-2], *self.size).to(y.dtype)

    @property
    def A_dagger(self) -> Any:
        """The pseudo-inverse; there if the matrix has been decomposed."""
        return self._dagger if "singular" in self._buffers else self._absent("A_dagger")

    @property
    def solve(self) -> Any:
        """(r2 A A^T + noise2)^-1 y; there if the matrix has been decomposed."""
        return self._solve if "singular" in self._buffers else self._absent("solve")

    def _absent(self, name: str) -> Any:
        raise AttributeError(name)

    def _dagger(self, y: Tensor) -> Tensor:
        flat = self._checked("Radon.A_dagger", "y", y, self._seen()).double()
        x = over(flat @ self.left, self.singular) @ self.right
        return x.reshape(*y.shape[:-2], *self.size).to(y.dtype)

    def _solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        flat = self._checked("Radon.solve", "y", y, self._seen()).double()
        rows = flat.reshape(y.shape[0], -1, flat.shape[1])
        r2, noise2 = levels("Radon.solve", rows, r2, noise2)
        within = rows @ self.left
        beyond = rows - within @ self.left.T
        part = over(within, r2 * self.singular.square() + noise2) @ self.left.T
        return (part + over(beyond, noise2)).reshape(y.shape).to(y.dtype)


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
    """Rows, columns and values of the matrix, in float64; places may come more than once."""
    # About which place is turned: in the square of bins x bins, and in the image.
    middle = bins // 2 if pixel else (bins - 1) / 2
    centre = [s // 2 if pixel else (s - 1) / 2 for s in size]
    at = torch.arange(bins, dtype=torch.float64) - middle
    u, v = at[None, :], at[:, None]
    rows, columns, values = [], [], []
    for a, angle in enumerate(angles):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        x = cos * u + sin * v + centre[1]
        y = cos * v - sin * u + centre[0]
        x0, y0 = x.floor(), y.floor()
        row = (torch.arange(bins) * len(angles) + a).expand(bins, bins)
        for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
            for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
                px, py, weight = x0.long() + dx, y0.long() + dy, wx * wy
                inside = (px >= 0) & (px < size[1]) & (py >= 0) & (py < size[0]) & (weight != 0)
                rows.append(row[inside])
                columns.append((py * size[1] + px)[inside])
                values.append(weight[inside])
    return torch.cat(rows), torch.cat(columns), torch.cat(values)
