"""Networks that are not this library's, for checkpoints; built as "own_networks:make"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A score network of one's own, with a buffer that is saved and one that is not."""

    table: Tensor
    rates: Tensor

    def __init__(self, width: int = 8, *, sizes: Any = None) -> None:
        super().__init__()
        self.sizes = sizes
        self.inner = nn.Linear(2, width)
        self.outer = nn.Linear(width, 2)
        self.register_buffer("table", torch.arange(3))
        self.register_buffer("rates", torch.ones(width), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (
            self.outer(torch.tanh(self.inner(x.to(self.inner.weight.dtype))) * self.rates)
            / sigma[:, None]
        )


class Tied(nn.Module):
    """Two layers that may share a weight."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        if tie:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.second(self.first(x)) / sigma[:, None]


class Extra(nn.Linear):
    """A layer with state beside its tensors."""

    def __init__(self, extra: Any) -> None:
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class BreaksOnLoading(Net):
    """Takes its first weights, then fails."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        super().load_state_dict(*args, **kwargs)
        raise RuntimeError("no more")


def make(width: int = 8, *, sizes: Any = None) -> Net:
    return Net(width, sizes=sizes)


def make_nothing() -> None:
    pass


def fails() -> Net:
    raise OSError("no such luck")


NOT_A_FUNCTION = 3


def draw(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that are all their own."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return net
