"""What the posterior scores of linear measurements share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_number, check_tensor, fail
from fastscore._support.inference import is_captured
from fastscore._support.lending import lend
from fastscore._support.reach import tensors_of
from fastscore._support.terms import Terms
from fastscore.derivatives.call import Call
from fastscore.guidance._denoised import Denoised, denoised, in_transform, is_recorded
from fastscore.guidance._guided import Guided
from fastscore.guidance._looks import Looks
from fastscore.guidance._rows import Rows, contents_of, rows_of
from fastscore.operators import Mask, as_operator, check_measurement
from fastscore.scores.adapters import Wrapper


class Posterior(Guided):
    """The score given y = A x + n, made of a score S: S + g, in two terms.

    Attributes:
        operator: with ``A`` and ``A_adjoint``.
        measurement: (1, ...), or None where each sample has its own.
    """

    differentiates_energy = True  # to its own derivative the score's second one belongs
    takes_one_product = True  # of the score's Jacobian
    measurement: Tensor | None

    def __init__(self, score: Callable[..., Any], operator: Any, measurement: Any = None) -> None:
        """See the class."""
        super().__init__(score)
        name = type(self).__name__
        self.operator = as_operator(name, operator)
        if measurement is not None:
            check_tensor(name, "measurement", measurement)
        self.register_buffer("measurement", measurement, persistent=False)
        self._looks = Looks()
        self._rows: dict[Any, Rows | None] = {}
        self._contents: Any = None

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        *,
        measurement: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Terms:
        """The posterior score at x, (batch, ...), of noise level sigma, a number or (batch,).

        Args:
            x: points, float32 or float64.
            sigma: their noise levels, above 0. (At 0, without noise in y, guidance is infinite:
                NaN.)
            measurement: y of each sample, (batch, ...), where the constructor has none; of one
                for all, (1, ...). Where A's rows are orthogonal and of one length, as those of a
                mask, what it never gives is left out, be it NaN; elsewhere, as of a mask after a
                blur, let it be 0: NaN leads to NaN.
            model_kwargs: what else the score is given, by name.

        Returns:
            ``Terms`` of the score and the guidance, which the samplers take as they are;
            ``.total()`` adds them.

        Raises:
            ValueError: a measurement that the operator can't give, or none, or two; x in half
                precision; a score whose derivative is missing or would be wrong, looked at once.

        Warns:
            UserWarning: an ``A_adjoint`` that is not the adjoint of ``A``, looked at once.
        """
        level = self._checked_levels(x, sigma)
        y = self._measurement_of(x, measurement)
        with torch.set_grad_enabled(self._is_recorded(model_kwargs, x, level, y)):
            at = self._denoised(x, level, model_kwargs)
            with full_precision(x):
                guidance = self._guidance(at, y, self._rows_of(x, y))
        return Terms([(at.score, 1.0), (guidance, 1.0)])

    def _is_recorded(self, model_kwargs: dict[str, Any], *tensors: Tensor) -> bool:
        """Whether a gradient can be asked for of what is returned; else no graph is kept."""
        if not torch.is_grad_enabled() or is_recorded(*tensors) or in_transform():
            return torch.is_grad_enabled()
        held: list[Any] = [model_kwargs, self.operator, self]
        while isinstance(held[-1], Wrapper):  # around what may be no module
            held.append(held[-1].inner)
        return any(tensor.requires_grad for tensor in tensors_of(held))

    def _off(self, at: Denoised, y: Tensor) -> tuple[Tensor, Tensor]:
        """y - A D, and A' of it."""
        if isinstance(self.operator, Mask):  # A' of it is itself
            off = self.operator.A(at.misfit(y))
            return off, off
        off = y - self._applied(at.mean)
        return off, self._adjoint(off)

    # An operator may write to what it is given, or return it.

    def _applied(self, x: Tensor) -> Tensor:
        """A x."""
        found: Tensor = self.operator.A(lend(x))
        return found

    def _adjoint(self, y: Tensor) -> Tensor:
        """A' y."""
        found: Tensor = self.operator.A_adjoint(lend(y))
        return found

    def _solve(self, y: Tensor, r2: Tensor | float, noise2: float) -> Tensor:
        """(r2 A A' + noise2)^-1 y of an operator that has it, told each sample's r2."""
        if not isinstance(r2, Tensor):  # by a number an operator would divide y more exactly
            r2 = y.new_full(y.shape[:1], r2, dtype=torch.float64)
        found: Tensor = self.operator.solve(lend(y), r2, noise2)
        return found

    def _guidance(self, at: Denoised, y: Tensor, rows: Rows | None) -> Tensor:
        """grad log p(y | x) at these points, of x's shape."""
        raise NotImplementedError

    def _checked_levels(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = self._levels(x, sigma)
        if x.dtype.itemsize < 4:
            expected = "float32 or float64, for guidance takes small differences (model.float())"
            fail(type(self).__name__, "x", expected, x.dtype)
        return level

    def _denoised(self, x: Tensor, level: Tensor, model_kwargs: dict[str, Any]) -> Denoised:
        call = Call(type(self).__name__, self.score, (level,), model_kwargs)
        self._looks(call, x, level)
        differentiates, once = self._looks.differentiates, self.takes_one_product
        return denoised(call, x, level, differentiates=differentiates, once=once)

    def _measurement_of(self, x: Tensor, given: Tensor | None) -> Tensor:
        """y, (batch or 1, ...), in x's precision."""
        name, own = type(self).__name__, self.measurement
        if given is None and own is None:
            expected = 'given: to the constructor, or as model_kwargs={"measurement": y}'
            fail(name, "measurement", expected, None)
        if given is not None and own is not None:
            fail(name, "measurement", "given once, and the constructor has one", "another")
        y = own if given is None else given
        way = 'one of each sample goes into model_kwargs={"measurement": y}'
        try:
            y = check_measurement(name, self.operator, x, y)
        except ValueError as error:
            if own is None:
                raise
            raise ValueError(f"{error} ({way})") from None
        if own is not None and len(y) != 1:  # samplers don't cut it with the samples
            fail(name, "measurement", f"one for all samples ({way})", f"{len(y)} of them")
        return y.to(x.dtype.to_complex() if y.is_complex() else x.dtype)

    def _rows_of(self, x: Tensor, y: Tensor) -> Rows | None:
        """What is known of the operator's rows: looked at once for each shape, while it stays."""
        if self._is_trained():
            return None  # a number has no gradient
        key = x.shape[1:], y.shape[1:], y.dtype, y.device
        blind = _is_blind(x)
        if not blind and (contents := contents_of(self.operator)) != self._contents:
            self._contents, self._rows = contents, {}
        if key not in self._rows:
            if blind:
                return None
            self._rows[key] = rows_of(self.operator, y.detach())
        return self._rows[key]

    def _is_trained(self) -> bool:
        """Whether a gradient may be asked for of the operator."""
        held = tensors_of(self.operator) if torch.is_grad_enabled() else []
        return any(tensor.requires_grad for tensor in held)

    def _looks_at_rows(self, x: Tensor) -> bool:
        """Whether ``None`` of ``_rows_of`` says that rows are not orthogonal, or nothing."""
        return not (_is_blind(x) or self._is_trained())

    def extra_repr(self) -> str:
        """What it has been given, for ``repr``."""
        y = self.measurement
        return "" if y is None else f"measurement of shape {tuple(y.shape)}"


def _is_blind(x: Tensor) -> bool:
    """Whether no value can be looked at."""
    return in_transform() or is_captured(x) or not x.numel()


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """What goes on inside is in x's precision, also in a region of autocast: products with A."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def check_noise(fn: str, noise: Any) -> float:
    """The standard deviation of a measurement's noise."""
    return check_number(fn, "noise", noise, minimum=0.0)


def variance_left(level2: Tensor | float, data_variance: float) -> Tensor | float:
    """r^2 of x_0 given x, of data N(m, v I) under noise of variance s^2: v s^2/(v + s^2)."""
    return data_variance * level2 / (data_variance + level2)


def where_finite(level2: Tensor | float, noise: float) -> Tensor | float:
    """1 of each sample, and NaN where neither it nor the measurement has noise."""
    if not isinstance(level2, Tensor):
        return 1.0 if level2 + noise**2 > 0 else math.nan
    return torch.where(level2 + noise**2 > 0, 1.0, torch.nan).to(level2.dtype)
