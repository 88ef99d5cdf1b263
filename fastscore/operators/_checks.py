"""Whether an operator does what it says, and whether a measurement can be its."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastscore._support.checks import (
    check_device,
    check_int,
    check_number,
    check_sequence,
    check_tensor,
    describe,
    fail,
)
from fastscore.operators._base import as_operator
from fastscore.operators._common import check_data

# Of every operator, the shapes and kinds of measurements that it has been found to give.
_FOUND: WeakKeyDictionary[Any, dict[Any, tuple[tuple[int, ...], bool]]] = WeakKeyDictionary()


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    dtype = torch.complex128 if like.is_complex() else torch.float64
    return torch.randn(tuple(shape), generator=generator, dtype=dtype).to(like)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product of each sample, in float64."""
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return (a.to(wide) * b.to(wide).conj()).real.flatten(1).sum(1)


def _length(a: Tensor) -> Tensor:
    return _inner(a, a).sqrt()


def _zeros_for(fn: str, operator: Any, x: Any) -> Tensor:
    """x, or zeros of that shape where the operator is."""
    if isinstance(x, Tensor):
        check_data(fn, "x", x)
        return x
    check_sequence(fn, "x", x, "sizes, (batch, ...), if it is no tensor")
    shape = [check_int(fn, f"x[{i}]", size, minimum=1) for i, size in enumerate(x)]
    held = None
    if isinstance(operator, nn.Module):
        held = next((t for t in [*operator.parameters(), *operator.buffers()]), None)
    return torch.zeros(shape, device=None if held is None else held.device)


@torch.no_grad()
def check_adjoint(
    operator: Any, x: Tensor | Sequence[int], *, seed: int = 0, tol: float = 1e-5
) -> float:
    """Whether ``A_adjoint`` is the adjoint of ``A``, and ``A`` linear and of each sample alone.

    With random u like x and v like A(u), of every sample |<A u, v> - <u, A_adjoint v>| must be at
    most ``tol`` |A u| |v|; so must be, relative to what they are made of, A(0), A(2u) - 2 A(u),
    A(u + u') - A(u) - A(u'), and the difference of A of a sample alone from that among others.

    Args:
        operator: an object with ``A`` and ``A_adjoint``.
        x: samples, or their shape (batch, ...), then in float32 where the operator is.
        seed: of the random numbers.
        tol: the largest relative error; 1e-5 is for float32.

    Returns:
        The relative error of the inner products: the largest of the samples'.

    Raises:
        ValueError: a condition that does not hold; the message says the two inner products.
        TypeError: no operator.

    Example:
        >>> from fastscore.operators import Identity
        >>> check_adjoint(Identity(), (4, 3)) < 1e-6
        True
        >>> class Twice(Identity):
        ...     def A(self, x):
        ...         return 2 * x
        >>> check_adjoint(Twice(), (1, 3))
        Traceback (most recent call last):
        ValueError: check_adjoint: operator must be ... adjoint of its A, got <A u, v> = 3.88...
    """
    fn = "check_adjoint"
    as_operator(fn, operator)
    tol = check_number(fn, "tol", tol, positive=True)
    like = _zeros_for(fn, operator, x)
    if not like.shape[0]:
        fail(fn, "x", "of at least one sample", f"shape {tuple(like.shape)}")
    generator = torch.Generator().manual_seed(check_int(fn, "seed", seed, minimum=0))
    u, other = (_normal(like.shape, like, generator) for _ in range(2))
    au, a_other = _measured(fn, operator, u), _measured(fn, operator, other)
    v = _normal(au.shape, au, generator)
    back = operator.A_adjoint(v)
    _check_back(fn, back, u)
    left, right = _inner(au, v), _inner(u, back)
    scale = (_length(au) * _length(v)).clamp_min(torch.finfo(torch.float64).tiny)
    errors = (left - right).abs() / scale
    worst = int(errors.nan_to_num(nan=math.inf).argmax())
    error = float(errors[worst])
    if not error <= tol:
        products = f"<A u, v> = {float(left[worst]):.9g}, <u, A_adjoint v> = "
        products += f"{float(right[worst]):.9g} (sample {worst}, relative error {error:.3g})"
        fail(fn, "operator", "one whose A_adjoint is the adjoint of its A", products)
    size = float((_length(au) + _length(a_other)).max())
    linear = {
        "A(0) = 0": operator.A(torch.zeros_like(u)),
        "A(2 u) = 2 A(u)": operator.A(2 * u) - 2 * au,
        "A(u + v) = A(u) + A(v)": operator.A(u + other) - au - a_other,
        "A of a sample alone = A of it among others": operator.A(u[-1:]) - au[-1:],
    }
    for law, difference in linear.items():
        off = float(_length(difference).max())
        if not off <= 10 * tol * size:
            fail(
                fn, "operator", f"linear, {law}", f"a difference of {off:.3g} at |A(u)| {size:.3g}"
            )
    return error


def _measured(fn: str, operator: Any, x: Tensor) -> Tensor:
    """A(x), a batch."""
    y = operator.A(x)
    if not isinstance(y, Tensor) or not y.dim() or y.shape[0] != x.shape[0]:
        got = describe(y) if isinstance(y, Tensor) else type(y).__name__
        expected = f"one whose A(x) is a tensor of a batch of {x.shape[0]}, as x is"
        fail(fn, "operator", expected, got)
    return y


def _check_back(fn: str, back: Any, u: Tensor) -> None:
    if not isinstance(back, Tensor) or back.shape != u.shape:
        got = describe(back) if isinstance(back, Tensor) else type(back).__name__
        expected = f"one whose A_adjoint(A(x)) has x's shape {tuple(u.shape)}"
        fail(fn, "operator", expected, got)


def measurement_shape(fn: str, operator: Any, x: Tensor) -> tuple[tuple[int, ...], bool]:
    """The shape of a sample's measurement, and whether it is complex: asked once, remembered."""
    key = (tuple(x.shape[1:]), x.dtype)
    try:
        found = None if torch.compiler.is_compiling() else _FOUND.setdefault(operator, {})
    except TypeError:  # it can't be held weakly, or has no hash
        found = None
    if found is not None and key in found:
        return found[key]
    with torch.no_grad():
        y = _measured(fn, operator, torch.zeros((1, *key[0]), dtype=x.dtype, device=x.device))
    answer = tuple(y.shape[1:]), y.is_complex()
    if found is not None:
        found[key] = answer
    return answer


def check_measurement(
    fn: str, operator: Any, x: Tensor, y: Any, *, arg: str = "measurement"
) -> Any:
    """A measurement of the shape that the operator gives of samples like x.

    The operator is asked once for each shape of samples, with one sample of zeros.

    Args:
        fn: the function on whose behalf this is asked, for messages.
        operator: an object with ``A`` and ``A_adjoint``.
        x: samples, (batch, ...).
        y: their measurements, (batch, ...); or one for all, with a batch of 1 or without a batch.
        arg: what the measurement is called there.

    Returns:
        The measurement with a batch: of x's size, or of 1.

    Raises:
        ValueError: another shape than A can give, or another batch; complex where A gives real
            numbers, or real where it gives complex ones; another device.
        TypeError: no tensor, no operator.

    Example:
        >>> from fastscore.operators import AveragePool
        >>> x = torch.zeros(4, 1, 8, 8)
        >>> check_measurement("f", AveragePool(2), x, torch.zeros(1, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
        >>> check_measurement("f", AveragePool(2), x, torch.zeros(4, 1, 8, 8))
        Traceback (most recent call last):
        ValueError: f: measurement must be of shape (4, 1, 4, 4) or (1, 4, 4), as AveragePool.A ...
    """
    as_operator(fn, operator)
    check_tensor(fn, arg, y)
    shape, is_complex = measurement_shape(fn, operator, x)
    if tuple(y.shape) == shape:
        y = y[None]
    if tuple(y.shape[1:]) != shape or not y.dim() or y.shape[0] not in (1, x.shape[0]):
        whose = f"as {type(operator).__name__}.A gives of x of shape {tuple(x.shape)}"
        expected = f"of shape {(x.shape[0], *shape)} or {shape}, {whose}"
        fail(fn, arg, expected, f"shape {tuple(y.shape)}")
    if y.is_complex() != is_complex or not (y.is_floating_point() or y.is_complex()):
        kind = "complex" if is_complex else "real, of a floating-point dtype"
        fail(fn, arg, f"{kind}, as {type(operator).__name__}.A gives", describe(y))
    check_device(fn, arg, y, x.device, "as x is")
    return y
