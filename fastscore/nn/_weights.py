"""The weights of any network by plain names, out of it and into another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastscore._support.checks import describe, fail, fail_type
from fastscore._support.wrappers import WRAPPED, plain_name, unwrapped
from fastscore.nn._contents import Contents, Snapshot, contents, key_of, owner_of

SHOWN = 8  # names in a message
EXTRA = "_extra_state"  # what a module saves beside its tensors, under this name


@dataclass
class Weights:
    """What a network's state_dict holds, without wrappers in the names."""

    tensors: dict[str, Tensor]  # on the CPU, contiguous, none sharing memory with another
    tied: dict[str, str] = field(default_factory=dict)  # further names of one of them
    unsaved: dict[str, torch.dtype] = field(default_factory=dict)  # of buffers that are not in it

    def all(self) -> dict[str, Tensor]:
        """Every tensor by each of its names."""
        return {**self.tensors, **{name: self.tensors[one] for name, one in self.tied.items()}}


def weights_of(fn: str, model: nn.Module) -> Weights:
    """A network's weights, to be written to a file.

    Raises:
        TypeError, ValueError: something in it that a file can't hold, by name.
    """
    network = unwrapped(model)
    found = contents(network)
    if found.lazy:
        expected = "initialised (call the network once)"
        fail(fn, f"model's {next(iter(found.lazy))!r}", expected, "a lazy parameter")
    _check_whole(fn, "model", model)
    weights = Weights({})
    places: dict[Any, str] = {}
    memory: set[int] = set()
    for name, value in _state(network).items():
        tensor = _check_value(fn, name, value)
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        one = places.setdefault(place, name) if tensor.numel() else name
        if one != name:
            weights.tied[name] = one
        else:
            weights.tensors[name] = _apart(tensor.detach(), memory)
    for name, buffer in found.buffers.items():
        if name not in weights.tensors and name not in weights.tied and buffer.is_floating_point():
            weights.unsaved[name] = buffer.dtype
    return weights


def put_weights(fn: str, arg: str, model: nn.Module, weights: Weights) -> None:
    """Weights into a network of the same names and shapes, which takes their dtypes and ties.

    Raises:
        ValueError: they do not fit, in words about ``arg``. The network is then as it was.
    """
    network = unwrapped(model)
    found = contents(network)
    if found.lazy:
        expected = "an initialised network (call it once)"
        fail(fn, arg, expected, f"one with a lazy parameter {next(iter(found.lazy))!r}")
    _check_whole(fn, arg, model)
    values, own = weights.all(), _state(network)
    _check_fit(fn, arg, values, own)
    _check_ties(fn, arg, values, own)
    before = Snapshot(network)
    try:
        with torch.no_grad():
            _take_dtypes(found, {name: value.dtype for name, value in values.items()})
            _take_dtypes(found, weights.unsaved)
            named = _plain_names(network)
            network.load_state_dict({key: values[name] for key, name in named.items()})
            for name, one in weights.tied.items():
                _tie(found, name, one)
    except Exception as error:  # a module's own way to load may raise anything
        before.restore()
        reason = " ".join(str(error).split())
        expected = "a network that can load the weights of its names and shapes"
        raise ValueError(f"{fn}: {arg} must be {expected}, got one with: {reason}") from error


def _apart(tensor: Tensor, memory: set[int]) -> Tensor:
    """On the CPU and contiguous, with memory of its own: a file holds nothing twice, or half."""
    tensor = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    held = tensor.untyped_storage()
    if held.data_ptr() in memory or held.nbytes() != tensor.nbytes:
        tensor = tensor.clone()
    memory.add(tensor.untyped_storage().data_ptr())
    return tensor


# ---- names -------------------------------------------------------------------------------------


def _plain_names(network: nn.Module) -> dict[str, str]:
    """The keys of a network's state_dict, and what they are without wrappers."""
    parallel = {
        plain_name(name)
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, (DataParallel, DistributedDataParallel))
    }

    def plain(key: str) -> str:
        path: list[str] = []
        kept = []
        for part in key.split("."):
            if part in WRAPPED:
                continue
            if part != "module" or ".".join(path) not in parallel:
                kept.append(part)
            path.append(part)
        return ".".join(kept)

    return {key: plain(key) for key in network.state_dict()}


def _state(network: nn.Module) -> dict[str, Any]:
    names = _plain_names(network)
    return {names[key]: value for key, value in network.state_dict().items()}


# ---- checks ------------------------------------------------------------------------------------


def _check_whole(fn: str, arg: str, model: nn.Module) -> None:
    if any("_fsdp_wrapped_module" in module._modules for module in model.modules()):
        expected = "a whole network (gather an FSDP network's state_dict into one without FSDP)"
        fail(fn, arg, expected, "one in shards")


def _check_value(fn: str, name: str, value: Any) -> Tensor:
    """A tensor whose elements lie in memory, each at its place."""
    arg = f"model's {name!r}"
    if not isinstance(value, Tensor):
        fail_type(fn, arg, "a tensor, as all of a network's state_dict", value)
    if is_traceable_wrapper_subclass(value):  # DTensor's shards, quantised weights
        fail_type(fn, arg, "a plain tensor", value)
    if value.layout != torch.strided or value.is_quantized:
        kind = value.dtype if value.is_quantized else value.layout
        fail(fn, arg, "a dense tensor", f"one of {kind}")
    if value.device.type == "meta":
        fail(fn, arg, "a tensor with values", describe(value))
    if value.dtype in (torch.complex32, torch.complex128):
        fail(fn, arg, "of a dtype that safetensors can hold", describe(value))
    return value


def _check_fit(fn: str, arg: str, values: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """That the network has these names, and under each a tensor of that shape."""
    problems = []
    if missing := [name for name in values if name not in own]:
        problems.append(f"without {_listed(missing)}")
    if surplus := [name for name in own if name not in values]:
        problems.append(f"with {_listed(surplus)} beside")
    shapes = [
        f"{name!r} of shape {tuple(own[name].shape)} for {tuple(value.shape)}"
        for name, value in values.items()
        if isinstance(own.get(name), Tensor)
        and key_of(name) != EXTRA
        and own[name].shape != value.shape
    ]
    if shapes:
        problems.append(f"with {_listed(shapes, str)}")
    if problems:
        fail(fn, arg, "one with the tensors that were saved", f"one {', '.join(problems)}")


def _check_ties(fn: str, arg: str, values: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """That what is one tensor in the network has one value."""
    places: dict[Any, str] = {}
    for name, tensor in own.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.numel():
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        one = places.setdefault(place, name) if tensor.device.type != "meta" else name
        same = values[one] is values[name] or torch.equal(values[one], values[name])
        if not same:
            got = f"one that ties {one!r} and {name!r}"
            fail(fn, arg, "a network whose weights are untied as the saved ones are", got)


def _listed(names: list[str], form: Any = repr) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(form, names[:SHOWN])) + more


# ---- changes -----------------------------------------------------------------------------------


def _take_dtypes(found: Contents, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give parameters and buffers these dtypes, where they lie."""
    for name, dtype in dtypes.items():
        tensor = found.parameters.get(name, found.buffers.get(name))
        if tensor is not None and tensor.dtype != dtype and tensor.layout == torch.strided:
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)


def _tie(found: Contents, name: str, one: str) -> None:
    """Register the parameter called ``one`` under the other name too."""
    parameters = found.parameters
    if name in parameters and one in parameters and parameters[name] is not parameters[one]:
        setattr(found.modules[owner_of(name)], key_of(name), parameters[one])
