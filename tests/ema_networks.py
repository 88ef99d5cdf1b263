"""Networks that the tests of moving averages share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every floating-point weight a random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.normal_(generator=generator)
    return model


def small(seed: int = 0) -> nn.Sequential:
    """A network with parameters and with buffers of both kinds."""
    return randomise(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), seed)


class Held(nn.Module):
    """One parameter and one buffer, of any value, and what else is asked for."""

    def __init__(self, weight: Tensor, buffer: Tensor | None = None, **attributes: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
        self.register_buffer("buffer", buffer)
        for name, value in attributes.items():
            setattr(self, name, value)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of everything, persistent or not."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


# The average


class Growing(nn.Module):
    """Layers up to a depth that is an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.depth = 1

    def grow(self, seed: int) -> None:
        self.layers.append(randomise(nn.Linear(3, 3), seed))
        self.depth += 1

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[: self.depth]:
            x = layer(x)
        return x
