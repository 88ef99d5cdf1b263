"""The network inside of what torch.compile and parallel training put around it."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# The names under which torch.compile, FSDP and checkpoint wrappers hold the module within.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside of its wrappers."""
    while True:
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            module = module.module
            continue
        children = module._modules
        inner = [children[key] for key in WRAPPED if key in children] if children else []
        if not inner or inner[0] is None:
            return module
        module = inner[0]


def plain_name(name: str) -> str:
    """A name in a state_dict without the wrappers that are known by their own names."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)
