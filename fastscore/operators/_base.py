"""What every linear operator has, the identity, and one operator after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from fastscore._support.checks import fail_type
from fastscore.operators._common import check_data, divided, levels


class Operator(Protocol):
    """Any object with a linear map and its adjoint."""

    def A(self, x: Tensor, /) -> Tensor: ...
    def A_adjoint(self, y: Tensor, /) -> Tensor: ...


class LinearOperator(nn.Module):
    """A linear map y = A x of every sample by itself: a subclass writes ``A`` and ``A_adjoint``.

    A module, so that ``.to(device)`` moves what it holds. What it holds keeps its precision, also
    under ``.half()``: results have the dtype of x, which decides in what precision is computed
    (that of float32 where x has less). A result may share memory with what it was made of.

    Where they are known exactly, an operator has two methods more (else ``hasattr`` is False):
    ``A_dagger(y)``, the pseudo-inverse of Moore and Penrose, and ``solve(y, r2, noise2)``, which is
    (r2 A A^T + noise2 I)^-1 y with numbers or (batch,) tensors of at least 0, and at noise2 = 0 the
    pseudo-inverse of r2 A A^T. Tensors' values are not looked at: none of an operator's methods
    waits for a device.

    Attributes:
        gram: c where A A^T = c I (the rows are orthogonal and of one length), else None.
        cogram: c where A^T A = c I, else None. Both are numbers for a change of basis.

    Example:
        >>> class Sum(LinearOperator):  # of a sample's elements
        ...     def A(self, x):
        ...         return x.sum(1, keepdim=True)
        ...     def A_adjoint(self, y):
        ...         return y.expand(-1, 3)
        >>> from fastscore.operators import check_adjoint
        >>> check_adjoint(Sum(), (8, 3)) < 1e-6
        True
        >>> Sum()(torch.ones(1, 3)), hasattr(Sum(), "solve")
        (tensor([[3.]]), False)
    """

    gram: float | None = None
    cogram: float | None = None

    def A(self, x: Tensor) -> Tensor:
        """The measurements of x, (batch, ...), without noise."""
        raise NotImplementedError(f"{type(self).__name__} has no A")

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The adjoint: <A x, y> = <x, A_adjoint y>, of complex numbers the real part of both."""
        raise NotImplementedError(f"{type(self).__name__} has no A_adjoint")

    def forward(self, x: Tensor) -> Tensor:
        """``A``."""
        return self.A(x)

    def __init__(self) -> None:
        """One without numbers of its own."""
        super().__init__()

    def extra_repr(self) -> str:
        """What it was made with, for ``repr``: the shapes of its numbers."""
        numbers = ((name, value) for name, value in self.named_buffers(recurse=False))
        return ", ".join(f"{name} {tuple(value.shape)}" for name, value in numbers)

    def __matmul__(self, other: Any) -> Compose:
        return Compose(self, other)

    def __rmatmul__(self, other: Any) -> Compose:
        return Compose(other, self)

    def __getattr__(self, name: str) -> Any:
        if name in ("A_dagger", "solve"):
            what = "pseudo-inverse" if name == "A_dagger" else "closed form of (r2 A A^T + noise2)"
            raise AttributeError(f"{type(self).__name__} has no {name}: no {what} is known")
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moved to another device, but not rounded to another dtype."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self


class Identity(LinearOperator):
    """y = x: noisy data (denoising).

    Attributes:
        gram, cogram: 1.

    Example:
        >>> y = torch.tensor([[1.0, 2.0]])
        >>> Identity().A(y), Identity().solve(y, 1.0, 3.0)
        (tensor([[1., 2.]]), tensor([[0.2500, 0.5000]]))
    """

    gram = 1.0
    cogram = 1.0

    def A(self, x: Tensor) -> Tensor:
        """x itself."""
        return check_data("Identity.A", "x", x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """y itself."""
        return check_data("Identity.A_adjoint", "y", y)

    def A_dagger(self, y: Tensor) -> Tensor:
        """y itself."""
        return check_data("Identity.A_dagger", "y", y)

    def solve(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        """y/(r2 + noise2)."""
        return divided("Identity.solve", y, r2, noise2, 1.0)


class Compose(LinearOperator):
    """One operator after another: ``Compose(outer, inner)``, written ``outer @ inner``.

    A x = outer(inner(x)), and the adjoint is that of the inner after that of the outer. With
    A = O I there are, if the parts' are there,

    - where I I^T = c I (``inner.gram``): A_dagger = I_dagger O_dagger, and ``solve`` is that of O
      with c r2, for A A^T = c O O^T;
    - where O^T O = c I (``outer.cogram``): A_dagger = I_dagger O^T/c; and where O O^T = c I too,
      ``solve`` is O (c r2 I I^T + noise2)^-1 O^T y/c.

    Otherwise the pseudo-inverse of a product is not the product of pseudo-inverses, and neither
    method is there.

    Args:
        outer, inner: objects with ``A`` and ``A_adjoint``.

    Attributes:
        gram: the product of the parts', where both are known; ``cogram`` so too.

    Raises:
        TypeError: a part that is no operator.

    Example:
        Colour from grey: the first coordinate in a basis of colours is known.

        >>> from fastscore.operators import ChannelBasis, Mask
        >>> known = torch.tensor([True, False, False]).reshape(3, 1, 1)
        >>> grey = Mask(known) @ ChannelBasis.from_grey()
        >>> grey.A(torch.ones(1, 3, 1, 1)).flatten()
        tensor([1.7321, 0.0000, 0.0000])
        >>> grey.A_dagger(grey.A(torch.ones(1, 3, 1, 1))).flatten()
        tensor([1.0000, 1.0000, 1.0000])
    """

    def __init__(self, outer: Any, inner: Any) -> None:
        """See the class."""
        super().__init__()
        self.outer = as_operator("Compose", outer, arg="outer")
        self.inner = as_operator("Compose", inner, arg="inner")
        self.gram = _product(said(outer, "gram"), said(inner, "gram"))
        self.cogram = _product(said(outer, "cogram"), said(inner, "cogram"))

    def A(self, x: Tensor) -> Tensor:
        """Those of the outer, of those of the inner."""
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The inner's adjoint of the outer's."""
        return self.inner.A_adjoint(self.outer.A_adjoint(y))

    @property
    def A_dagger(self) -> Callable[[Tensor], Tensor]:
        """The pseudo-inverse, where one part makes it exact: see the class."""
        inverse = hasattr(self.inner, "A_dagger")
        if inverse and said(self.outer, "cogram"):
            return self._dagger_of_isometry
        if inverse and said(self.inner, "gram") and hasattr(self.outer, "A_dagger"):
            return self._dagger
        raise AttributeError("A_dagger")

    @property
    def solve(self) -> Callable[[Tensor, Tensor | float, Tensor | float], Tensor]:
        """(r2 A A^T + noise2 I)^-1 y, where one part makes it exact: see the class."""
        if said(self.inner, "gram") and hasattr(self.outer, "solve"):
            return self._solve_outer
        outer = said(self.outer, "cogram") and said(self.outer, "gram")
        if outer and hasattr(self.inner, "solve"):
            return self._solve_inner
        raise AttributeError("solve")

    def _dagger(self, y: Tensor) -> Tensor:
        return self.inner.A_dagger(self.outer.A_dagger(y))

    def _dagger_of_isometry(self, y: Tensor) -> Tensor:
        return self.inner.A_dagger(self.outer.A_adjoint(y) / said(self.outer, "cogram"))

    def _solve_outer(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        levels("Compose.solve", check_data("Compose.solve", "y", y), r2, noise2)
        return self.outer.solve(y, r2 * said(self.inner, "gram"), noise2)

    def _solve_inner(self, y: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
        levels("Compose.solve", check_data("Compose.solve", "y", y), r2, noise2)
        scale = said(self.outer, "gram")
        inner = self.inner.solve(self.outer.A_adjoint(y), r2 * scale, noise2)
        return self.outer.A(inner) / scale


def said(operator: Any, name: str) -> Any:
    """An operator's ``gram`` or ``cogram``; None of one that has none, or no number of the name."""
    value = getattr(operator, name, None)
    return value if isinstance(value, float) else None


def _product(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first * second


def as_operator(fn: str, operator: Any, *, arg: str = "operator") -> Any:
    """The operator itself, if it is one: an object with ``A(x)`` and ``A_adjoint(y)``.

    Args:
        fn: the function on whose behalf this is asked, for messages.
        operator: what came: of this package, of deepinv, or anybody's.
        arg: what it is called there.

    Raises:
        TypeError: no ``A`` or no ``A_adjoint``; the message says which.

    Example:
        >>> as_operator("my_function", Identity())
        Identity()
        >>> as_operator("my_function", torch.nn.Linear(2, 1))
        Traceback (most recent call last):
        TypeError: my_function: operator must be an object with A(x) and A_adjoint(y), got Linear...
    """
    needed = ("A", "A_adjoint")
    missing = [name for name in needed if not callable(getattr(operator, name, None))]
    if missing or isinstance(operator, type):
        _no_operator(fn, arg, operator, missing)
    return operator


def _no_operator(fn: str, arg: str, operator: Any, missing: list[str]) -> NoReturn:
    expected = "an object with A(x) and A_adjoint(y)"
    if isinstance(operator, type):
        raise TypeError(f"{fn}: {arg} must be {expected}, got the class {operator.__name__}")
    if isinstance(operator, Tensor) and operator.dtype == torch.bool:
        fail_type(fn, arg, f"{expected} (fastscore.operators.Mask makes one of a mask)", operator)
    got = f"{type(operator).__name__} without {' and '.join(missing)}"
    raise TypeError(f"{fn}: {arg} must be {expected}, got {got}")
