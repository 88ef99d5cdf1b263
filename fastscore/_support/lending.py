"""Handing tensors to a network that may write to them, or keep them.

A time embedding that does ``t *= 50.`` changes what it is handed, and one that stores its input
would see it change under the next step. So a network never gets a tensor that anybody else reads,
and where it behaves that costs nothing: what it gets is copied at the first write, on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.model_kwargs import Shared

lend_own: Callable[[Tensor], Tensor] = getattr(torch, "_lazy_clone", torch.clone)
"""As :func:`lend`, for memory that is PyTorch's own, outside of compiled code and transforms."""


def lend(x: Tensor) -> Tensor:
    """``x`` for a network to do with as it likes: neither sees what the other writes.

    Differentiable, and no leaf of autograd's, so that the network may write in place where ``x``
    requires grad. Copied at once where memory can't be shared until a write: NumPy's, or a
    tensor inside a function transform.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return x.clone()
    try:
        return lend_own(x)
    except (RuntimeError, NotImplementedError):  # memory that is not PyTorch's own; a subclass
        return x.clone()


is_untouched: Callable[[Tensor], bool] = getattr(torch._C, "_is_cow_tensor", lambda x: False)
"""Whether it is certain that nobody has written to what :func:`lend` returned."""


class Loan:
    """The same arguments for call after call: lent anew where the last call has written to them."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.renew()

    def renew(self) -> None:
        self.tensors: list[Tensor] = []
        self.handed = lent(self.value, self.tensors)

    def again(self) -> Any:
        """What the next call gets."""
        for tensor in self.tensors:
            if not is_untouched(tensor):
                self.renew()
                break
        return self.handed


def lent(value: Any, tensors: list[Tensor] | None = None) -> Any:
    """Arguments as a network gets them: tensors lent, marks of :func:`shared` taken off.

    ``tensors`` collects what has been lent.
    """
    if isinstance(value, Tensor):
        handed = lend(value)
        if tensors is not None:
            tensors.append(handed)
        return handed
    if isinstance(value, Shared):
        return lent(value.value, tensors)
    if isinstance(value, dict):
        return {name: lent(entry, tensors) for name, entry in value.items()}
    return value
