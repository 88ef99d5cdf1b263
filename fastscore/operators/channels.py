"""Grey from colour, and orthogonal changes of basis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_callable,
    check_finite,
    check_floating,
    check_number,
    check_sequence,
    check_tensor,
    describe,
    fail,
    fail_type,
)
from fastscore.operators._base import LinearOperator
from fastscore.operators._common import check_data, check_on, check_size, divided, widened

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
NAMED = {"mean": (1 / 3, 1 / 3, 1 / 3), "luma": LUMA}
ORTHOGONAL = 1e-5  # the largest error of Q Q^T = I that is rounding


def grey_weights(fn: str, weights: Any) -> tuple[float, ...]:
    """The weights of the channels, not all 0."""
    if isinstance(weights, str):
        if weights not in NAMED:
            expected = "'mean', 'luma' or a sequence of a number for each channel"
            fail(fn, "weights", expected, repr(weights))
        return NAMED[weights]
    if isinstance(weights, Tensor):
        weights = weights.tolist() if weights.dim() == 1 else fail_weights(fn, weights)
    check_sequence(fn, "weights", weights, "a number for each channel")
    found = tuple(check_number(fn, f"weights[{i}]", w) for i, w in enumerate(weights))
    if not any(found):
        fail(fn, "weights", "numbers of which one at least is not 0", found)
    return found


def fail_weights(fn: str, weights: Tensor) -> Any:
    fail(fn, "weights", "of one dimension", describe(weights))


class Grey(LinearOperator):
    """A weighted sum of the channels is measured: colorization.

    y = sum_c w_c x_c, (batch, 1, ...) of (batch, channels, ...). A A^T = |w|^2 I: ``solve`` is
    y/(r2 |w|^2 + noise2), and A_dagger gives every channel w_c y/|w|^2.

    Args:
        weights: "mean" (a third each), "luma" (0.299, 0.587, 0.114 of red, green, blue), or a
            number for each channel.
        orthonormal: divide the weights by |w|. Then grey is the first coordinate of
            ``ChannelBasis.from_grey(weights)``, and noise of that measurement is in its units.

    Attributes:
        weights: the buffer, with what ``orthonormal`` did.
        gram: |w|^2.

    Raises:
        ValueError: an unknown name, weights that are all 0 or not finite.
        TypeError: an argument of the wrong type.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
        >>> Grey("luma").A(red)
        tensor([[[[0.2990]]]])
        >>> Grey().A_dagger(Grey().A(red)).flatten()
        tensor([0.3333, 0.3333, 0.3333])
    """

    weights: Tensor

    def __init__(
        self, weights: str | Sequence[float] | Tensor = "mean", *, orthonormal: bool = False
    ) -> None:
        """See the class."""
        super().__init__()
        w = torch.tensor(grey_weights("Grey", weights), dtype=torch.float64)
        if orthonormal:
            w = w / torch.linalg.vector_norm(w)
        self.register_buffer("weights", w)
        self.gram: float = 1.0 if orthonormal else math.fsum(v * v for v in w.tolist())

    def extra_repr(self) -> str:
        """What it was made of."""
        return ", ".join(f"{w:.4g}" for w in self.weights.tolist())

    def _column(self, x: Tensor) -> Tensor:
        """The weights, to multiply with x."""
        return self.weights.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 2))

    def A(self, x: Tensor) -> Tensor:
        """The weighted sum, (batch, 1, ...)."""
        fn = "Grey.A"
        check_data(fn, "x", x, min_dim=2)
        check_on(fn, "x", x, self.weights)
        if x.shape[1] != len(self.weights):
            expected = f"of {len(self.weights)} channels, (batch, channels, ...)"
            fail(fn, "x", expected, f"shape {tuple(x.shape)}")
        wide = widened(x)
        return (wide * self._column(wide)).sum(1, keepdim=True).to(x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Each channel's weight times y."""
        return self._spread("Grey.A_adjoint", y, 1.0)

    def A_dagger(self, y: Tensor) -> Tensor:
        """Each channel's weight times y/|w|^2: the grey that measures as y, of "mean" weights."""
        return self._spread("Grey.A_dagger", y, 1.0 / self.gram)

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """y/(r2 |w|^2 + noise2)."""
        return divided("Grey.solve", y, r2, noise2, self.gram)

    def _spread(self, fn: str, y: Tensor, scale: float) -> Tensor:
        check_data(fn, "y", y, min_dim=2)
        check_on(fn, "y", y, self.weights)
        if y.shape[1] != 1:
            fail(fn, "y", "of one channel, (batch, 1, ...)", f"shape {tuple(y.shape)}")
        wide = widened(y)
        return (wide * (self._column(wide) * scale)).to(y.dtype)


def orthogonal_matrix(fn: str, matrix: Any) -> Tensor:
    """A square matrix Q with Q Q^T = I, in float64."""
    check_floating(fn, "matrix", matrix)
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        fail(fn, "matrix", "square", describe(matrix))
    check_finite(fn, "matrix", matrix)
    q = matrix.detach().double()
    error = float((q @ q.T - torch.eye(len(q), dtype=q.dtype, device=q.device)).abs().max())
    if error > ORTHOGONAL:
        expected = "orthogonal, Q Q^T = I (torch.linalg.qr makes one that is)"
        fail(fn, "matrix", expected, f"one of which an element of Q Q^T is off by {error:.3g}")
    return q


class _Basis(LinearOperator):
    """What changes of basis share: A A^T = A^T A = I."""

    gram = 1.0
    cogram = 1.0

    def _changed(self, fn: str, arg: str, x: Tensor, forward: bool) -> Tensor:
        raise NotImplementedError

    def A(self, x: Tensor) -> Tensor:
        """The coordinates of x."""
        return self._changed(f"{type(self).__name__}.A", "x", x, True)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """What has the coordinates y."""
        return self._changed(f"{type(self).__name__}.A_adjoint", "y", y, False)

    def A_dagger(self, y: Tensor) -> Tensor:
        """What has the coordinates y: the adjoint is the inverse."""
        return self._changed(f"{type(self).__name__}.A_dagger", "y", y, False)

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """y/(r2 + noise2)."""
        return divided(f"{type(self).__name__}.solve", y, r2, noise2, 1.0)


class ChannelBasis(_Basis):
    """An orthogonal change of basis of the channels, the same at every pixel.

    y_i = sum_j Q_ij x_j over dimension 1. Colorization is inpainting in a basis whose first
    coordinate is grey (Song et al. 2021, "Score-Based Generative Modeling through Stochastic
    Differential Equations", appendix I): ``Mask(...) @ ChannelBasis.from_grey()``.

    Args:
        matrix: Q, orthogonal, (channels, channels).

    Attributes:
        matrix: the buffer.
        gram, cogram: 1.

    Raises:
        ValueError: a matrix that is not square, not finite or not orthogonal.
        TypeError: no tensor.

    Example:
        >>> basis = ChannelBasis.from_grey()
        >>> basis.A(torch.ones(1, 3, 1, 1)).flatten() + 0.0  # grey alone, times sqrt(3)
        tensor([1.7321, 0.0000, 0.0000])
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("matrix", orthogonal_matrix("ChannelBasis", matrix))

    @classmethod
    def from_grey(cls, weights: str | Sequence[float] | Tensor = "mean") -> ChannelBasis:
        """The basis whose first coordinate is ``Grey(weights, orthonormal=True)``.

        The others are made by a Householder reflection: differences of colour.
        """
        w = torch.tensor(grey_weights("ChannelBasis.from_grey", weights), dtype=torch.float64)
        w = w / torch.linalg.vector_norm(w)
        # Reflects the first unit vector into w, or into -w: the sign with which nothing cancels.
        sign = -1.0 if float(w[0]) >= 0 else 1.0
        v = w.clone()
        v[0] -= sign
        q = torch.eye(len(w), dtype=w.dtype) - 2.0 * torch.outer(v, v) / v.square().sum()
        q[0] = w  # this is sign * q[0]; a row's sign leaves it orthogonal
        return cls(q)

    def extra_repr(self) -> str:
        """What it was made of."""
        return f"{len(self.matrix)} channels"

    def _changed(self, fn: str, arg: str, x: Tensor, forward: bool) -> Tensor:
        check_data(fn, arg, x, min_dim=2)
        check_on(fn, arg, x, self.matrix)
        if x.shape[1] != len(self.matrix):
            expected = f"of {len(self.matrix)} channels, (batch, channels, ...)"
            fail(fn, arg, expected, f"shape {tuple(x.shape)}")
        wide = widened(x)
        q = self.matrix.to(wide.dtype)
        flat = wide.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        return ((q if forward else q.T) @ flat).reshape(x.shape).to(x.dtype)


class Orthogonal(_Basis):
    """An orthogonal change of basis of whole samples, by a matrix or by two functions.

    Either y = Q x of the flattened samples, in the shape of x; or y = forward(x), x = inverse(y),
    such as a wavelet or cosine transform with both of its ways. The functions are asked once, when
    this is made, with two random samples in float64 (float32 where they don't take that): that they
    are linear, keep lengths and undo each other.

    Args:
        transform: Q, an orthogonal matrix (elements, elements); or the function of (batch, *shape).
        inverse: with a function, its inverse, which is its adjoint.
        shape: with a function, the shape of a sample, with which it is asked.

    Attributes:
        matrix: the buffer, None of functions.
        gram, cogram: 1.

    Raises:
        ValueError: what is not orthogonal; no ``inverse`` or ``shape``, or one with a matrix.
        TypeError: an argument of the wrong type.

    Example:
        >>> turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
        >>> Orthogonal(turn).A(torch.tensor([[1.0, 2.0]]))
        tensor([[2.2000, 0.4000]])
        >>> mirror = Orthogonal(lambda x: x.flip(-1), lambda y: y.flip(-1), shape=(1, 4, 4))
    """

    matrix: Tensor | None

    def __init__(
        self,
        transform: Tensor | Callable[[Tensor], Tensor],
        inverse: Callable[[Tensor], Tensor] | None = None,
        *,
        shape: Sequence[int] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "Orthogonal"
        if isinstance(transform, Tensor):
            if inverse is not None or shape is not None:
                arg = "inverse" if inverse is not None else "shape"
                fail(fn, arg, "left out with a matrix", type(inverse or shape).__name__)
            self.register_buffer("matrix", orthogonal_matrix(fn, transform))
            self._forward = self._inverse = None
            return
        if not callable(transform):
            fail_type(fn, "transform", "an orthogonal matrix or a function", transform)
        check_callable(fn, "inverse", inverse)
        if shape is None:
            fail(fn, "shape", "the shape of a sample, to look whether it is orthogonal", None)
        self.register_buffer("matrix", None)
        self._forward, self._inverse = transform, inverse
        self._ask(check_size(fn, "shape", shape, None))

    def _changed(self, fn: str, arg: str, x: Tensor, forward: bool) -> Tensor:
        check_data(fn, arg, x)
        if self.matrix is None:
            function: Any = self._forward if forward else self._inverse
            return function(x)
        check_on(fn, arg, x, self.matrix)
        elements = math.prod(x.shape[1:])
        if elements != len(self.matrix):
            expected = f"of {len(self.matrix)} elements a sample"
            fail(fn, arg, expected, f"{elements}, shape {tuple(x.shape)}")
        wide = widened(x)
        q = self.matrix.to(wide.dtype)
        flat = wide.reshape(x.shape[0], elements)
        return (flat @ (q.T if forward else q)).reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def _ask(self, shape: tuple[int, ...]) -> None:
        """Whether the functions are linear, keep lengths and undo each other."""
        parts = [f for f in (self._forward, self._inverse) if isinstance(f, torch.nn.Module)]
        held = next((t for part in parts for t in [*part.parameters(), *part.buffers()]), None)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        x = x if held is None else x.to(held.device)
        try:
            self._compare(x)
        except RuntimeError:  # of one dtype alone
            self._compare(x.float())

    def _compare(self, x: Tensor) -> None:
        fn, tolerance = "Orthogonal", ORTHOGONAL * math.sqrt(max(x[0].numel(), 1))
        y = self.A(x)
        check_tensor(fn, "transform", y)
        back = self.A_adjoint(y)
        if back.shape != x.shape:
            expected = f"the inverse of transform, which gives shape {tuple(x.shape)} back"
            fail(fn, "inverse", expected, f"shape {tuple(back.shape)}")
        combined = self.A(x + 2.0 * x.flip(0)) - y - 2.0 * y.flip(0)
        if float(combined.abs().max()) > tolerance:
            fail(fn, "transform", "linear", "one of which A(u + 2v) is not A(u) + 2 A(v)")
        lengths = [float(torch.linalg.vector_norm(part)) for part in (x[0], y[0])]
        if abs(lengths[0] - lengths[1]) > tolerance:
            expected = "orthogonal: it keeps the length of what it changes"
            fail(fn, "transform", expected, f"{lengths[1]:.6g} for {lengths[0]:.6g}")
        if float((back - x).abs().max()) > tolerance:
            error = f"one off by {float((back - x).abs().max()):.3g}"
            fail(fn, "inverse", "the inverse of transform", error)
