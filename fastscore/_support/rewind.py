"""A model's state and the random number generators, as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastscore._support.reach import Statistics


class Rewind:
    """The random number generators and a model's running statistics, as they were."""

    def __init__(self, model: Callable[..., Any], x: Tensor) -> None:
        self.device = x.device if x.device.type == "cuda" else None
        self.states = self._states()
        self.statistics = Statistics(model)

    def _states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device is not None:
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def has_drawn(self) -> bool:
        """Whether anything was drawn from PyTorch's generators since."""
        return not all(map(torch.equal, self.states, self._states()))

    def __call__(self) -> None:
        torch.set_rng_state(self.states[0])
        if self.device is not None:
            torch.cuda.set_rng_state(self.states[1], self.device)
        self.statistics.restore()


@contextmanager
def untouched(model: Callable[..., Any], x: Tensor) -> Iterator[None]:
    """Leave the model's running statistics and the random number generators alone."""
    rewind = Rewind(model, x)
    try:
        yield
    finally:
        rewind()
