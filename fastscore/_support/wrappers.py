"""Networks inside of the wrappers that training puts around them."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

M = TypeVar("M")

# The names under which torch.compile, FSDP and checkpoint wrappers hold the module within.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


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


def plain_name(name: str) -> str:
    """A name in a state_dict without the wrappers that are known by their own names."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)
