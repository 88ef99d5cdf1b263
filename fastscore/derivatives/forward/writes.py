"""Values with tangents that a model writes into tensors of its own: ``sums += h``.

From the first such write on, until the end of the run, every function that meets a plain tensor
which was written to, or a view of it, meets its value and tangents instead. Both are kept beside
the tensor that all its views share; the tensor itself holds NaN, for whoever reads its memory by
ways unseen. Of a tensor detached from it, the reader may expect no tangents: that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _len_torch_function_stack, _pop_mode, _push_mode

from fastscore._support.reach import modules_of
from fastscore.derivatives.forward.state import CALLER, Unsupported
from fastscore.derivatives.forward.tensor import (
    DualTensor,
    Run,
    find,
    is_in_place,
    lift,
    metadata,
)

REASON = "it writes a value with tangents into a tensor without"


class _Entry:
    """A tensor that was written to, and what stands for it."""

    def __init__(self, base: Tensor, run: Run) -> None:
        self.base = base
        self.before = None if base.requires_grad else base.detach().clone()
        self.whole = lift(base, run)
        self.lay_out()
        with torch.no_grad():
            base.fill_(torch.nan)

    def lay_out(self) -> None:
        """Each slice in the strides of the tensor itself, so that views of it can be taken."""
        stacked, base = self.whole.stacked, self.base
        if stacked[0].stride() == base.stride():
            return
        if self.whole.run.has_alias(self.whole):
            raise Unsupported("a write", REASON)
        strides = (base.numel(), *base.stride())
        out = torch.empty_strided(stacked.shape, strides, dtype=base.dtype, device=base.device)
        self.whole.materialised = out.copy_(stacked)

    def seen_as(self, view: Tensor) -> DualTensor:
        """The dual tensor that stands for ``view``; writing into it writes here."""
        if view is self.base:
            return self.whole
        if view._base is not self.base or view.dtype != self.base.dtype:
            raise Unsupported("detach", f"of a tensor where later {REASON}")
        self.lay_out()
        stacked = self.whole.stacked
        offset = stacked.storage_offset() + view.storage_offset() - self.base.storage_offset()
        shape, strides = (len(stacked), *view.shape), (stacked.stride(0), *view.stride())
        return DualTensor(stacked.as_strided(shape, strides, offset), self.whole.run)


class WrittenTensors(TorchFunctionMode):
    """The tensors that a run has written to, by where their memory is."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.entries: dict[int, _Entry] = {}

    def is_written(self, x: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return _memory(x) in self.entries

    def of_output(self, output: Any) -> Any:
        """What a model returns, which may be one of the tensors that it wrote to."""
        if not isinstance(output, Tensor):
            return output
        with torch._C.DisableTorchFunction():
            return self.with_tangents(output)

    def begin(self, name: str, target: Tensor) -> DualTensor:
        """The dual tensor that ``target``, a plain tensor, is from now on."""
        base = target._base if target._is_view() else target
        if base is None or not self._may_be_written(base):
            raise Unsupported(name, REASON)
        entry = self.entries[_memory(base)] = _Entry(base, self.run)
        return entry.seen_as(target)

    def _may_be_written(self, base: Tensor) -> bool:
        """Whether the tensor owns its memory and was not there before the run."""
        if type(base) is not Tensor or (base.is_leaf and base.requires_grad):
            return False
        if torch._C._are_functorch_transforms_active() or base.is_inference() != CALLER.inference:
            return False
        owns = base.untyped_storage().nbytes() == base.numel() * base.element_size()
        if not (owns and _is_dense(base)):
            return False
        return not (self.run.shares_memory(base) or _memory(base) in self._given())

    def _given(self) -> set[int]:
        """The memory of parameters, buffers and arguments."""
        model, *arguments = self.run.given
        tensors = [x for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, Tensor)]
        for module in modules_of(model):
            tensors += [p for p in module._parameters.values() if p is not None]
            tensors += [b for b in module._buffers.values() if b is not None]
        return {_memory(x) for x in tensors if type(x) is not DualTensor}

    def with_tangents(self, x: Any) -> Any:
        """x, or the dual tensor that stands for it; so within lists, tuples and dictionaries."""
        if isinstance(x, Tensor):
            if isinstance(x, DualTensor):
                return x
            entry = self.entries.get(_memory(x))
            if entry is None:
                return x
            if torch._C._functorch.is_functorch_wrapped_tensor(x):
                raise Unsupported("a function transform", f"of a tensor where {REASON}")
            return entry.seen_as(x)
        if type(x) in (list, tuple):
            return type(x)(map(self.with_tangents, x))
        if type(x) is dict:
            return {key: self.with_tangents(value) for key, value in x.items()}
        return x

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name, answer = find(func)
        if answer is metadata:
            return func(*args, **kwargs)
        duals, named = self.with_tangents(args), self.with_tangents(kwargs)
        if _same(args, duals) and _same(kwargs.values(), named.values()):
            return func(*args, **kwargs)
        result = DualTensor.__torch_function__(func, types, duals, named)
        if not args or duals[0] is args[0] or not is_in_place(name, kwargs):
            return result
        self.entries[_memory(args[0])].lay_out()
        return args[0] if result is duals[0] else result

    def enter(self) -> None:
        """For the rest of the run; inside of the modes that the model itself is in."""
        modes = _all_modes()
        for mode in (self, *modes):
            _push_mode(mode)
        CALLER.writes = self

    def finish(self, *, succeeded: bool) -> None:
        """Leave the mode, and in the tensors the values that they would have."""
        for mode in _all_modes():
            if mode is not self:
                _push_mode(mode)
        for entry in self.entries.values():
            if entry.before is not None:
                value = entry.whole.primal.detach() if succeeded else entry.before
                with torch.no_grad():
                    entry.base.copy_(value)


def _all_modes() -> list[Any]:
    """The active modes, the outermost first, after leaving them all."""
    modes = [_pop_mode() for _ in range(_len_torch_function_stack())]
    return modes[::-1]


def _same(before: Iterable[Any], after: Iterable[Any]) -> bool:
    """Whether nothing was replaced (a list or tuple is made anew, and then looked into)."""
    return all(a is b or _same_within(a, b) for a, b in zip(before, after, strict=True))


def _same_within(a: Any, b: Any) -> bool:
    if type(a) in (list, tuple):
        return _same(a, b)
    return type(a) is dict and _same(a.values(), b.values())


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each in a place of its own."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _memory(x: Tensor) -> int:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    try:
        return x.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without storage
        return -id(x)


def written_target(run: Run, name: str, target: Any) -> DualTensor:
    """The dual tensor that stands for a plain tensor which a value with tangents is written to."""
    if not isinstance(target, Tensor):
        raise Unsupported(name, REASON)
    writes = CALLER.writes
    if writes is None:
        writes = WrittenTensors(run)
        dual = writes.begin(name, target)
        writes.enter()
        return dual
    assert isinstance(writes, WrittenTensors)
    return writes.begin(name, target)
