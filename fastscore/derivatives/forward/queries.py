"""Rules of functions whose result has no tangent, or that take a value away from its tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_map

from fastscore.derivatives.forward.tensor import DualTensor, Unsupported, assign, lift, rule, rules


@rules(
    """__bool__ __complex__ __contains__ __eq__ __float__ __floordiv__ __format__ __ge__ __gt__
    __index__ __int__ __invert__ __le__ __len__ __lt__ __ne__ __repr__ __rfloordiv__ __str__ all
    allclose any argmax argmin argsort bernoulli bucketize ceil count_nonzero empty_like eq equal
    fix floor floor_divide full_like ge greater greater_equal gt heaviside is_contiguous is_nonzero
    isclose isfinite isin isinf isnan isneginf isposinf isreal item le less less_equal logical_and
    logical_not logical_or logical_xor lt ne new_empty new_full new_ones new_tensor new_zeros
    nonzero not_equal ones_like rand_like randint_like randn_like result_type round searchsorted
    sgn sign signbit storage_offset stride tolist trunc zeros_like"""
)
def of_value(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result for the value alone: whole numbers, comparisons, constants, Python numbers."""

    def value(x: Any) -> Any:
        return x.primal if isinstance(x, DualTensor) else x

    return func(*tree_map(value, args), **tree_map(value, kwargs))


@rule("detach", ".data")
def detach(input: Any) -> Any:
    """Forward-mode differentiation ends here, as torch.func.jvp has it."""
    input.run.detached = True
    return input.primal.detach()


@rule(".requires_grad")
def requires_grad(input: Any) -> bool:
    return True


@rule("requires_grad_", ".requires_grad=")
def set_requires_grad(input: Any, requires_grad: bool = True) -> Any:
    return input if requires_grad else _refuse("requires_grad_", "it drops the tangents in place")


@rule(".grad", ".grad_fn")
def no_graph(input: Any) -> None:
    return None


@rule("zero_")
def zero_(input: Any) -> Any:
    return fill_(input, 0)


@rule("fill_")
def fill_(input: Any, value: Any) -> Any:
    return copy_(input, value if isinstance(value, DualTensor) else input.new_full((), value))


@rule("copy_")
def copy_(input: Any, src: Any, non_blocking: bool = False) -> Any:
    if not isinstance(input, DualTensor):
        raise Unsupported("copy_", "it writes a value with tangents into a tensor without")
    source = lift(src, input.run).expand(input.shape).clone()  # or both would see one memory
    assign(input, source, aliased=input.run.has_alias(input), name="copy_")
    return input


def _refuse(name: str, reason: str) -> Any:
    raise Unsupported(name, reason)


@rules("backward register_hook torch.autograd.backward torch.autograd.grad")
def differentiate(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func.__name__
    _refuse(f"torch.autograd.{name}" if name == "grad" else name, "it differentiates in the model")


@rules("data_ptr numpy untyped_storage")
def raw_memory(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _refuse(func.__name__, "it hands out the memory of a tensor, which holds no tangents")
