"""Functions with a first derivative alone, marked ``once_differentiable``.

PyTorch guards their derivative by a node that raises. But ``autograd.grad`` leaves the node out
where it does not lead to what is asked for, and there is none where the incoming gradient is a
constant. Either way what belongs to the function is missing in the second derivative, in silence.
"""

from __future__ import annotations

from types import CodeType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MESSAGE = (
    "the model calls a function marked with @once_differentiable, which has no second derivative, "
    "and one is needed here"
)


def _marked() -> tuple[CodeType, type]:
    """The code of every marked backward, and the type of the node that guards its result."""

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad.clone()

    x, u = (torch.zeros((), requires_grad=True, device="cpu") for _ in range(2))
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(Marked.apply(x), x, u, create_graph=True)
    code: CodeType = Marked.backward.__code__
    return code, type(grad.grad_fn)


_CODE, _GUARD = _marked()


class Once(NamedTuple):
    """What there is in a graph."""

    functions: bool  # a marked function: the derivative of the graph has no derivative
    derivatives: bool  # the guarded derivative of one: the graph has no derivative


def marked_once(x: Tensor) -> Once:
    """Whether functions with a first derivative alone are in the graph behind x, or were."""
    seen, left = set(), [x.grad_fn]
    functions = derivatives = False
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = type(node)
        if kind is _GUARD:
            derivatives = True
        elif hasattr(kind, "_forward_cls"):
            functions |= getattr(kind._forward_cls.backward, "__code__", None) is _CODE
        left.extend([next_node for next_node, _ in node.next_functions])
    return Once(functions, derivatives)


def refuse(fn: str) -> NoReturn:
    raise RuntimeError(f"{fn}: {MESSAGE}")


class _OnlyOnce(torch.autograd.Function):
    """A derivative, that raises where it is differentiated with respect to whatever."""

    @staticmethod
    def forward(ctx: Any, derivative: Tensor, output: Tensor) -> Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        raise RuntimeError(f"fastscore: {MESSAGE}")


def only_once(derivative: Tensor, output: Tensor) -> Tensor:
    """The derivative of ``output``, guarded against being differentiated where that is wrong."""
    return _OnlyOnce.apply(derivative, output)
