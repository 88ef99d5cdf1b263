"""Calling a network with a fixed number of samples at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from fastscore._support.checks import check_output, fail
from fastscore._support.lending import lent
from fastscore._support.model_kwargs import per_batch
from fastscore._support.terms import summed


class Batches:
    """Calls of a network for ``batch`` samples, ``size`` of them at a time and always as many.

    The last call is filled up with copies of the last sample: the same sample then meets the same
    call, but for its place in it, with however many others it is drawn. What belongs to the samples
    among ``model_kwargs`` goes with them.
    """

    def __init__(self, fn: str, size: int, batch: int, model_kwargs: dict[str, Any]) -> None:
        self.fn, self.size, self.batch = fn, size, batch
        for name, value in model_kwargs.items():
            self._refuse_others(f"model_kwargs[{name!r}]", value)
        self.kwargs = [
            per_batch(model_kwargs, batch, partial(self._rows, start=start))
            for start in range(0, batch, size)
        ]

    def _refuse_others(self, place: str, value: Any) -> None:
        """What may belong to the samples and can't go with them, for it is no tensor."""
        if isinstance(value, dict):
            for name, entry in value.items():
                self._refuse_others(f"{place}[{name!r}]", entry)
        plain = isinstance(value, (list, tuple)) and not any(isinstance(v, Tensor) for v in value)
        array = isinstance(value, numpy.ndarray) and value.ndim > 0
        if (plain or array) and len(value) == self.batch > 1:
            expected = "a tensor with batch_size=, or marked by fastscore.shared"
            got = f"a {type(value).__name__} of as many as there are samples, {self.batch}"
            fail(self.fn, place, expected, got)

    def _rows(self, value: Tensor, start: int) -> Tensor:
        """``size`` rows from ``start`` on, a copy."""
        rows = value[start : start + self.size]
        missing = self.size - len(rows)
        if not missing:
            return rows.clone()
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])

    def __call__(
        self, model: Callable[..., Tensor], x: Tensor, arguments: Sequence[Tensor]
    ) -> Tensor:
        """The model's output for all samples, (batch, ...)."""
        result: Tensor | None = None
        for start, named in zip(range(0, self.batch, self.size), self.kwargs, strict=True):
            rows = self._rows(x, start)
            given = [self._rows(each, start) for each in arguments]
            output = model(rows.clone(), *given, **lent(named))
            output = check_output(self.fn, summed(output), rows)
            if result is None:
                result = output.new_empty(x.shape)
            place = result[start : start + self.size]
            place.copy_(output[: len(place)])  # at once: the network may use its memory again
        assert result is not None
        return result
