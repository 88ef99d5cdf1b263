"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastscore._support.checks import check_number, fail, fail_type


class EMA:
    """Exponential moving average of weights (Song and Ermon 2020, Technique 5).

    After each optimiser step call :meth:`update`:
    ``average <- decay * average + (1 - decay) * weight``. After n updates the decay is at most
    (1 + n)/(10 + n), so that the start is soon forgotten. Buffers are copied. Averages of bfloat16
    and float16 weights are kept in float32, for a thousandth of a difference is lost in them:
    ``module`` is then a float32 network.

    Args:
        model: the network being trained; not changed.
        decay: in [0, 1), 0.999 by default.

    Attributes:
        module: a copy of the network that holds the average, in eval mode, without gradients.

    Raises:
        TypeError, ValueError: not a module, or a decay out of range.

    >>> net = torch.nn.Linear(1, 1)
    >>> ema = EMA(net, decay=0.9)
    >>> ema.update()
    >>> torch.equal(ema.module.weight, net.weight)
    True
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not isinstance(model, nn.Module):
            fail_type("EMA", "model", "a torch.nn.Module", model)
        self.decay = check_number("EMA", "decay", decay, minimum=0.0)
        if decay >= 1:
            fail("EMA", "decay", "below 1", decay)
        self.model = model
        self.updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        for average in itertools.chain(self.module.parameters(), self.module.buffers()):
            if average.dtype in (torch.bfloat16, torch.float16):
                average.data = average.data.float()

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's current weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = list(self.module.parameters())
        weights = [
            weight.to(average.dtype)
            for average, weight in zip(averages, self.model.parameters(), strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.module.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)

    @contextmanager
    def swapped(self) -> Iterator[nn.Module]:
        """The network with the averaged weights inside the block, its own again after it."""
        own = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.module.state_dict())
        try:
            yield self.model
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            ValueError: ``state`` is not a state_dict of an EMA.
            RuntimeError: its weights don't fit the network.
        """
        if not {"updates", "module"} <= set(state):
            fail("EMA.load_state_dict", "state", "an EMA's state_dict", f"entries {list(state)}")
        self.updates = int(state["updates"])
        self.module.load_state_dict(state["module"])
