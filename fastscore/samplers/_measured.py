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

    def along(
        self, fn: str, held: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Measured:
        """For a run whose known elements would be m known + k z: rows (m, k), before each row."""
        m, k = held.unbind(-1)
        table = torch.stack([-torch.ones_like(k), k, m], dim=-1)
        pull = torch.tensor([1.0, self.strength], dtype=torch.float64)
        y = self.checked(fn, torch.zeros(shape, dtype=dtype, device=device))
        return Measured(self.operator, y, table.to(device), pull.to(device))

    @torch.no_grad()
    def checked(self, fn: str, nothing: Tensor) -> Tensor:
        """The measurement, one that A gives of states like these zeros, to which A_dagger leads."""
        operator, y, arg = self.operator, self.measurement, "measurement"
        seen = operator.A(nothing.clone())
        check_tensor(fn, "what the operator's A returns", seen)
        if seen.shape[:1] != nothing.shape[:1]:
            expected = f"one whose A keeps the batch of {len(nothing)}"
            fail(fn, "operator", expected, f"A(x) of shape {tuple(seen.shape)}")
        check_device(fn, arg, y, nothing.device, "where the state is")
        one = seen.shape[1:]
        if y.shape not in (seen.shape, one, torch.Size((1, *one))):
            expected = f"of shape {tuple(seen.shape)} or {tuple(one)}, as {type(operator).__name__}"
            fail(fn, arg, f"{expected}.A gives of x of shape {tuple(nothing.shape)}", describe(y))
        if y.is_complex() != seen.is_complex():
            kind = "complex" if seen.is_complex() else "real"
            fail(fn, arg, f"{kind}, as {type(operator).__name__}.A gives", describe(y))
        if not bool(torch.isfinite(y).all()):
            fail(fn, arg, "finite everywhere", "NaN or infinity")
        if bool((seen != 0).any()):
            fail(fn, "operator", "linear", "one whose A of 0 is not 0")
        back = operator.A_dagger(torch.zeros_like(seen))
        check_tensor(fn, "what the operator's A_dagger returns", back)
        if back.shape != nothing.shape or back.is_complex():
            expected = f"one whose A_dagger leads back to real states of {tuple(nothing.shape)}"
            fail(fn, "operator", expected, describe(back))
        return y.unsqueeze(0) if y.shape == one else y


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
