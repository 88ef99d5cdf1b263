"""Conjugate gradients for a batch of linear systems, each sample with its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore.guidance._denoised import combined, inner, quotient, squared

# How far one step may move the residual, of what was off at first. Exact scores of Gaussians fitted
# to photographs moved it by less than 4, networks that sent samples astray by thousands.
LIMIT = 10.0
AT_ONCE = 4  # of the vectors that add up, so many are kept for one pass


class Product(NamedTuple):
    """What a matrix K = N + B C makes of vectors p of the samples."""

    value: Tensor  # K p, like p, in memory that is written to again
    carried: Tensor  # C p, of another shape: of which the same sum is wanted as of p
    floor: Tensor | float  # p'K p up to this, (batch,), is rounding


class Solved(NamedTuple):
    """Where the iterations have come to."""

    carried: Tensor  # C v of the solution v
    residual: Tensor  # |b - K v| / |b| of each sample, (batch,) float64


def conjugate_gradients(
    multiply: Callable[[Tensor, Tensor], Product],
    b: Tensor,
    *,
    iterations: int,
    precondition: Callable[[Tensor], Tensor] | None = None,
    want_residual: bool = False,
) -> Solved:
    """C v of the solution v of K v = b, K symmetric and not negative (Hestenes & Stiefel 1952).

    The vectors that C makes of the search directions add up to C v with the same weights as these
    to v, so that neither v nor another product is needed. The number of iterations is fixed, and
    no value is read by the host. A sample stops where it has arrived at rounding, and where a
    direction has no curvature (in the null space of K, or of a K that is not positive, as that of
    a network's Jacobian may be) or so little that the step would move the residual by ``LIMIT``
    times what was off at first: what it has found until then is kept. Its result depends on that
    sample alone.

    Args:
        multiply: of directions p like b, and their |p|^2.
        b: right-hand sides, (batch, ...), real or complex.
        iterations: at least 1, each of them one product.
        precondition: an approximate inverse of K, symmetric and not negative.
        want_residual: 0 in its place otherwise, for it costs a pass.

    Returns:
        C v, and the residual.
    """
    residual = b
    direction = b if precondition is None else precondition(b)
    size = squared(b)
    square = first = size if precondition is None else inner(b, direction, size, squared(direction))
    going = square > 0
    most = LIMIT**2 * size
    tolerance = torch.finfo(b.dtype).eps ** 2
    parts: list[Tensor] = []  # of what is carried, added in one pass
    steps: list[Tensor | float] = []
    for i in range(iterations):
        length = size if direction is b else squared(direction)
        product = multiply(direction, length)
        change = squared(product.value)
        curvature = inner(direction, product.value, length, change)
        going = going & (curvature > product.floor)
        step = quotient(square, curvature, going)
        # A K that is not quite symmetric has directions whose curvature is 0 but by chance.
        going = going & (step.square() * change <= most)
        parts.append(product.carried)
        step = step.where(going, 0.0)
        if i == 0:
            both = square + curvature
            step = torch.where(both == both, step, both)  # NaN leads to NaN, and not to 0
        steps.append(step)
        if len(parts) == AT_ONCE or i + 1 == iterations:
            parts, steps = [combined(parts[0], parts[1:], steps)], [1.0]
        if i + 1 == iterations and not want_residual:
            break
        last = residual
        residual = combined(last, [product.value], (1.0, -step), out=product.value)
        if i + 1 == iterations:
            break
        if precondition is None:
            turned, new = residual, squared(residual)
        else:
            turned = precondition(residual)
            new = inner(residual, turned, squared(residual), squared(turned))
        previous, square = square, new
        going = going & (square > tolerance * first)
        ratio = quotient(square, previous, going)
        # Not into the old one, which may be what is carried; the first residual is b.
        direction = combined(turned, [direction], (1.0, ratio), out=last if i else None)
    if not want_residual:
        return Solved(parts[0], first * 0)
    return Solved(parts[0], quotient(squared(residual), size, size > 0).sqrt())
