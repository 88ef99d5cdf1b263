"""Handing tensors to a network that may write to them, or keep them.

A time embedding that does ``t *= 50.`` changes what it is handed, and one that stores its input
would see it change under the next step. So a network never gets a tensor that anybody else reads,
and where it behaves that costs nothing: what it gets is copied at the first write, on either side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore._support.model_kwargs import Shared

_lazy_clone = getattr(torch, "_lazy_clone", torch.clone)


def lend(x: Tensor) -> Tensor:
    """``x`` for a network to do with as it likes: neither sees what the other writes.

    Differentiable, and no leaf of autograd's, so that the network may write in place where ``x``
    requires grad. Copied at once where memory can't be shared until a write: NumPy's, or a
    tensor inside a function transform.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return x.clone()
    try:
        return _lazy_clone(x)
    except (RuntimeError, NotImplementedError):  # memory that is not PyTorch's own; a subclass
        return x.clone()


def is_untouched(lent: Tensor) -> bool:
    """Whether nobody has written to what :func:`lend` returned, as far as that can be told."""
    return bool(torch._C._is_cow_tensor(lent))


def lent(value: Any) -> Any:
    """Arguments as a network gets them: tensors lent, marks of :func:`shared` taken off."""
    if isinstance(value, Tensor):
        return lend(value)
    if isinstance(value, Shared):
        return lent(value.value)
    if isinstance(value, dict):
        return {name: lent(entry) for name, entry in value.items()}
    return value
