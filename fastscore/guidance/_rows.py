"""Operators whose rows, where there are some, are orthogonal and of one length: most of them.

Of a mask, of pooling, of what is left of a unitary transform, A A^T = c P with P a projection,
on all that A can give. There A^T (r^2 A A^T + noise^2)^-1 is A^T/(r^2 c + noise^2), which costs
nothing, whatever the operator says of itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastscore._support.lending import lend
from fastscore._support.warn import warn_caller
from fastscore.guidance._denoised import inner, signs_like, squared, values_like

ROUNDINGS = 20.0  # of A^T A A^T y over c A^T y, in the mean over elements

MISMATCH = 1e-3  # of inner products; rounding is below 1e-5


class Rows(NamedTuple):
    """That A^T A A^T = c A^T."""

    scale: float  # c
    complete: bool  # whether A A^T = c, so that A can give every measurement
    rank: float  # how many rows there are: the measurement's numbers without those always 0


class Tried(NamedTuple):
    """What products with one measurement give: numbers, on the device."""

    scale: Tensor
    orthogonal: Tensor  # bool
    complete: Tensor  # bool
    rank: Tensor
    mismatch: Tensor  # of <A u, v> and <u, A_adjoint v>, u = A_adjoint v, relative


def rows_of(operator: Any, y: Tensor) -> Rows | None:
    """What an operator's rows are like. Waits for the device; warns of a wrong adjoint.

    Args:
        operator: with ``A`` and ``A_adjoint``.
        y: a measurement, (batch, ...), of any values.

    Returns:
        None where rows are of several lengths, or not orthogonal.
    """
    found = tried(operator, y)
    if float(found.mismatch) > MISMATCH:
        warn_caller(
            f"{type(operator).__name__}: A_adjoint is not the adjoint of A, <A u, v> and <u, "
            f"A_adjoint v> are {float(found.mismatch):.2g} of |A u| |v| apart (see "
            "fastscore.operators.check_adjoint): guidance is wrong by as much.",
            UserWarning,
        )
    if not bool(found.orthogonal):
        return None
    return Rows(float(found.scale), bool(found.complete), float(found.rank))


@torch.no_grad()
def tried(operator: Any, y: Tensor) -> Tried:
    """What rows are like, found by products with one measurement without a pattern.

    (Not of signs, which are an eigenvector of any two rows of one length.)
    """
    one = values_like(torch.view_as_real(y[:1]) if y.is_complex() else y[:1])
    there = torch.view_as_complex(one) if y.is_complex() else one
    back = operator.A_adjoint(lend(there)).clone()  # it may use its memory again
    again = operator.A(lend(back)).clone()
    third = operator.A_adjoint(lend(again))
    size = back.double().square().sum()
    scale = (third.double() * back.double()).sum() / torch.where(size > 0, size, 1.0)
    tolerance = (ROUNDINGS * torch.finfo(back.dtype).eps * scale).square()
    off = (third.double() - scale * back.double()).square().sum()
    rest = (again - scale.to(one.dtype) * there).abs().double().square().sum()
    complete = rest <= tolerance * one.numel()
    signs = signs_like(one)  # of which a mask's share is the number of its rows
    seen = operator.A_adjoint(torch.view_as_complex(signs) if y.is_complex() else signs)
    rank = seen.double().square().sum() / scale
    orthogonal = (size > 0) & (off <= tolerance * size)
    rank = torch.where(complete, one.numel(), rank)
    length = (again.abs().double().square().sum() * one.double().square().sum()).sqrt()
    apart = (inner(again, there, squared(again), squared(there)).sum() - size).abs()
    mismatch = apart / torch.where(length > 0, length, 1.0)
    return Tried(scale, orthogonal, complete, rank, mismatch)


def contents_of(operator: Any) -> list[Any]:
    """What an operator is and holds, to compare: numbers by value, tensors with their version."""
    parts = operator.modules() if isinstance(operator, nn.Module) else [operator]
    found: list[Any] = [_Same(operator)]
    for part in parts:
        own = getattr(part, "__dict__", {})
        for held in (own, own.get("_buffers", {}), own.get("_parameters", {})):
            for value in held.values():
                if isinstance(value, Tensor):
                    found.append((id(value), 0 if value.is_inference() else value._version))
                elif isinstance(value, (int, float, complex, str)):
                    found.append(value)
    return found


class _Same:
    """Equal where it holds the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
