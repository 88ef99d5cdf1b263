"""Networks inside of the wrappers that training puts around them."""

from __future__ import annotations

import inspect
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

M = TypeVar("M")

# The names under which torch.compile, FSDP and checkpoint wrappers hold the module within.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_CALLS = ("forward", "__call__", "_wrapped_call_impl", "_call_impl")


def unwrapped(model: M) -> M:
    """The network inside of its wrappers; anything else than a module as it is."""
    module: object = model
    while isinstance(module, nn.Module):
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            module = module.module
            continue
        children = module._modules
        inner = [children[key] for key in WRAPPED if key in children] if children else []
        if not inner or inner[0] is None:
            break
        module = inner[0]
    return module  # type: ignore[return-value]


def said_by(model: Any, name: str) -> Any:
    """An attribute by which a network says how it is called or what it returns; None if none does.

    Also that of a moving average's network, of what a ``partial`` calls, and of the network whose
    ``forward`` this is.
    """
    if type(model) is FunctionType:
        return getattr(model, name, None)
    while model is not None:
        for module in (model,) if (network := unwrapped(model)) is model else (model, network):
            if (value := _attribute(module, name)) is not None:
                return value
        model = network
        if name == "conditioning" and isinstance(model, partial) and _gives_level(model):
            return None
        model = _within(model)
    return None


def _attribute(model: Any, name: str) -> Any:
    """An attribute, or None. Modules raise a costly error for one that is not there."""
    kind = type(model)
    plain = getattr(kind, "__getattr__", None) is nn.Module.__getattr__
    if plain and name not in vars(model) and not hasattr(kind, name):
        return None  # a submodule or a tensor of that name says nothing
    return getattr(model, name, None)


def parameters_of(model: Any) -> list[str]:
    """The names of what a model can be called with; none where it does not say.

    Of an adapter, those of what it is made around. A network that refuses some of its own, as they
    depend on how it was made, names them in an attribute ``refused_names``.
    """
    model = unwrapped(model)
    if isinstance(model, nn.Module) and (refused := _attribute(model, "refused_names")):
        return [name for name in _parameters_of(model) if name not in refused]
    return _parameters_of(model)


def _parameters_of(model: Any) -> list[str]:
    if hasattr(model, "net_conditioning"):
        return parameters_of(getattr(model, "net", None) or getattr(model, "energy", None))
    if isinstance(model, partial):
        return [n for n in parameters_of(model.func)[len(model.args) :] if n not in model.keywords]
    if isinstance(model, AveragedModel):
        return parameters_of(model.module)
    function = model.forward if isinstance(model, nn.Module) else model
    if torch.compiler.is_compiling():  # which can't trace a signature on every version of PyTorch
        return _parameters_of_code(function)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    return [("**" if p.kind is inspect.Parameter.VAR_KEYWORD else "") + p.name for p in named]


def _parameters_of_code(function: Any) -> list[str]:
    """The same from a Python function's code."""
    bound = isinstance(function, MethodType)
    code = getattr(function.__func__ if bound else function, "__code__", None)
    if code is None:
        return []
    count = code.co_argcount + code.co_kwonlyargcount
    return list(code.co_varnames[1 if bound else 0 : count])


def _within(model: Any) -> Any:
    """What a model calls as it is called itself."""
    if isinstance(model, AveragedModel):
        return model.module
    if isinstance(model, partial):
        return model.func
    if isinstance(model, MethodType) and isinstance(model.__self__, nn.Module):
        return model.__self__ if model.__name__ in _CALLS else None
    return None


def _gives_level(model: partial[Any]) -> bool:
    """Whether what follows x is given already: the model is then called in another way."""
    return bool(model.args) or any(n in model.keywords for n in parameters_of(model.func)[1:2])


def plain_name(name: str) -> str:
    """A name in a state_dict without the wrappers that are known by their own names."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)
