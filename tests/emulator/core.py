"""The emulator by itself, for PTX that is written by hand: no CUDA, no library of this project."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from emulator import build

READ, WRITE = 1, 2
ORDERS = ("forwards", "backwards", "shuffled")
DEFAULTS = {
    "check_memory": 1, "check_races": 1, "order": 0, "seed": 1, "rsqrt": 0, "reciprocal": 0,
}  # fmt: skip


class PtxError(Exception):
    """PTX that the emulator doesn't understand, or a launch that it doesn't make."""


@cache
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build.build_core()))
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name in ("error", "take_faults", "coverage", "kernels", "instructions"):
        getattr(lib, f"emulator_{name}").restype = text
    lib.emulator_set.argtypes = [text, ctypes.c_int64]
    lib.emulator_count.argtypes, lib.emulator_count.restype = [text], ctypes.c_double
    lib.emulator_take_faults.argtypes = [ctypes.c_int64]
    lib.emulator_kernels.argtypes = [pointer]
    lib.emulator_kernel.argtypes, lib.emulator_kernel.restype = [pointer, text], pointer
    lib.emulator_prepare.argtypes = [pointer]
    lib.emulator_launch.argtypes = [pointer, pointer, pointer, size, pointer]
    lib.emulator_allow.argtypes = [
        pointer, ctypes.c_int64, ctypes.c_int, pointer, pointer, ctypes.c_int,
    ]  # fmt: skip
    lib.emulator_mark_unwritten.argtypes = [pointer, size]
    return lib


@contextmanager
def settings(**values: int) -> Iterator[None]:
    for name, value in values.items():
        assert library().emulator_set(name.encode(), value) == 0
    try:
        yield
    finally:
        for name in values:
            library().emulator_set(name.encode(), DEFAULTS[name])


def check(failed: int) -> None:
    if failed:
        raise PtxError(library().emulator_error().decode())


def take_faults(most: int = 8) -> list[str]:
    """What has gone wrong since the last call."""
    text: bytes = library().emulator_take_faults(most)
    return text.decode().splitlines()


def allow(array: np.ndarray, access: int = READ | WRITE, unwritten: bool = False) -> None:
    """Lets kernels read or write an array's elements, and no other bytes."""
    sizes = (ctypes.c_int64 * array.ndim)(*array.shape)
    strides = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
    lib, address = library(), array.ctypes.data
    lib.emulator_allow(address, array.itemsize, array.ndim, sizes, strides, access)
    if unwritten:
        lib.emulator_mark_unwritten(address, array.nbytes)


def forget_memory() -> None:
    library().emulator_forget_memory()


def known_instructions() -> set[str]:
    """Every form of an instruction but loads and stores."""
    names: bytes = library().emulator_instructions()
    return set(names.decode().splitlines())


def kernel(body: str, arrays: int = 0, name: str = "k") -> str:
    """A kernel of parameters `out`, `a`, `b`, ..., with registers to work with.

    %thread, %lane and %block say who a thread is; %rd1 is the address of `out`, or that of `a` if
    there is one, and %out that of the thread's own element of `out`, of 4 bytes.
    """
    names = ["out", *"abcdef"[:arrays]]
    parameters = ", ".join(f".param .u64 {name}" for name in names)
    return f"""
.version 9.0
.target sm_90
.address_size 64
.entry {name}({parameters})
{{
    .reg .pred %p<10>;
    .reg .b16 %h<10>;
    .reg .b32 %r<20>, %thread, %lane, %block, %size, %result;
    .reg .b64 %rd<20>, %out, %offset;
    mov.u32 %thread, %tid.x;
    mov.u32 %lane, %laneid;
    mov.u32 %block, %ctaid.x;
    mov.u32 %size, %ntid.x;
    mad.lo.u32 %size, %block, %size, %thread;
    ld.param.u64 %out, [out];
    mul.wide.u32 %offset, %size, 4;
    add.s64 %out, %out, %offset;
    ld.param.u64 %rd1, [{"a" if arrays else "out"}];
{body}
}}
"""


class Module:
    """The kernels of a PTX text."""

    def __init__(self, text: str) -> None:
        self.handle = ctypes.c_void_p()
        check(library().emulator_load(text.encode(), ctypes.byref(self.handle)))

    def names(self) -> list[str]:
        names: bytes = library().emulator_kernels(self.handle)
        return names.decode().split()

    def kernel(self, name: str) -> int:
        found: int | None = library().emulator_kernel(self.handle, name.encode())
        assert found is not None, name
        return found

    def prepare(self, name: str) -> None:
        """Parses a kernel, which its first launch does otherwise."""
        check(library().emulator_prepare(self.kernel(name)))

    def launch(
        self, name: str, *args: Any, grid: Any = 1, block: Any = 32, shared: int = 0
    ) -> None:
        """Arguments are numbers of numpy; of an array, the address is handed on."""
        kept = [
            np.uint64(a.ctypes.data).reshape(1) if isinstance(a, np.ndarray) else np.asarray(a)
            for a in args
        ]
        addresses = (ctypes.c_void_p * len(kept))(*(k.ctypes.data for k in kept))
        sizes = [
            (ctypes.c_uint * 3)(*np.atleast_1d(s), *(3 - np.size(s)) * [1]) for s in (grid, block)
        ]
        check(library().emulator_launch(self.kernel(name), *sizes, shared, addresses))


def coverage() -> list[tuple[str, int, list[tuple[int, bool, str]]]]:
    """Of every kernel its name and launches, and the lines of those that ran: reached or not."""
    kernels: list[tuple[str, int, list[tuple[int, bool, str]]]] = []
    for line in library().emulator_coverage().decode().splitlines():
        if line[0] == "\t":
            _, number, reached, text = line.split("\t", 3)
            kernels[-1][2].append((int(number), reached == "1", text))
        else:
            launches, name = line.split("\t")
            kernels.append((name, int(launches), []))
    return kernels
