"""``torch.compile`` of a peer, in its default mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastscore.apps.bench.case import NotAvailable


def compiled(fn: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """``fn`` compiled for shapes like those of ``args``, on which it is run once.

    Raises:
        NotAvailable: it does not compile here, for want of a C++ compiler, say.
    """
    torch.compiler.reset()
    compiled_fn = torch.compile(fn, dynamic=False)
    try:
        compiled_fn(*args)
    except Exception as error:  # of dynamo, of inductor or of the compiler that it calls
        first = next(iter(str(error).splitlines()), "")
        raise NotAvailable(f"torch.compile: {type(error).__name__}: {first}") from error
    return compiled_fn
