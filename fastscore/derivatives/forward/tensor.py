"""The tensor that carries its tangents, and how a PyTorch function finds its rule.

A :class:`DualTensor` stands for a value x and M tangents, kept as one tensor ``stacked`` of shape
``(1 + M, *x.shape)``: slice 0 is the value, the others are the tangents. To a model it is an
ordinary tensor of x's shape. Every PyTorch function that meets one arrives in
``__torch_function__`` and is answered by the rule registered under the function's name; the rules
live in the modules beside this one. Whatever reaches a dual tensor below that level, in compiled
code that knows nothing of tangents, is refused and never answered without them.
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

Rule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_RULES: dict[str, Rule] = {}
_FOUND: dict[Any, tuple[str, Rule | None]] = {}
_WARNED: set[str] = set()
_LIBRARIES = tuple(
    str(Path(f).parents[n]) + os.sep for f, n in ((__file__, 2), (torch.__file__, 0))
)

# Where the functions that rules are written for live; None is a method of torch.Tensor.
_MODULES = (None, "torch", "torch.functional", "torch.nn.functional", "torch._tensor")
_IN_PLACE_DUNDERS = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__"}
# The autograd.Function whose forward a code object is, or None.
_FUNCTIONS: dict[CodeType, type | None] = {}


class Unsupported(Exception):
    """A function that can't be given tangents on its own: the whole model needs another way."""

    def __init__(self, function: str, reason: str) -> None:
        super().__init__(f"{function}: {reason}")
        self.function = function


class Deferred(Protocol):
    """A stacked tensor that is computed when it is first read."""

    def evaluate(self) -> Tensor: ...


class Run:
    """One evaluation of a model on dual tensors.

    Attributes:
        tangents: M.
        lazy: whether linear layers wait until their result is read.
        detached: whether the model has taken a value away from its tangents.
    """

    def __init__(self, tangents: int, *, lazy: bool = False) -> None:
        self.tangents = tangents
        self.lazy = lazy
        self.detached = False
        self._alive: dict[int, weakref.ref[DualTensor]] = {}

    def remember(self, x: DualTensor) -> None:
        self._alive[id(x)] = weakref.ref(x)

    def has_alias(self, x: DualTensor) -> bool:
        """Whether another living dual tensor sees the memory of ``x``."""
        living = [ref() for ref in tuple(self._alive.values())]
        # Reading all of them also settles what is deferred, before its input can change.
        others = [other.stacked for other in living if other is not None and other is not x]
        return any(torch._C._is_alias_of(other, x.stacked) for other in others)


class DualTensor(torch.Tensor):
    """A value and its tangents, in one tensor of shape ``(1 + M, ...)``."""

    run: Run
    materialised: Tensor | None
    deferred: Deferred | None

    @staticmethod
    def __new__(cls, stacked: Tensor, run: Run) -> DualTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, stacked.shape[1:], dtype=stacked.dtype, device=stacked.device
        )

    def __init__(self, stacked: Tensor, run: Run) -> None:
        self.run = run
        self.materialised = stacked
        self.deferred = None
        run.remember(self)

    @property
    def stacked(self) -> Tensor:
        """``(1 + M, ...)``: the value, then the tangents."""
        if self.materialised is None:
            self.materialised = self.deferred.evaluate()
            self.deferred = None
        return self.materialised

    @property
    def primal(self) -> Tensor:
        """The value alone, a view."""
        return self.stacked[0]

    def parts(self) -> tuple[Tensor, Tensor]:
        """The value and the tangents. Their gradients come back in one concatenation."""
        value, tangents = self.stacked.split([1, self.run.tangents])
        return value.squeeze(0), tangents

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = {} if kwargs is None else dict(kwargs)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        name, answer = _find(func)
        if answer is _metadata:
            return answer(func, args, kwargs)
        if not torch.is_grad_enabled():
            _refuse_custom_function()
        if kwargs.get("out") is not None:
            raise Unsupported(name, "it writes into a tensor given as out=")
        if kwargs.get("inplace", False):
            return _in_place(name, answer, func, args, {**kwargs, "inplace": False})
        if answer is not None:
            return answer(func, args, kwargs)
        if name in _IN_PLACE_DUNDERS or (name.endswith("_") and not name.endswith("__")):
            return _in_place(name, *_out_of_place(name, func), args, kwargs)
        return by_forward_ad(func, args, kwargs, name=name)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        raise Unsupported(str(func), "it is called from compiled code")


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function with the signature of the PyTorch functions ``names``."""

    def register(f: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            _RULES[name] = lambda func, args, kwargs: f(*args, **kwargs)
        return f

    return register


def rules(names: str | Iterable[str]) -> Callable[[Rule], Rule]:
    """Register one function of (func, args, kwargs) for all of ``names`` (a string: its words)."""

    def register(f: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names.split() if isinstance(names, str) else names, f))
        return f

    return register


def _find(func: Callable[..., Any]) -> tuple[str, Rule | None]:
    try:
        return _FOUND[func]
    except (KeyError, TypeError):
        pass
    name = getattr(func, "__name__", None) or str(func)
    module = getattr(func, "__module__", None)
    if name in ("__get__", "__set__"):
        # A property: ".shape", and ".data=" for setting one.
        name = "." + func.__self__.__name__ + ("=" if name == "__set__" else "")
        found = _RULES.get(name, _metadata if name[-1] != "=" else None)
    elif module in _MODULES or module.startswith("torch._C"):
        found = _RULES.get(name)
    else:
        name, found = f"{module}.{name}", _RULES.get(f"{module}.{name}")
    if found is not None:
        _FOUND[func] = name, found
    return name, found


def _metadata(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Shape, dtype, device and the like, which the dual tensor itself has."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


rules(
    """size dim ndimension numel nelement is_floating_point is_complex get_device element_size
    is_same_size is_tensor is_signed __hash__"""
)(_metadata)


def _refuse_custom_function() -> None:
    """Refuse to look inside a custom autograd.Function.

    Its forward runs with gradients off, so that a graph made there would be lost, and what it does
    to a tangent is for its own backward to say. No hook of PyTorch's tells, so the call stack does:
    by the frame of forward, since that of apply is not Python's in every version of PyTorch.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not evaluate.__code__:
        code = frame.f_code
        if code not in _FUNCTIONS:
            _FUNCTIONS[code] = _function_of(code)
        function = _FUNCTIONS[code]
        if function is not None:
            raise Unsupported(function.__qualname__, "it is an autograd.Function")
        frame = frame.f_back


def _function_of(code: CodeType) -> type | None:
    left = [torch.autograd.Function]
    while left:
        function = left.pop()
        if getattr(function.forward, "__code__", None) is code:
            return function
        left.extend(function.__subclasses__())
    return None


def evaluate(
    model: Callable[..., Any], x: DualTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``model(x, *args, **kwargs)``, in a frame of its own that bounds the search above."""
    return model(x, *args, **kwargs)


def _out_of_place(name: str, func: Callable[..., Any]) -> tuple[Rule | None, Callable[..., Any]]:
    """The rule and the function without the change in place, for ``add_`` or ``__iadd__``."""
    base = f"__{name[3:]}" if name in _IN_PLACE_DUNDERS else name[:-1]
    answer = _RULES.get(base)
    plain = getattr(torch.Tensor, base, None) or getattr(torch, base, None)
    if answer is not None and plain is not None:
        return answer, plain

    def on_copy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = x.clone()
        func(x, *args, **kwargs)
        return x

    on_copy.__name__ = base
    return answer, on_copy


def _in_place(
    name: str,
    answer: Rule | None,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Compute out of place, then let the target show the result.

    Autograd keeps what it has saved. Where another dual tensor sees the same memory, the result is
    written there as well.
    """
    target = args[0]
    if not isinstance(target, DualTensor):
        raise Unsupported(name, "it writes a value with tangents into a tensor without")
    aliased = target.run.has_alias(target)
    source = DualTensor(target.stacked.clone(), target.run) if aliased else target
    args = (source, *args[1:])
    if answer is None:
        result = by_forward_ad(func, args, kwargs, name=name)
    else:
        result = answer(func, args, kwargs)
    assign(target, result, aliased=aliased, name=name)
    return target


def assign(target: DualTensor, result: Any, *, aliased: bool, name: str) -> None:
    """Give ``target`` the value and tangents of ``result``, of the same shape."""
    stacked = lift(result, target.run).stacked.to(target.dtype)
    if stacked.shape[1:] != target.shape:
        raise Unsupported(name, "it changes the shape of a tensor in place")
    if aliased:
        target.stacked.copy_(stacked)
    else:
        target.materialised, target.deferred = stacked, None


def lift(x: Any, run: Run) -> DualTensor:
    """``x`` as a dual tensor: a plain tensor gets zero tangents."""
    if isinstance(x, DualTensor):
        return x
    zeros = x.new_zeros(()).expand(run.tangents, *x.shape)
    return DualTensor(torch.cat([x.unsqueeze(0), zeros]), run)


def join(value: Tensor, tangents: Tensor, run: Run) -> DualTensor:
    """The dual tensor of a value and its tangents ``(M, *value.shape)``."""
    return DualTensor(torch.cat([value.unsqueeze(0), tangents.to(value.dtype)]), run)


def run_of(*args: Any) -> Run:
    """The run that the first dual tensor among the arguments belongs to."""
    return next(x.run for x in tree_flatten(args)[0] if isinstance(x, DualTensor))


def as_function_of(
    chosen: Callable[[Any], bool], func: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """``func`` as a function of the chosen ones among its arguments alone, and those arguments."""
    leaves, spec = tree_flatten((args, kwargs))
    where = [i for i, x in enumerate(leaves) if chosen(x)]

    def call(*values: Any) -> Any:
        filled = list(leaves)
        for i, x in zip(where, values, strict=True):
            filled[i] = x
        new_args, new_kwargs = tree_unflatten(filled, spec)
        return func(*new_args, **new_kwargs)

    return call, [leaves[i] for i in where]


def is_dual(x: Any) -> bool:
    return isinstance(x, DualTensor)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def over_tangents(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """``func`` on value and tangents, one by one: right for what is linear in its tensors together.

    Floating-point tensors among the arguments without tangents get zero tangents.
    """
    run = run_of(args, kwargs)
    call, tensors = as_function_of(_is_float, func, args, kwargs)
    slices = zip(*(lift(x, run).stacked.unbind(0) for x in tensors), strict=True)
    results = [tree_flatten(call(*each)) for each in slices]
    stacked = [
        torch.stack(leaves) for leaves in zip(*(leaves for leaves, _ in results), strict=True)
    ]
    return wrap(tree_unflatten(stacked, results[0][1]), run)


def over_tangents_as_view(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """:func:`over_tangents` for views, which must stay views of the stacked tensor."""
    run = run_of(args, kwargs)
    call, tensors = as_function_of(_is_float, func, args, kwargs)
    return wrap(torch.func.vmap(call)(*(lift(x, run).stacked for x in tensors)), run)


def wrap(result: Any, run: Run) -> Any:
    """Every stacked tensor in ``result`` as a dual tensor."""
    leaves, spec = tree_flatten(result)
    return tree_unflatten([DualTensor(x, run) for x in leaves], spec)


def by_forward_ad(
    func: Callable[..., Any], args: Any, kwargs: dict[str, Any], *, name: str | None = None
) -> Any:
    """``func`` through torch.func.jvp, over all tangents at once; warns when a name is given."""
    run = run_of(args, kwargs)
    call, duals = as_function_of(is_dual, func, args, kwargs)
    primals, tangents = zip(*(x.parts() for x in duals), strict=True)

    structure: list[Any] = []

    def tensors_only(*values: Tensor) -> tuple[Tensor, ...]:
        results, spec = tree_flatten(call(*values))
        structure[:] = spec, [Tensor if isinstance(x, Tensor) else x for x in results]
        return tuple(x for x in results if isinstance(x, Tensor))

    def along(*directions: Tensor) -> Any:
        return torch.func.jvp(tensors_only, primals, directions)

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward mode
            values, slopes = along_all(along, tangents)
    except Exception as error:
        reason = f"torch.func.jvp raises {type(error).__name__}: {error}".splitlines()[0]
        raise Unsupported(name or getattr(func, "__name__", str(func)), reason) from error
    if name is not None:
        warn_once(name, f"has no rule; its tangents come from torch.func.jvp of {name} alone")
    # An output of integers, such as the indices of a maximum, has no tangent.
    duals = iter(
        join(value, slope, run) if value.is_floating_point() or value.is_complex() else value
        for value, slope in zip(values, slopes, strict=True)
    )
    spec, others = structure
    return tree_unflatten([next(duals) if x is Tensor else x for x in others], spec)


def along_all(along: Callable[..., Any], tangents: tuple[Tensor, ...]) -> Any:
    """Values and slopes along all tangents at once or, for what vmap can't do, one by one."""
    try:
        return torch.func.vmap(along, out_dims=(None, 0), randomness="same")(*tangents)  # type: ignore[arg-type]
    except Exception:  # whatever a transform can't do; an error of the function's own comes again
        results = [along(*each) for each in zip(*tangents, strict=True)]
        values, slopes = ([tree_flatten(x) for x in each] for each in zip(*results, strict=True))
        for first, *others in zip(*(leaves for leaves, _ in values), strict=True):
            if not all(torch.allclose(first, other, equal_nan=True) for other in others):
                raise  # it is random
        stacked = [
            torch.stack(each) for each in zip(*(leaves for leaves, _ in slopes), strict=True)
        ]
        return results[0][0], tree_unflatten(stacked, slopes[0][1])


def warn_once(function: str, message: str) -> None:
    """Warn about ``function``, once in a process, at the line of the caller's that led to it."""
    if function in _WARNED:
        return
    _WARNED.add(function)
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"fastscore.jvp: {function} {message}", UserWarning, stacklevel=level)
