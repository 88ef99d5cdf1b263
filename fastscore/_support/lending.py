"""Handing tensors to a network that may write to them, or keep them.

A time embedding that does ``t *= 50.`` changes what it is handed, and one that stores its input
would see it change under the next step. So a network never gets a tensor that anybody else reads,
and where it behaves that costs nothing: what it gets is copied at the first write, on either side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.model_kwargs import Shared, rebuilt

lend_own: Callable[[Tensor], Tensor] = getattr(torch, "_lazy_clone", torch.clone)
"""As :func:`lend`, for memory that is PyTorch's own, outside of compiled code and transforms."""


@functools.cache
def _is_ordinary(kind: Any) -> bool:
    """Whether tensors of this class leave PyTorch's functions as they are."""

    def function_of(kind: Any) -> Any:
        return getattr(kind.__torch_function__, "__func__", kind.__torch_function__)

    return function_of(kind) in (function_of(Tensor), function_of(torch.nn.Parameter))


def lend(x: Tensor) -> Tensor:
    """``x`` for a network to do with as it likes: neither sees what the other writes.

    Differentiable, and no leaf of autograd's, so that the network may write in place where ``x``
    requires grad. Copied at once where memory can't be shared until a write: NumPy's, or a
    tensor inside a function transform.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return x.clone()
    ordinary = _is_ordinary(type(x))
    if ordinary and x.is_quantized:  # whose scale PyTorch loses
        return x.clone()
    try:
        handed = lend_own(x)
    except (RuntimeError, NotImplementedError):  # memory that is not PyTorch's own; a subclass
        handed = x.clone()
    if ordinary and x.__dict__:
        handed.__dict__.update(x.__dict__)
    return handed


is_untouched: Callable[[Tensor], bool] = getattr(torch._C, "_is_cow_tensor", lambda x: False)
"""Whether it is certain that nobody has written to what :func:`lend` returned."""


def lent(value: Any) -> Any:
    """Arguments as a network gets them: tensors lent, marks of :func:`shared` taken off.

    So too in dictionaries, lists and tuples, which are made anew where there are tensors in them;
    a tensor in two places is one for the network as well.
    """
    return _lent(value, [])


def _lent(value: Any, memo: list[tuple[Tensor, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        for own, handed in memo:  # a few; not by id, which PyTorch 2.11 can't trace
            if own is value:
                return handed
        handed = lend(value)
        memo.append((value, handed))
        return handed
    if isinstance(value, Shared):
        return _lent(value.value, memo)
    return rebuilt(value, lambda entry: _lent(entry, memo))
