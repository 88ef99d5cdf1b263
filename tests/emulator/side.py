"""The emulated side: ``torch.ops.fastscore`` on CPU tensors by the CUDA kernels' own PTX.

    with emulated(), configured(multiprocessors=1, order="shuffled", seed=3):
        fastscore.random.normal(key, (5, 7))  # host code and kernel of csrc/cuda/random.cu

Whatever the emulator finds wrong is raised by the op that did it, as an ``EmulationError``.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emulator import build

ARCH = "FASTSCORE_TEST_EMULATED_ARCH"
ORDERS = ("forwards", "backwards", "shuffled")
HASHED = 100  # a rounding that hangs on the argument: see emulator.h
DEFAULTS = {
    "order": "forwards",
    "seed": 1,
    "check_memory": True,
    "check_races": True,
    "rsqrt": 0,
    "reciprocal": 0,
    "multiprocessors": 132,
    "device": 0,
    "stream": 0,
}

OF_DEVICES = {"multiprocessors", "device", "stream"}
FAULTS = 8  # of an op, that many are told in full


class EmulationError(AssertionError):
    """An op did what no kernel may do."""


@dataclass(frozen=True)
class Launch:
    """One launch: sizes in x, y and z; the current device, and the stream's number of its own."""

    op: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    device: int
    stream: int


@dataclass(frozen=True)
class Line:
    """One instruction of a kernel: its line in the PTX file."""

    number: int
    reached: bool
    text: str


@dataclass(frozen=True)
class Kernel:
    """What was reached of a kernel; of one that was never launched there are no lines."""

    mangled: str
    name: str
    launches: int
    lines: list[Line] = field(default_factory=list)

    @property
    def family(self) -> str:
        """Of its source file, which stands in the name of an anonymous namespace."""
        found = re.search(r"_\d+_([a-z]\w*?)_cu_", self.mangled)
        return found[1] if found else "?"


@dataclass(frozen=True)
class Counts:
    """Since the library was loaded."""

    launches: int
    warp_instructions: int
    thread_instructions: int
    seconds: float


class _State:
    """What there is of it in this process; the lock is held while an op runs."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.library: ctypes.CDLL | None = None
        self.path: Path | None = None
        self.failure: Exception | None = None
        self.depth = 0
        self.registration: torch.library.Library | None = None
        self.records: list[list[Launch]] = []
        self.settings = dict(DEFAULTS)


_state = _State()


def why_not() -> str | None:
    """Why ops can't be emulated here, if they can't."""
    if not hasattr(torch.library.Library, "_destroy"):
        return f"torch {torch.__version__} can't take an op's kernel back"
    return build.why_not()


def load(arch: str | None = None, library: Path | None = None) -> Path:
    """Builds and loads the library, once in a process; ``library`` is one that is built already."""
    with _state.lock:
        if _state.path is not None and arch is None and library is None:
            return _state.path
        if _state.failure is not None:
            raise _state.failure
        try:
            path = library or build.build_library(arch or os.environ.get(ARCH, "90"))
        except Exception as failure:
            _state.failure = failure  # minutes of a compiler: once is enough
            raise
        if _state.path is not None:
            if path != _state.path:
                raise RuntimeError(f"{_state.path} is loaded, and a process has room for one alone")
            return path
        import fastscore  # noqa: F401 (whose ops are the ones to emulate)

        torch.ops.load_library(str(path))
        loaded = ctypes.CDLL(str(path))
        loaded.emulated_begin.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int]
        loaded.emulator_take_faults.argtypes = [ctypes.c_int64]
        loaded.emulator_count.argtypes = [ctypes.c_char_p]
        loaded.emulator_count.restype = ctypes.c_double
        for setter in (loaded.emulated_set, loaded.emulator_set):
            setter.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        for text in ("emulator_take_faults", "emulator_coverage"):
            getattr(loaded, text).restype = ctypes.c_char_p
        for text in ("emulated_launches", "emulated_readable"):
            getattr(loaded, text).restype = ctypes.c_char_p
        _state.library, _state.path = loaded, path
        return path


def _loaded() -> ctypes.CDLL:
    load()
    assert _state.library is not None
    return _state.library


# ---- ops -----------------------------------------------------------------------------------


@cache
def op_names() -> tuple[str, ...]:
    """Every op of the library."""
    names = torch._C._dispatch_get_all_op_names()
    return tuple(sorted(n.partition("::")[2] for n in names if n.startswith("fastscore::")))


@cache
def _op(name: str) -> tuple[Any, tuple[int, ...]]:
    """The emulated op, and which of its arguments its schema says that it changes."""
    op = getattr(torch.ops.fastscore_emulated, name).default
    arguments = enumerate(op._schema.arguments)
    return op, tuple(i for i, a in arguments if a.alias_info and a.alias_info.is_write)


def run(name: str, *args: Any) -> Any:
    """One op of the CUDA sources on tensors of the CPU."""
    library = _loaded()
    op, changed = _op(name)
    given = [args[i] for i in changed if i < len(args)]  # defaults at the end are left out
    written = [x.data_ptr() for x in given if isinstance(x, Tensor)]
    with _state.lock:
        library.emulated_begin((ctypes.c_void_p * len(written))(*written), len(written))
        try:
            out = op(*args)
        except Exception as error:
            _raise_faults(name, args, error)
            raise
        _raise_faults(name, args)
        for record in _state.records:
            record += _launches_of(name)
    return out


def _raise_faults(name: str, args: tuple[Any, ...], error: Exception | None = None) -> None:
    faults = _loaded().emulator_take_faults(FAULTS).decode()
    if faults:
        came = ", ".join(
            f"{str(a.dtype)[6:]}{tuple(a.shape)} strides {a.stride()}"
            if isinstance(a, Tensor)
            else repr(a)
            for a in args
        )
        raise EmulationError(f"{name}({came}):\n{faults}") from error


@cache
def readable(mangled: str) -> str:
    """A kernel's name in the source, without what is the same in all of them."""
    name: str = _loaded().emulated_readable(mangled.encode()).decode()
    return re.sub(r"^void |\(anonymous namespace\)::|fastscore::cuda::|\(.*\)$", "", name)


def _launches_of(op: str) -> list[Launch]:
    found: list[Launch] = []
    for line in _loaded().emulated_launches().decode().splitlines():
        *numbers, name = line.split("\t")
        n = [int(number) for number in numbers]
        found.append(Launch(op, name, (n[0], n[1], n[2]), (n[3], n[4], n[5]), n[6], n[7]))
    return [replace(launch, kernel=readable(launch.kernel)) for launch in found]


def _register() -> torch.library.Library:
    """In the place of the CPU's kernels, until it is destroyed."""
    library = torch.library.Library("fastscore", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Warning only once for all operators")
        for name in op_names():
            library.impl(name, partial(run, name), "CPU", allow_override=True)
    return library


@contextmanager
def emulated() -> Iterator[None]:
    """Every op of the library on CPU tensors, in any thread, runs the CUDA kernels, emulated."""
    load()
    with _state.lock:
        if _state.depth == 0:
            _state.registration = _register()
        _state.depth += 1
    try:
        yield
    finally:
        with _state.lock:
            _state.depth -= 1
            if _state.depth == 0 and _state.registration is not None:
                _state.registration._destroy()
                _state.registration = None


def is_emulating() -> bool:
    """Whether ops are emulated now."""
    return _state.depth > 0


# ---- settings and what happened ---------------------------------------------------------------


def _apply(settings: dict[str, Any]) -> None:
    library = _loaded()
    for name, value in settings.items():
        number = ORDERS.index(value) if name == "order" else int(value)
        setter = library.emulated_set if name in OF_DEVICES else library.emulator_set
        if setter(name.encode(), number) != 0:
            raise ValueError(f"configured: there is no setting {name}")
        _state.settings[name] = value


@contextmanager
def configured(**settings: Any) -> Iterator[None]:
    """Other settings for a while.

    Args:
        order: "forwards", "backwards" or "shuffled": in which blocks, and the warps of one, run.
        seed: of the shuffled order and of hashed roundings.
        check_memory, check_races: whether each access is checked.
        rsqrt, reciprocal: units in the last place that the approximate instructions are off, or
            HASHED.
        multiprocessors: of the device; with 1, kernels whose blocks loop do loop.
        device: which one the tensors lie on, 0 to 3.
        stream: the number of PyTorch's current stream on every device.
    """
    unknown = settings.keys() - DEFAULTS.keys()
    if unknown:
        raise ValueError(f"configured: there is no setting {', '.join(sorted(unknown))}")
    with _state.lock:
        before = {name: _state.settings[name] for name in settings}
        _apply(settings)
    try:
        yield
    finally:
        with _state.lock:
            _apply(before)


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """A list of the launches from now on; those of an op that failed are not in it."""
    record: list[Launch] = []
    with _state.lock:
        _state.records.append(record)
    try:
        yield record
    finally:
        with _state.lock:
            _state.records = [other for other in _state.records if other is not record]


def counts() -> Counts:
    """How much was emulated; zeros if nothing is loaded."""
    if _state.library is None:
        return Counts(0, 0, 0, 0.0)
    count = _state.library.emulator_count
    launches, warps, threads = (
        int(count(name)) for name in (b"launches", b"warp_instructions", b"thread_instructions")
    )
    return Counts(launches, warps, threads, count(b"seconds"))


def coverage() -> list[Kernel]:
    """Of every kernel, the instructions that any thread has reached since loading."""
    if _state.library is None:
        return []
    with _state.lock:
        text: str = _state.library.emulator_coverage().decode()
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if line.startswith("\t"):
            _, number, reached, words = line.split("\t", 3)
            kernels[-1].lines.append(Line(int(number), reached == "1", words))
        else:
            launches_of_it, mangled = line.split("\t")
            kernels.append(Kernel(mangled, readable(mangled), int(launches_of_it)))
    return kernels
