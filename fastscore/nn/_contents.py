"""What a network holds, by name, and a record of it to go back to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastscore._support.wrappers import unwrapped


def owner_of(name: str) -> str:
    """The name of the module that a tensor of this name is registered with."""
    return name.rpartition(".")[0]


def key_of(name: str) -> str:
    """The name of a tensor within its module."""
    return name.rpartition(".")[2]


@dataclass
class Contents:
    """A network's modules and tensors by name, without wrappers; shared ones under each name."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    lazy: dict[str, Any] = field(default_factory=dict)  # uninitialised: no shape yet
    types: list[type] = field(default_factory=list)

    def same_structure(self, other: Contents) -> bool:
        """The same objects under the same names; the values of buffers aside."""
        return (
            self.modules == other.modules  # modules compare by identity
            and self.types == other.types  # lazy and parametrised ones change theirs
            and self.buffers.keys() == other.buffers.keys()
            and self.parameters.keys() == other.parameters.keys()
            and all(weight is other.parameters[name] for name, weight in self.parameters.items())
        )


def contents(network: nn.Module) -> Contents:
    """Everything in a network. ``named_parameters`` would keep the wrappers in the names."""
    found = Contents()

    def visit(module: nn.Module, name: str, above: tuple[nn.Module, ...]) -> None:
        module = unwrapped(module)
        if module in above:  # a child that holds its parent
            return
        found.modules[name] = module
        found.types.append(type(module))
        prefix = f"{name}." if name else ""
        for registered, tensors in (
            (module._parameters, found.parameters),
            (module._buffers, found.buffers),
        ):
            for key, tensor in registered.items():
                if tensor is None:
                    continue
                if is_lazy(tensor):
                    found.lazy[prefix + key] = tensor
                else:
                    tensors[prefix + key] = tensor
        for key, child in module._modules.items():
            if child is not None:
                visit(child, prefix + key, (*above, module))

    visit(network, "", ())
    return found


class Snapshot:
    """The tensors of a network, to be put back whatever has happened to them."""

    def __init__(self, network: nn.Module) -> None:
        found = contents(network)
        self.registered: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (table, dict(table.items()))
            for module in found.modules.values()
            for table in (module._parameters, module._buffers)
        ]
        tensors = [*found.parameters.values(), *found.buffers.values()]
        self.values = {id(tensor): (tensor, tensor.detach().clone()) for tensor in tensors}

    @torch.no_grad()
    def restore(self) -> None:
        """The same tensors under the same names with the same values."""
        for table, tensors in self.registered:
            for key in [key for key in table.keys() if key not in tensors]:  # noqa: SIM118
                del table[key]  # a scripted module's table is not iterable
            for key, tensor in tensors.items():
                if key not in table or table[key] is not tensor:
                    table[key] = tensor
        for tensor, value in self.values.values():
            expanded = tensor.layout == torch.strided and 0 in tensor.stride()
            if _kind(tensor) == _kind(value) and not expanded:
                tensor.copy_(value)  # where it lies: compiled code and CUDA graphs know the place
            else:
                tensor.data = value


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout
