"""Holding a linear measurement: the state is moved towards A x = y before each call of the model.

    x <- x + lambda A_dagger(y_t - A x),    y_t = alpha y + sigma A z

is the projection of Song et al. 2022, of which inpainting by replacement is the case that A chooses
elements and lambda is 1. In the chain's own variable w it is

    w <- w + lambda A_dagger(m y + A(k z - w)),

with the factors m and k that known elements have at the level that the model is about to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.checks import check_device, check_number, check_tensor, describe, fail
from fastscore.ops import rk_stage
from fastscore.random import Stream


@dataclass(frozen=True)
class Projection:
    """What a projection was asked for."""

    operator: Any
    measurement: Tensor
    strength: float  # lambda

    @classmethod
    def asked(cls, fn: str, options: Any, strength: Any) -> Projection | None:
        """Of the options ``operator`` and ``measurement``; None where there are none."""
        operator, measurement = options["operator"], options["measurement"]
        strength = check_number(fn, "projection", strength, positive=True)
        if strength > 1:
            fail(fn, "projection", "above 0 and at most 1", strength)
        if operator is None and measurement is None:
            if strength != 1:
                fail(fn, "projection", "1 without an operator", strength)
            return None
        if operator is None or measurement is None:
            pair = ("operator", "measurement")
            missing, other = pair if operator is None else pair[::-1]
            fail(fn, missing, f"given together with {other}", None)
        for name in ("A", "A_dagger"):
            if not callable(getattr(operator, name, None)):
                expected = "an object with A and A_dagger, its pseudo-inverse"
                what = type(operator).__name__
                raise TypeError(f"{fn}: operator must be {expected}, got {what} without {name}")
        for name in ("known", "mask"):
            if options[name] is not None:
                expected = "None with an operator, which can choose elements itself"
                fail(fn, name, expected, "a value")
        check_tensor(fn, "measurement", measurement)
        return cls(operator, measurement.detach(), strength)

    def checked(self, fn: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        """That A gives what was measured, of states like these, and A_dagger leads back."""
        operator, y, arg = self.operator, self.measurement, "measurement"
        with torch.no_grad():
            nothing = operator.A(torch.zeros(shape, dtype=dtype, device=device))
        check_tensor(fn, "what the operator's A returns", nothing)
        if nothing.shape[:1] != shape[:1]:
            expected = f"one whose A keeps the batch of {shape[0]}"
            fail(fn, "operator", expected, f"A(x) of shape {tuple(nothing.shape)}")
        check_device(fn, arg, y, device, "where the state is")
        one = torch.Size((1, *nothing.shape[1:]))
        if y.shape not in (nothing.shape, one):
            expected = (
                f"of shape {tuple(nothing.shape)}, what A gives of {tuple(shape)}, or {tuple(one)}"
            )
            fail(fn, arg, expected, describe(y))
        if y.is_complex() and not nothing.is_complex():
            fail(fn, arg, f"of {nothing.dtype}, what A gives", describe(y))
        if not bool(torch.isfinite(y).all()):
            fail(fn, arg, "finite everywhere", "NaN or infinity")
        if bool((nothing != 0).any()):
            fail(fn, "operator", "linear", "one whose A of 0 is not 0")
        with torch.no_grad():
            back = operator.A_dagger(nothing)
        check_tensor(fn, "what the operator's A_dagger returns", back)
        if back.shape != shape or back.is_complex():
            expected = f"one whose A_dagger leads back to real states of shape {tuple(shape)}"
            fail(fn, "operator", expected, describe(back))

    def along(self, held: Tensor, device: torch.device) -> Measured:
        """For a run whose known elements would be m known + k z: rows (m, k), before each row."""
        m, k = held.unbind(-1)
        table = torch.stack([-torch.ones_like(k), k, m], dim=-1)
        pull = torch.tensor([1.0, self.strength], dtype=torch.float64)
        return Measured(self.operator, self.measurement, table.to(device), pull.to(device))


@dataclass(frozen=True)
class Measured:
    """A projection ready to be applied, on the device of the run."""

    operator: Any
    y: Tensor  # (B or 1, ...)
    table: Tensor  # (rows + 1, 3) float64: -1, k and m before each row, and at the end
    pull: Tensor  # (2,) float64: 1 and lambda

    def project(self, w: Tensor, key: Tensor, sample_offset: int, samples: Tensor | None) -> None:
        """Move w, in place, towards the measurement at the level of the row that ``key`` counts.

        The noise has a stream of its own: with lambda below 1, or an A_dagger that is no exact
        pseudo-inverse, the step's noise would not be undone first.
        """
        z = random.normal(
            key,
            w.shape,
            dtype=w.dtype,
            stream=Stream.MEASURE,
            sample_offset=sample_offset,
            samples=samples,
        )
        row = self.table.index_select(0, key[..., 1].reshape(-1)[:1])[0]
        with torch.autocast(w.device.type, enabled=False):
            seen = self.operator.A(rk_stage(w, [z], row[:2]))  # A(k z - w)
            y, m = self.y.to(seen.dtype), row[2].to(seen.dtype)
            back = self.operator.A_dagger(torch.addcmul(seen, y, m))
        rk_stage(w, [back.to(w.dtype)], self.pull, out=w)
