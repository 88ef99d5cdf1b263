"""The run of a model on tensors that carry derivatives: in which mode, and what stops it.

What a network computes with gradients off is a constant to reverse mode, and so it is here. To tell
it from a caller who records no gradients, the model always runs with gradients on, and every rule
in the caller's mode.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten

from fastscore._support.lending import lent
from fastscore._support.scripted import scripted_calls
from fastscore._support.terms import summed
from fastscore.derivatives.call import Call

# The autograd.Function whose forward a code object is, or None.
_FUNCTIONS: dict[CodeType, type | None] = {}


class Unsupported(Exception):
    """A function that can't be given tangents on its own: the whole model needs another way."""

    def __init__(self, function: str, reason: str) -> None:
        super().__init__(f"{function}: {reason}")
        self.function = function


class Writes(Protocol):
    """What a run has written into plain tensors."""

    def is_written(self, x: torch.Tensor) -> bool: ...

    def of_output(self, output: Any) -> Any: ...

    def finish(self, *, succeeded: bool) -> None: ...


class _Caller(threading.local):
    """The modes of the one who runs a model, and what is to be tidied up for him."""

    record = True  # whether gradients are recorded
    inference = False
    answering = False  # whether a rule is at work, with gradients off
    writes: Writes | None = None


CALLER = _Caller()


def evaluate(call: Call, x: torch.Tensor) -> Any:
    """The model's output at x, in a frame of its own that bounds the search below."""
    args, kwargs = tuple(map(lent, call.args)), lent(call.kwargs)
    before = CALLER.record, CALLER.inference, CALLER.answering, CALLER.writes
    CALLER.record, CALLER.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    CALLER.answering, CALLER.writes = False, None
    torch._C._set_grad_enabled(True)
    succeeded = False
    try:
        with scripted_calls(_refuse_scripted):
            output = summed(call.model(x, *args, **kwargs))
        if CALLER.writes is not None:
            output = CALLER.writes.of_output(output)
        succeeded = True
        return output
    finally:
        torch._C._set_grad_enabled(CALLER.record)
        if CALLER.writes is not None:
            CALLER.writes.finish(succeeded=succeeded)
        CALLER.record, CALLER.inference, CALLER.answering, CALLER.writes = before


def has_wrong_tangents(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether PyTorch's forward mode is known to be wrong: of products that are scattered."""
    given = (*args, *kwargs.values())
    return name.startswith("scatter_reduce") and any(type(x) is str and x == "prod" for x in given)


def in_callers_mode(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A rule's answer, recorded or not as the caller has it."""
    if CALLER.record or CALLER.answering:
        return rule(*args, **kwargs)
    CALLER.answering = True
    torch._C._set_grad_enabled(False)
    try:
        return rule(*args, **kwargs)
    finally:
        torch._C._set_grad_enabled(True)
        CALLER.answering = False


def model_is_without_gradients() -> bool:
    """Whether the model itself, and not its caller, has turned gradients off."""
    return not (torch.is_grad_enabled() or CALLER.answering)


def refuse_custom_function() -> None:
    """Refuse to look inside a custom autograd.Function.

    Its forward runs with gradients off, so that a graph made there would be lost, and what it does
    to a tangent is for its own backward to say.
    """
    name = custom_function()
    if name is not None:
        raise Unsupported(name, "it is an autograd.Function")


def custom_function() -> str | None:
    """The autograd.Function whose forward is running.

    No hook of PyTorch's tells, so the call stack does: by the frame of forward, since that of apply
    is not Python's in every version of PyTorch.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not evaluate.__code__:
        code = frame.f_code
        if code not in _FUNCTIONS:
            _FUNCTIONS[code] = _function_of(code)
        function = _FUNCTIONS[code]
        if function is not None:
            return function.__qualname__
        frame = frame.f_back
    return None


def _function_of(code: CodeType) -> type | None:
    left: list[type[torch.autograd.Function]] = [torch.autograd.Function]
    while left:
        function = left.pop()
        if getattr(function.forward, "__code__", None) is code:
            return function
        left.extend(function.__subclasses__())
    return None


def _refuse_scripted(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Scripted code may run on what is plainly a constant, and on nothing else."""
    for x in tree_flatten((args, kwargs))[0]:
        if not _is_constant(x):
            raise Unsupported(name, "TorchScript loses tangents")


def _is_constant(x: Any) -> bool:
    if isinstance(x, torch.Tensor):
        plain = type(x) in (torch.Tensor, torch.nn.Parameter)
        return (
            plain and not torch._C._functorch.is_functorch_wrapped_tensor(x) and not is_written(x)
        )
    return x is None or isinstance(x, (bool, int, float, str, torch.device, torch.dtype))


def is_written(x: torch.Tensor) -> bool:
    """Whether this run has written values with tangents into the plain tensor x."""
    return CALLER.writes is not None and CALLER.writes.is_written(x)
