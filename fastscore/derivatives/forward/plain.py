"""What a plain call does: values without their tangents, and PyTorch's own errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastscore.derivatives.forward.tensor import DualTensor


def value_of(x: Any) -> Any:
    """The value of a dual tensor; anything else as it is."""
    return x.primal if isinstance(x, DualTensor) else x


def on_values(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func`` on the values alone."""
    return func(*tree_map(value_of, args), **tree_map(value_of, kwargs))


def check_as_plain(func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise what the plain function raises for these values.

    It runs once more for that, on copies: for arguments that look wrong, not for every call.
    """

    def copy(x: Any) -> Any:
        return value_of(x).detach().clone() if isinstance(x, Tensor) else x

    with torch.no_grad():
        func(*tree_map(copy, args), **tree_map(copy, kwargs))
