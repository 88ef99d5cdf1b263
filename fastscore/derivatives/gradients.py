"""The gradient of one number of each sample: of an energy, or of a log probability."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import fail
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.inference import recordable, recording
from fastscore._support.once import marked_once, only_once
from fastscore._support.tangents import refuse_tangents


def gradient_of_values(
    fn: str,
    arg: str,
    values: Callable[..., Tensor],
    x: Tensor,
    args: tuple[Tensor, ...] = (),
) -> Tensor:
    """The gradient at ``x`` of ``values(x, *args)``, one number of each sample, by one pass back.

    While gradients are recorded it can itself be differentiated. Under ``torch.no_grad`` and in
    inference mode there is one as well, and no graph is kept. Inside ``torch.func`` transforms and
    ``torch.compile`` it is taken by ``torch.func.vjp``.

    Args:
        fn, arg: who asks, and for what argument of it, for messages.
        values: returns (batch,) or (batch, 1), each number of its own sample's alone.
        x: (batch, ...).
        args: constants in the derivative.

    Raises:
        ValueError: values with no graph that leads to x.

    Example:
        >>> import torch
        >>> with torch.no_grad():
        ...     gradient_of_values("f", "values", lambda x: x.square().sum(1), torch.ones(1, 2))
        tensor([[2., 2.]])
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        result: Any = torch.func.vjp(lambda at: values(at, *args), x)
        found, pullback = result
        return pullback(torch.ones_like(found))[0]
    refuse_tangents(fn, (x,))
    record = torch.is_grad_enabled()
    # Compiled code has no second derivatives.
    eagerly = compiled_parts_run_eagerly() if record else contextlib.nullcontext()
    with recording(), eagerly:
        x, args = recordable(x), tuple(map(recordable, args))
        # The caller's own tensor only where its graph has to go on through it.
        leaf = x if record and x.requires_grad else x.detach().requires_grad_()
        found = values(leaf, *args)
        gradient = None
        if found.requires_grad:
            (gradient,) = torch.autograd.grad(
                found.sum(), leaf, create_graph=record, allow_unused=True
            )
        if gradient is None:
            fail(fn, arg, "differentiable in x", "a value with no graph that leads to x")
        if record and marked_once(found).functions:
            gradient = only_once(gradient, found)
    return gradient
