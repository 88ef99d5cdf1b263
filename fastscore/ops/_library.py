"""Loads the compiled library; everything that talks to ``torch.ops.fastscore`` imports this."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastscore._support.checks import fail, fail_type
from fastscore._support.tangents import refuse_tangents

try:
    from fastscore import _C
except ImportError as error:
    _package = Path(__file__).parents[1]
    _sources = (_package.parent / "setup.py").exists() and not list(_package.glob("_C*.so"))
    _hint = (
        f"Python found the sources in {_package.parent}, which are not built in place: import an "
        "installed fastscore from another directory, or install the checkout with "
        "`pip install --no-build-isolation -e .`."
        if _sources
        else "Build it with `pip install --no-build-isolation .` in a checkout, with the torch "
        "that you run."
    )
    raise ImportError(
        "fastscore: the compiled extension fastscore._C could not be loaded "
        f"(torch {torch.__version__}): {error}. {_hint}"
    ) from error

__all__ = [
    "_C",
    "Differentiable",
    "call",
    "call_",
    "check_same_device",
    "kept",
    "mapped_like",
    "ops",
    "traced",
]

ops = torch.ops.fastscore

_WRONG_TYPE = re.compile(
    r"of type '([^']+)' for argument '([^']+)' but instead found type '([^']+)'"
)


def _raise_type_error(fn: str, error: RuntimeError) -> NoReturn:
    """The dispatcher's complaint of a wrong Python type, in this library's words."""
    found = _WRONG_TYPE.search(str(error))
    if found is None:
        raise error
    kind, arg, got = found.groups()
    if kind == got == "int":
        raise ValueError(f"{fn}: {arg} must be an integer below 2^63") from None
    raise TypeError(f"{fn}: {arg} must be a {kind}, got {got}") from None


def call(fn: str, op: Callable[..., Any], *args: Any) -> Any:
    """``op(*args)``; a wrong type is a TypeError, as everywhere else."""
    refuse_tangents(fn, args)
    try:
        return op(*args)
    except RuntimeError as error:
        _raise_type_error(fn, error)


def refuse_gradients(fn: str, names: Iterable[str], args: tuple[Any, ...]) -> None:
    """An op in place has no derivative. ``names`` are those of the leading ``args``."""
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        for name, arg in zip(names, args, strict=False):
            if any(t.requires_grad for t in _tensors(arg)):
                expected = "a tensor that needs no gradient (or call it under torch.no_grad())"
                fail(fn, name, expected, "one that requires grad")


def _tensors(arg: Any) -> list[Tensor]:
    """Those of an argument: itself, or the ones in a list."""
    return [t for t in (arg if isinstance(arg, (list, tuple)) else [arg]) if isinstance(t, Tensor)]


def call_(
    fn: str,
    op: Callable[..., Any],
    names: tuple[str, ...],
    out: Tensor,
    *args: Any,
    also: tuple[Tensor, ...] = (),
) -> Tensor:
    """``op(out, *args)`` in place: refuses gradients, and tells autograd that ``out`` changed.

    ``names`` are those of ``out`` and of the leading ``args``, the ones that may require grad;
    ``also`` those among ``args`` that the op changes too.
    """
    if torch.compiler.is_compiling():
        op(out, *args)
        return out
    refuse_gradients(fn, names, (out, *args))
    refuse_tangents(fn, (out, *args))
    try:
        op(out, *args)
    except RuntimeError as error:
        _raise_type_error(fn, error)
    torch._C._increment_version((out, *also))
    return out


def check_same_device(fn: str, like: Tensor, **others: Tensor | None) -> None:
    """For fake kernels, which are also what a meta tensor among real ones ends up in."""
    for name, other in others.items():
        if other is not None and other.device != like.device:
            fail(fn, name, f"on {like.device}", f"a tensor on {other.device}")


def check_bounds(fn: str, clamp: Any, name: str = "clamp") -> tuple[float | None, float | None]:
    """(low, high) of the argument ``clamp``, or ``name``, either or both None."""
    if clamp is None:
        return None, None
    if not isinstance(clamp, (tuple, list)):
        fail_type(fn, name, "None or a pair (low, high)", clamp)
    if len(clamp) != 2:
        fail(fn, name, "None or a pair (low, high)", clamp)
    for end in clamp:
        if end is not None and (isinstance(end, bool) or not isinstance(end, numbers.Real)):
            fail_type(fn, name, "None or a pair of numbers (low, high)", end)
    return clamp[0], clamp[1]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over a sample: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def kept(samples: Tensor | None) -> Tensor | None:
    """Sample numbers as they are now: the caller may change them before backward runs."""
    return None if samples is None else samples.clone()


def mapped_like(key: Tensor, samples: Tensor | None) -> Tensor:
    """Which of the two a tensor of noise is made from, so that vmap may map either."""
    if samples is None or torch.compiler.is_compiling():
        return key
    return samples if torch._C._functorch.is_batchedtensor(samples) else key


def traced() -> bool:
    """Whether torch.compile or torch.func, not eager autograd, will see what runs now."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class Differentiable(torch.autograd.Function):
    """An op with a derivative; subclasses give forward, setup_context and backward.

    ``run`` is what wrappers call. PyTorch binds the arguments of a function with a setup_context by
    their names in each call, which costs more than a small kernel does; so eager calls go through a
    twin without one, and only torch.func and torch.compile see the function itself.
    """

    generate_vmap_rule = True
    _eager: type[torch.autograd.Function]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if Differentiable not in cls.__bases__:
            return

        def forward(ctx: Any, *args: Any) -> Any:
            out = cls.forward(*args)
            cls.setup_context(ctx, args, out)
            return out

        members = {"forward": staticmethod(forward), "backward": staticmethod(cls.backward)}
        cls._eager = type(f"{cls.__name__}Eager", (torch.autograd.Function,), members)

    @classmethod
    def run(cls, fn: str, *args: Any) -> Any:
        """The op, recorded for autograd where that is on."""
        refuse_tangents(fn, args)
        if traced():
            return cls.apply(*args)
        try:
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
                return cls._eager.apply(*args)
            return cls.forward(*args)
        except RuntimeError as error:
            _raise_type_error(fn, error)
