"""Checks and arithmetic shared by the operators."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastscore._support.checks import (
    check_device,
    check_int,
    check_number,
    check_tensor,
    describe,
    fail,
    fail_type,
)

HALVES = (torch.float16, torch.bfloat16)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by an element's size


def check_data(fn: str, arg: str, x: Any, *, min_dim: int = 1, real: bool = False) -> Tensor:
    """Samples, (batch, ...): floating-point numbers, or complex ones where they are allowed."""
    way = "torch.as_tensor(array, dtype=torch.float32)"
    check_tensor(fn, arg, x, min_dim=min_dim, as_tensor=way)
    if not x.is_floating_point() and (real or not x.is_complex()):
        what = "a floating-point tensor" if real else "a floating-point or complex tensor"
        fail(fn, arg, what, describe(x))
    return x


def check_mask(fn: str, mask: Any) -> Tensor:
    """A mask with a known element. Its values are looked at: when it is made, not when used."""
    check_tensor(fn, "mask", mask)
    if mask.dtype != torch.bool:
        way = " (mask > 0.5 makes one of numbers 0 and 1)"
        fail(fn, "mask", "a bool tensor, True where measured" + way, describe(mask))
    if not bool(mask.any()):
        fail(fn, "mask", "True somewhere: something must be measured", "one that is all False")
    return mask.detach().clone()


def check_mask_fits(
    fn: str, arg: str, mask: Tensor, x: Tensor, shape: Sequence[int], what: str = "data"
) -> None:
    """That a mask broadcasts to samples of (batch, *data), and is the same for all of them."""
    at = tuple(mask.shape)
    if len(at) == len(shape) and at[0] == 1:
        at = at[1:]
    data = tuple(shape[1:])
    fits = len(at) <= len(data)
    fits = fits and all(m in (1, d) for m, d in zip(at[::-1], data[::-1], strict=False))
    if not fits:
        expected = f"(batch, *{what}) to whose {what} the mask of shape {tuple(mask.shape)}"
        fail(fn, arg, f"of a shape {expected} broadcasts", f"shape {tuple(shape)}")
    check_device(fn, arg, x, mask.device, "where this operator is: operator.to(device) moves it")


def check_on(fn: str, arg: str, x: Tensor, buffer: Tensor) -> None:
    """Samples are where the operator is."""
    check_device(fn, arg, x, buffer.device, "where this operator is: operator.to(device) moves it")


def check_factors(fn: str, arg: str, value: Any) -> tuple[int, ...]:
    """Whole factors of the last dimensions: one for the last two, or one each."""
    if isinstance(value, (str, Tensor)) or not isinstance(value, Sequence):
        if isinstance(value, Tensor) or not hasattr(value, "__index__"):
            fail_type(fn, arg, "an integer or a tuple of integers", value)
        return (check_int(fn, arg, value, minimum=1),) * 2
    if not value:
        fail(fn, arg, "an integer or a tuple of integers", "an empty one")
    return tuple(check_int(fn, f"{arg}[{i}]", f, minimum=1) for i, f in enumerate(value))


def check_divides(fn: str, x: Tensor, factors: tuple[int, ...]) -> None:
    """That the last dimensions are multiples of their factors."""
    sizes = tuple(x.shape[x.dim() - len(factors) :])
    if any(size % factor for size, factor in zip(sizes, factors, strict=True)):
        expected = f"of last dimensions that are multiples of {factors}"
        fail(fn, "x", expected, f"shape {tuple(x.shape)}")


def widened(x: Tensor) -> Tensor:
    """x in a dtype in which to compute: float32 of a half-precision one."""
    return x.float() if x.dtype in HALVES else x


def _level(fn: str, arg: str, value: Any, y: Tensor) -> Tensor | float:
    """A number of at least 0, or one of each sample, to multiply with y (its values unseen)."""
    if not isinstance(value, Tensor):
        return check_number(fn, arg, value, minimum=0.0)
    if not value.is_floating_point() or value.shape not in ((), y.shape[:1]):
        expected = f"a number or a floating-point tensor of shape () or ({y.shape[0]},)"
        fail(fn, arg, expected, describe(value))
    if value.dim():
        check_device(fn, arg, value, y.device, "as y is")
        value = value.reshape(-1, *(1,) * (y.dim() - 1))
    return value.to(y.real.dtype if y.is_complex() else y.dtype)


def levels(fn: str, y: Tensor, r2: Any, noise2: Any) -> tuple[Tensor | float, Tensor | float]:
    """r2 and noise2 of ``solve``, checked; to multiply with a y in which one can compute."""
    return _level(fn, "r2", r2, y), _level(fn, "noise2", noise2, y)


def inverse_of(denominator: Tensor | float) -> Tensor | float:
    """1/denominator, and 0 where that is 0."""
    if not isinstance(denominator, Tensor):
        return 1.0 / denominator if denominator else 0.0
    there = denominator > 0
    return torch.where(there, 1.0 / torch.where(there, denominator, 1.0), 0.0)


def kept(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, and 0 elsewhere, whatever x is there.

    By its bits where nothing is recorded: on a CPU a fifth of the time of ``torch.where``.
    """
    bits = BITS.get(x.element_size())
    if bits is None or not x.is_floating_point() or _is_followed(x) or x.is_neg():
        return torch.where(mask, x, 0.0)
    return (x.view(bits) & mask.to(bits).neg()).view(x.dtype)


def _is_followed(x: Tensor) -> bool:
    """Whether more than its numbers counts: gradients, tangents, transforms, subclasses."""
    if type(x) is not Tensor or torch.compiler.is_compiling():
        return True
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and x.requires_grad


def over(y: Tensor, denominator: Tensor | float) -> Tensor:
    """y/denominator, and 0 where that is 0: the pseudo-inverse of a diagonal matrix."""
    inverse = inverse_of(denominator)
    if not isinstance(inverse, Tensor):
        return y * inverse if inverse else torch.zeros_like(y)
    return torch.where(inverse > 0, times(y, inverse), 0.0)


def times(y: Tensor, factor: Tensor) -> Tensor:
    """y * factor of a real factor; of complex y each part, which is less work."""
    if not y.is_complex():
        return y * factor
    return torch.view_as_complex(torch.view_as_real(y.resolve_conj()) * factor.unsqueeze(-1))


def masked_over(y: Tensor, mask: Tensor, r2: Tensor | float, noise2: Tensor | float) -> Tensor:
    """y/(r2 + noise2) where measured, y/noise2 elsewhere; a quotient by 0 is 0."""
    seen = r2 + noise2
    if isinstance(seen, Tensor):
        return over(y, torch.where(mask, seen, noise2))
    return torch.where(mask, over(y, seen), over(y, noise2))


def divided(fn: str, y: Any, r2: Any, noise2: Any, eigenvalue: float) -> Tensor:
    """(r2 eigenvalue + noise2)^-1 y where A A^T is one number."""
    check_data(fn, "y", y)
    wide = widened(y)
    r2, noise2 = levels(fn, wide, r2, noise2)
    return over(wide, r2 * eigenvalue + noise2).to(y.dtype)


def check_size(fn: str, arg: str, value: Any, count: int | None) -> tuple[int, ...]:
    """Sizes of dimensions; an integer is that of each of ``count``."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        sizes = tuple(check_int(fn, f"{arg}[{i}]", s, minimum=1) for i, s in enumerate(value))
    else:
        sizes = (check_int(fn, arg, value, minimum=1),) * (count or 1)
    if count is not None and len(sizes) != count:
        fail(fn, arg, f"of {count} number(s)", tuple(map(operator.index, sizes)))
    return sizes
