"""The tensor that carries its tangents, and how a PyTorch function finds its rule.

A :class:`DualTensor` stands for a value x and M tangents, kept as one tensor ``stacked`` of shape
``(1 + M, *x.shape)``: slice 0 is the value, the others are the tangents. To a model it is an
ordinary tensor of x's shape. Every PyTorch function that meets one arrives in
``__torch_function__`` and is answered by the rule registered under the function's name; the rules
live in the modules beside this one. Whatever reaches a dual tensor below that level, in compiled
code that knows nothing of tangents, is refused and never answered without them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastscore.derivatives.forward.state import (
    CALLER,
    Unsupported,
    has_wrong_tangents,
    in_callers_mode,
    model_is_without_gradients,
    refuse_custom_function,
)
from fastscore.derivatives.forward.warned import warn_once

Rule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_RULES: dict[str, Rule] = {}
_FOUND: dict[Any, tuple[str, Rule | None]] = {}

# Where the functions that rules are written for live; None is a method of torch.Tensor.
_MODULES = (None, "torch", "torch.functional", "torch.nn.functional", "torch._tensor")
_IN_PLACE_DUNDERS = frozenset(
    f"__i{name}__"
    for name in "add and div floordiv lshift mod mul or pow rshift sub truediv xor".split()  # noqa: SIM905
)
# What asks or says something of a tensor that is not its value.
_NOT_OF_VALUES = frozenset(
    """.data .grad .grad_fn .requires_grad .requires_grad= backward data_ptr detach numpy
    register_hook requires_grad_ torch.autograd.backward torch.autograd.grad
    untyped_storage""".split()  # noqa: SIM905
)


class Deferred(Protocol):
    """A stacked tensor that is computed when it is first read."""

    def evaluate(self) -> Tensor: ...


class Run:
    """One evaluation of a model on dual tensors.

    Attributes:
        tangents: M.
        lazy: whether linear layers wait until their result is read.
        given: the model and its arguments.
        detached: whether the model has taken a value away from its tangents.
    """

    def __init__(
        self, tangents: int, *, lazy: bool = False, given: tuple[Any, ...] = (None,)
    ) -> None:
        self.tangents = tangents
        self.lazy = lazy
        self.given = given
        self._detached = False
        self._alive: dict[int, weakref.ref[DualTensor]] = {}

    @property
    def detached(self) -> bool:
        return self._detached

    @detached.setter
    def detached(self, value: bool) -> None:
        """A value that has left may be written to unseen: nothing waits any longer."""
        self._detached = value
        if value and self.lazy:
            self.lazy = False
            self._living()

    def remember(self, x: DualTensor) -> None:
        self._alive[id(x)] = weakref.ref(x)

    def has_alias(self, x: DualTensor) -> bool:
        """Whether another living dual tensor sees the memory of ``x``."""
        living = self._living()
        return any(_is_alias_of(other.stacked, x.stacked) for other in living if other is not x)

    def shares_memory(self, x: Tensor) -> bool:
        """Whether a living dual tensor sees the memory of ``x``, a plain tensor."""
        return any(_is_alias_of(other.stacked, x) for other in self._living())

    def _living(self) -> list[DualTensor]:
        living = [x for ref in tuple(self._alive.values()) if (x := ref()) is not None]
        for x in living:
            x.stacked  # noqa: B018  settles what is deferred, before its input can change
        return living


_is_alias_of: Callable[[Tensor, Tensor], bool] = torch._C._is_alias_of  # type: ignore[attr-defined]


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
            assert self.deferred is not None
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
        name, answer = find(func)
        if answer is metadata:
            return answer(func, args, kwargs)
        if not torch.is_grad_enabled() and model_is_without_gradients():
            refuse_custom_function()
            if name not in _NOT_OF_VALUES:
                return _without_gradients(name, func, args, kwargs)
        if kwargs.get("out") is not None:
            raise Unsupported(name, "it writes into a tensor given as out=")
        if args and not isinstance(args[0], DualTensor) and is_in_place(name, kwargs):
            return _write(name, answer, func, args, kwargs)
        if CALLER.record:
            return _answer(name, answer, func, args, kwargs)
        return in_callers_mode(_answer, name, answer, func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        raise Unsupported(str(func), "it is called from compiled code")


def _answer(
    name: str,
    answer: Rule | None,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """By the function's rule, by that of its sibling out of place, or by torch.func.jvp."""
    if kwargs.get("inplace", False):
        return _in_place(name, answer, func, args, {**kwargs, "inplace": False})
    if answer is not None:
        return answer(func, args, kwargs)
    if is_in_place(name, kwargs):
        return _in_place(name, *_out_of_place(name, func), args, kwargs)
    if name[0] == "." and name[-1] == "=":
        raise Unsupported(name, "it sets what a tensor is")
    return by_forward_ad(func, args, kwargs, name=name)


def is_in_place(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a function of this name writes into its first argument."""
    if name[-1] != "_":
        return bool(kwargs.get("inplace", False))
    return name in _IN_PLACE_DUNDERS or name == "__setitem__" or not name.endswith("__")


def _without_gradients(
    name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A constant, as it is for reverse mode; what is written into a tensor is a value alone."""
    run = run_of(args, kwargs)
    run.detached = True  # also settles what is deferred
    primals: dict[int, DualTensor] = {}

    def value(x: Any) -> Any:
        if not isinstance(x, DualTensor):
            return x
        primal = x.primal
        primals[id(primal)] = x
        return primal

    values, named = tree_map(value, args), tree_map(value, kwargs)
    if torch.is_inference_mode_enabled() and not CALLER.inference:
        # Autograd could not go on with a tensor made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            result = func(*values, **named)
    else:
        result = func(*values, **named)
    return tree_map(lambda x: primals.get(id(x), x), result)  # what was written into


def _write(
    name: str,
    answer: Rule | None,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A write into a tensor without tangents."""
    target = args[0]
    if isinstance(target, Tensor) and not _is_float(target):  # whole numbers have none
        return _without_gradients(name, func, args, kwargs)
    from fastscore.derivatives.forward.writes import written_target

    dual = written_target(run_of(args, kwargs), name, target)
    result = in_callers_mode(_answer, name, answer, func, (dual, *args[1:]), kwargs)
    return target if result is dual else result


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


def find(func: Callable[..., Any]) -> tuple[str, Rule | None]:
    try:
        return _FOUND[func]
    except (KeyError, TypeError):
        pass
    name: str = getattr(func, "__name__", None) or str(func)
    module = getattr(func, "__module__", None)
    if name in ("__get__", "__set__"):
        # A property: ".shape", and ".data=" for setting one.
        attribute = getattr(func, "__self__").__name__  # noqa: B009
        name = f".{attribute}{'=' if name == '__set__' else ''}"
        found = _RULES.get(name, metadata if name[-1] != "=" else None)
    elif module in _MODULES or str(module).startswith("torch._C"):
        found = _RULES.get(name)
    else:
        name, found = f"{module}.{name}", _RULES.get(f"{module}.{name}")
    if found is not None:
        _FOUND[func] = name, found
    return name, found


def metadata(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Shape, dtype, device and the like, which the dual tensor itself has."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


rules(
    """size dim ndimension numel nelement is_floating_point is_complex get_device element_size
    is_same_size is_tensor is_signed __hash__"""
)(metadata)


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
    if has_wrong_tangents(str(getattr(func, "__name__", "")), args, kwargs):
        raise Unsupported(func.__name__, "its tangents are wrong in PyTorch")
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
        raise Unsupported(name or str(getattr(func, "__name__", func)), reason) from error
    if name is not None:
        warn_once(name, f"has no rule; its tangents come from torch.func.jvp of {name} alone")
    # An output of integers, such as the indices of a maximum, has no tangent.
    results = iter(
        join(value, slope, run) if value.is_floating_point() or value.is_complex() else value
        for value, slope in zip(values, slopes, strict=True)
    )
    spec, others = structure
    return tree_unflatten([next(results) if x is Tensor else x for x in others], spec)


def along_all(
    along: Callable[..., Any],
    tangents: tuple[Tensor, ...],
    before_another: Callable[[], None] = lambda: None,
) -> Any:
    """Values and slopes along all tangents at once or, for what vmap can't do, one by one."""
    outputs: Any = (None, 0)
    try:
        return torch.func.vmap(along, out_dims=outputs, randomness="same")(*tangents)
    except Unsupported:
        raise
    except Exception:  # whatever a transform can't do; an error of the function's own comes again
        results = []
        for each in zip(*tangents, strict=True):
            before_another()
            results.append(along(*each))
        values, slopes = ([tree_flatten(x) for x in each] for each in zip(*results, strict=True))
        for first, *others in zip(*(leaves for leaves, _ in values), strict=True):
            if not all(torch.allclose(first, other, equal_nan=True) for other in others):
                raise  # it is random
        stacked = [
            torch.stack(each) for each in zip(*(leaves for leaves, _ in slopes), strict=True)
        ]
        return results[0][0], tree_unflatten(stacked, slopes[0][1])
