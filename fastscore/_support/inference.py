"""What can be done in the mode that the caller is in: inference mode, capture in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def recording() -> AbstractContextManager[Any]:
    """Gradients are recorded inside, whatever mode the caller is in."""
    return _outside_of_inference() if torch.is_inference_mode_enabled() else torch.enable_grad()


@contextmanager
def _outside_of_inference() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def recordable(x: Tensor) -> Tensor:
    """x, or its copy where it was made in inference mode: autograd takes no part in such a one.

    To be called inside :func:`recording`.
    """
    plain = type(x) in (Tensor, Parameter)  # a subclass may have no answer
    return x.clone() if plain and x.is_inference() else x


def is_captured(x: Tensor) -> bool:
    """Whether what is done with x goes into a CUDA graph, where no value can be looked at."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
