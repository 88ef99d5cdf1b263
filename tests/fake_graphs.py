"""In the place of torch.cuda's streams and graphs, on the CPU.

A captured graph is a list of operators on memory that stays where it is, as it is on a device: a
replay runs them anew and calls no Python of the model. What was enqueued on which stream, and which
stream waited for which, is recorded; the emulated kernels record their streams themselves.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from emulator import configured, is_emulating
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OWN_STREAM = 5  # the one that a test is on


@dataclass
class Cuda:
    """What happened."""

    current: FakeStream
    streams: int = OWN_STREAM
    waits: list[tuple[int, int]] = field(default_factory=list)  # (who waits, for whom)
    mode: str = "default"  # of torch.cuda.set_sync_debug_mode
    capturing: bool = False
    captures: list[FakeGraph] = field(default_factory=list)
    fail_capture: str = ""  # the error that ends a capture


class FakeStream:
    def __init__(self, cuda: Cuda | None, number: int) -> None:
        self.cuda, self.number = cuda, number

    def wait_stream(self, other: FakeStream) -> None:
        assert self.cuda is not None
        self.cuda.waits.append((self.number, other.number))


class FakeGenerator:
    def __init__(self) -> None:
        self.state, self.restored = "before", False

    def clone_state(self) -> str:
        return self.state

    def graphsafe_set_state(self, state: str) -> None:
        self.restored = state == self.state


@dataclass
class Recorded:
    """One operator of a graph."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


class Recorder(TorchDispatchMode):
    """Notes operators, which a capture does not run: what they write to is put back at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Recorded] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def undo(self) -> None:
        for tensor, value in reversed(self.before.values()):
            if 0 in tensor.stride():  # expanded: nothing writes to it
                continue
            nan = tensor.isnan() & value.isnan()
            if not bool(((tensor == value) | nan).all()):
                tensor.copy_(value)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) not in self.before:
                self.before[id(value)] = value, value.clone()
        out = func(*args, **(kwargs or {}))
        self.ops.append(Recorded(func, args, kwargs or {}, out))
        return out


def memory_of(values: Any) -> set[int]:
    """Which storages: a view has its base's, what is lent until a write has one of its own."""
    return {t.untyped_storage()._cdata for t in tree_leaves(values) if isinstance(t, Tensor)}


def address(x: Tensor) -> int:
    """Asked for so that memory that is lent stays lent."""
    return int(torch._C._data_address(x))


class FakeGraph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.recorder, self.replays = cuda, Recorder(), 0
        self.captured_on: int | None = None
        self.fixed: dict[int, int] = {}

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.captured_on, self.cuda.capturing = self.cuda.current.number, True
        self.recorder.__enter__()

    def capture_end(self) -> None:
        self.recorder.__exit__(None, None, None)
        self.recorder.undo()
        self.cuda.capturing = False
        if self.cuda.fail_capture:
            raise RuntimeError(self.cuda.fail_capture)
        self.cuda.captures.append(self)
        self.fixed = {id(t): address(t) for t in self.tensors()}

    def tensors(self) -> Iterator[Tensor]:
        for op in self.recorder.ops:
            values = tree_leaves((op.args, op.kwargs, op.out))
            yield from (value for value in values if isinstance(value, Tensor))

    def replay(self) -> None:
        self.replays += 1
        for tensor in self.tensors():  # a device would read what lies there now
            assert address(tensor) == self.fixed[id(tensor)]
        for op in self.recorder.ops:
            out = op.func(*op.args, **op.kwargs)
            taken = memory_of((op.args, op.kwargs))
            for before, now in zip(tree_leaves(op.out), tree_leaves(out), strict=True):
                if isinstance(before, Tensor) and not memory_of(before) & taken:
                    before.copy_(now)


def waits(cuda: Cuda) -> None:
    """What an operation says that waits for the device."""
    if cuda.mode == "warn":
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=2)


@contextlib.contextmanager
def on_stream(cuda: Cuda, stream: FakeStream) -> Iterator[None]:
    before, cuda.current = cuda.current, stream
    try:
        with configured(stream=stream.number) if is_emulating() else contextlib.nullcontext():
            yield
    finally:
        cuda.current = before


def install(monkeypatch: pytest.MonkeyPatch) -> tuple[Cuda, FakeGenerator]:
    """Samplers capture graphs of tensors of the CPU from now on."""
    cuda = Cuda(FakeStream(None, OWN_STREAM))
    cuda.current.cuda = cuda
    generator = FakeGenerator()

    def new_stream(device: Any = None) -> FakeStream:
        cuda.streams += 1
        return FakeStream(cuda, cuda.streams)

    def set_mode(mode: Any) -> None:
        cuda.mode = mode

    class Generators:
        def __getitem__(self, index: Any) -> FakeGenerator:
            return generator

    for name, value in {
        "current_stream": lambda device=None: cuda.current,
        "Stream": new_stream,
        "stream": lambda stream: on_stream(cuda, stream),
        "CUDAGraph": lambda: FakeGraph(cuda),
        "get_sync_debug_mode": lambda: cuda.mode,
        "set_sync_debug_mode": set_mode,
        "default_generators": Generators(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("fastscore.samplers._inputs.wants_graph", lambda *_: True)
    return cuda, generator
