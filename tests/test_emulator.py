"""What each instruction gives in the emulator, over numbers where it is easy to be wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from emulator import build, core

pytestmark = pytest.mark.skipif(build.why_not_core() is not None, reason="no C++ compiler")

BITS = {"pred": 1, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32} | {
    f"{kind}{bits}": bits for kind in "busf" for bits in (16, 32, 64)
}
INTEGERS = [f"{kind}{bits}" for kind in "su" for bits in (16, 32, 64)]
SINGLE_NAN, DOUBLE_NAN = 0x7FFFFFFF, 0xFFF8000000000000


# ---- numbers of a type, as bits and as Python's -----------------------------------------------


def number(bits: int, kind: str) -> Any:
    if kind == "f32":
        return np.uint32(bits).view(np.float32)
    if kind == "f64":
        return np.uint64(bits).view(np.float64)
    width = BITS[kind]
    return bits - (1 << width) if kind[0] == "s" and bits >> (width - 1) else bits


def bits_of(value: Any, kind: str, operands: Iterable[Any] = ()) -> int:
    if kind == "f32":
        return SINGLE_NAN if np.isnan(value) else int(np.float32(value).view(np.uint32))
    if kind == "f64" and np.isnan(value):
        nans = [x for x in operands if isinstance(x, np.float64) and np.isnan(x)]
        return int(nans[0].view(np.uint64)) | 1 << 51 if nans else DOUBLE_NAN
    if kind == "f64":
        return int(np.float64(value).view(np.uint64))
    return int(value) & ((1 << BITS[kind]) - 1)


def edges(kind: str) -> list[int]:
    if kind == "pred":
        return [0, 1]
    if kind == "f32":
        return [
            0, 0x80000000, 1, 0x807FFFFF, 0x00800000, 0x3F800000, 0xBF800000, 0x3F7FFFFF,
            0x40490FDB, 0xC0000000, 0x4B800001, 0x0C812345, 0x7F7FFFFF, 0x7F800000, 0xFF800000,
            0x7F812345, 0xFFC12345,
        ]  # fmt: skip
    if kind == "f64":
        return [
            0, 1 << 63, 1, 0x800FFFFFFFFFFFFF, 1 << 52, 0x3FF0000000000000, 0xBFF0000000000000,
            0x400921FB54442D18, 0xC000000000000001, 0x3CA0000000000001, 0x7FEFFFFFFFFFFFFF,
            0x7FF0000000000000, 0xFFF0000000000000, 0x7FF0000000012345, 0xFFF8000000000123,
        ]  # fmt: skip
    w = BITS[kind]
    top, all_ones = 1 << (w - 1), (1 << w) - 1
    few = [0, 1, 2, 7, top - 1, top, top + 1, all_ones - 1, all_ones, 0x5A5A5A5A5A5A5A5A & all_ones]
    return [*few, 15, 16, 31, 32, 33, 63, 64, 65][: 18 if w >= 32 else 12]


def rounded(exact: Fraction, kind: str) -> Any:
    """The nearest number, ties to even; infinity beyond the largest."""
    digits, least, most = (24, -149, 128) if kind == "f32" else (53, -1074, 1024)
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    nearest = round(size / unit) * unit  # of Python's, which rounds ties to even
    value = math.inf if nearest >= Fraction(2) ** most else float(nearest)
    return math.copysign(value, 1 if exact > 0 else -1)


def fma(kind: str) -> Callable[..., Any]:
    def f(a: Any, b: Any, c: Any) -> Any:
        product = a * b
        if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)):
            # What is infinite or NaN needs no exact product, which may not be infinite by overflow.
            return product + c if not (np.isfinite(a) and np.isfinite(b)) else c
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        if exact == 0:  # the sign of a zero: of the sum of two zeros, or of numbers that cancel
            return product + c if a == 0 or b == 0 else type(a)(0)
        return rounded(exact, kind)

    return f


# ---- every instruction: its result, its operands, what it is ------------------------------------


@dataclass(frozen=True)
class Case:
    out: str
    ins: tuple[str, ...]
    what: Callable[..., Any]


def shifted_right(a: int, by: int) -> int:
    return a >> min(by, 64)


def quotient(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a if b == 0 else a - b * quotient(a, b)


def extreme(pick: Callable[..., Any]) -> Callable[..., Any]:
    def f(a: Any, b: Any) -> Any:
        if np.isnan(a) or np.isnan(b):
            return b if np.isnan(a) else a
        return pick(a, b, key=lambda x: (x, not np.signbit(x)))

    return f


def integer_cases() -> Iterable[tuple[str, Case]]:
    for t in INTEGERS:
        w, two = BITS[t], (t, t)
        yield f"add.{t}", Case(t, two, lambda a, b: a + b)
        yield f"sub.{t}", Case(t, two, lambda a, b: a - b)
        yield f"mul.lo.{t}", Case(t, two, lambda a, b: a * b)
        yield f"mul.hi.{t}", Case(t, two, lambda a, b, w=w: (a * b) >> w)
        yield f"mad.lo.{t}", Case(t, (t, t, t), lambda a, b, c: a * b + c)
        yield f"div.{t}", Case(t, two, quotient)
        yield f"rem.{t}", Case(t, two, remainder)
        yield f"shr.{t}", Case(t, (t, "u32"), shifted_right)
        if w > 16:
            yield f"min.{t}", Case(t, two, min)
            yield f"max.{t}", Case(t, two, max)
        else:
            yield f"mul.wide.{t}", Case(f"{t[0]}32", two, lambda a, b: a * b)
        if w == 32:
            yield f"mul.wide.{t}", Case(f"{t[0]}64", two, lambda a, b: a * b)
        if t[0] == "s":
            yield f"neg.{t}", Case(t, (t,), lambda a: -a)
            yield f"abs.{t}", Case(t, (t,), abs)
        for name, compare in COMPARISONS.items():
            yield f"setp.{name}.{t}", Case("pred", two, compare)
        for other in INTEGERS:
            if other != t:
                yield f"cvt.{t}.{other}", Case(t, (other,), lambda a: a)
    for t in ("b16", "b32", "b64"):
        yield f"and.{t}", Case(t, (t, t), lambda a, b: a & b)
        yield f"or.{t}", Case(t, (t, t), lambda a, b: a | b)
        yield f"xor.{t}", Case(t, (t, t), lambda a, b: a ^ b)
        yield f"not.{t}", Case(t, (t,), lambda a: ~a)
        yield f"shl.{t}", Case(t, (t, "u32"), lambda a, by: a << min(by, 64))
        yield f"shr.{t}", Case(t, (t, "u32"), shifted_right)
        yield f"setp.eq.{t}", Case("pred", (t, t), lambda a, b: a == b)
        yield f"setp.ne.{t}", Case("pred", (t, t), lambda a, b: a != b)
    for name in ("cvta.global.u64", "cvta.to.global.u64"):
        yield name, Case("u64", ("u64",), lambda a: a)


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def is_unordered(a: Any, b: Any) -> bool:
    return bool(np.isnan(a) or np.isnan(b))


def float_cases() -> Iterable[tuple[str, Case]]:
    for t in ("f32", "f64"):
        two, real = (t, t), np.float32 if t == "f32" else np.float64
        for rounding in (".", ".rn."):
            yield f"add{rounding}{t}", Case(t, two, lambda a, b: a + b)
            yield f"sub{rounding}{t}", Case(t, two, lambda a, b: a - b)
        yield f"mul.rn.{t}", Case(t, two, lambda a, b: a * b)
        yield f"div.rn.{t}", Case(t, two, lambda a, b: a / b)
        yield f"rcp.rn.{t}", Case(t, (t,), lambda a, real=real: real(1) / a)
        yield f"sqrt.rn.{t}", Case(t, (t,), np.sqrt)
        yield f"fma.rn.{t}", Case(t, (t, t, t), fma(t))
        yield f"min.{t}", Case(t, two, extreme(min))
        yield f"max.{t}", Case(t, two, extreme(max))
        for integer in ("s32", "u32", "s64", "u64"):
            yield (
                f"cvt.rn.{t}.{integer}",
                Case(t, (integer,), lambda a, t=t: rounded(Fraction(a), t)),
            )
        for name, compare in COMPARISONS.items():
            yield (
                f"setp.{name}.{t}",
                Case("pred", two, lambda a, b, f=compare: not is_unordered(a, b) and f(a, b)),
            )
            yield (
                f"setp.{name}u.{t}",
                Case("pred", two, lambda a, b, f=compare: is_unordered(a, b) or f(a, b)),
            )
        yield f"setp.num.{t}", Case("pred", two, lambda a, b: not is_unordered(a, b))
        yield f"setp.nan.{t}", Case("pred", two, is_unordered)
        sign = 1 << (BITS[t] - 1)
        u = f"u{BITS[t]}"  # of the sign alone, also that of NaN
        yield f"neg.{t}", Case(u, (u,), lambda a, s=sign: a ^ s)
        yield f"abs.{t}", Case(u, (u,), lambda a, s=sign: a & ~s)
        yield f"copysign.{t}", Case(u, (u, u), lambda a, b, s=sign: (a & s) | (b & ~s))
    yield "cvt.rni.f32.f32", Case("f32", ("f32",), np.rint)
    yield "cvt.rn.f32.f64", Case("f32", ("f64",), np.float32)


def other_cases() -> Iterable[tuple[str, Case]]:
    for w in (16, 32, 64):
        for kind in "bus" if w == 16 else "busf":
            t, u = f"{kind}{w}", f"u{w}"
            yield f"mov.{t}", Case(u, (u,), lambda a: a)
            yield f"selp.{t}", Case(u, (u, u, "pred"), lambda a, b, p: a if p else b)
    yield "and.pred", Case("pred", ("pred", "pred"), lambda a, b: a & b)
    yield "or.pred", Case("pred", ("pred", "pred"), lambda a, b: a | b)
    yield "xor.pred", Case("pred", ("pred", "pred"), lambda a, b: a ^ b)
    yield "not.pred", Case("pred", ("pred",), lambda a: 1 - a)
    yield "mov.pred", Case("pred", ("pred",), lambda a: a)


CASES = dict(itertools.chain(integer_cases(), float_cases(), other_cases()))
# Those that other tests of this file and of test_emulator_machine.py are about.
ELSEWHERE = {
    "bra", "bra.uni", "ret", "exit", "bar.sync", "bar.red.or.pred", "bar.warp.sync", "lop3.b32",
    "rsqrt.approx.ftz.f32", "rcp.approx.ftz.f64", "ex2.approx.ftz.f32", "cvt.f64.f32",
    "cvt.rn.f16.f32", "cvt.rn.bf16.f32", "cvt.rn.f16x2.f32", "cvt.rn.bf16x2.f32", "cvt.f32.f16",
    "cvt.f32.bf16", "mov.b32 pack", "mov.b64 pack", "mov.b32 unpack", "mov.b64 unpack",
    *(f"shfl.sync.{mode}.b32" for mode in ("up", "down", "bfly", "idx")),
}  # fmt: skip


# ---- running one instruction for many operands --------------------------------------------------


def program(instructions: str, out: str, ins: tuple[str, ...]) -> str:
    """A kernel that makes d of a, b and c, for each thread."""
    widths = [max(BITS[t], 16) if t != "pred" else 32 for t in (out, *ins)]
    lines = ["mov.u32 %t, %ctaid.x;", "mov.u32 %n, %ntid.x;", "mov.u32 %i, %tid.x;"]
    lines += ["mad.lo.u32 %i, %t, %n, %i;"]
    for name, kind, width in zip("dabc", (out, *ins), widths, strict=False):
        lines += [
            f".reg .b{width} %{name};",
            f".reg .b64 %at_{name};",
            f"ld.param.u64 %at_{name}, [{name}];",
            f"mul.wide.u32 %offset, %i, {width // 8};",
            f"add.s64 %at_{name}, %at_{name}, %offset;",
        ]
        if name != "d":
            lines += [f"ld.global.u{width} %{name}, [%at_{name}];"]
        if kind == "pred":
            lines += [f".reg .pred %p{name};"]
        if kind == "pred" and name != "d":
            lines += [f"setp.ne.u32 %p{name}, %{name}, 0;"]
    lines += [instructions]
    if out == "pred":
        lines += ["selp.u32 %d, 1, 0, %pd;"]
    lines += [f"st.global.u{widths[0]} [%at_d], %d;", "ret;"]
    parameters = ", ".join(f".param .u64 {name}" for name in "dabc"[: 1 + len(ins)])
    body = "\n".join(lines)
    return f".entry k({parameters})\n{{\n.reg .b32 %t, %n, %i;\n.reg .b64 %offset;\n{body}\n}}\n"


def run(
    instructions: str, out: str, ins: tuple[str, ...], rows: list[tuple[int, ...]]
) -> list[int]:
    """The results' bits; the rows are the operands'."""
    length, threads = len(rows), 96
    blocks = -(-length // threads)
    padded = rows + (blocks * threads - length) * rows[:1]

    def array(kind: str, values: list[int]) -> np.ndarray:
        width = 32 if kind == "pred" else max(BITS[kind], 16)
        return np.array(values, np.dtype(f"u{width // 8}"))

    columns = [array(t, [row[n] for row in padded]) for n, t in enumerate(ins)]
    result = array(out, len(padded) * [0])
    core.forget_memory()
    core.allow(result, core.WRITE, unwritten=True)
    for column in columns:
        core.allow(column, core.READ)
    module = core.Module(program(instructions, out, ins))
    module.launch("k", result, *columns, grid=blocks, block=threads)
    assert not core.take_faults()
    return [int(value) for value in result[:length]]


def operands(case: Case) -> str:
    kinds = (case.out, *case.ins)
    return ", ".join(
        f"%p{name}" if kind == "pred" else f"%{name}"
        for name, kind in zip("dabc", kinds, strict=False)
    )


def test_every_known_instruction_is_tested() -> None:
    assert core.known_instructions() == CASES.keys() | ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_instruction(name: str) -> None:
    case = CASES[name]
    rows = list(itertools.product(*(edges(t) for t in case.ins)))
    with np.errstate(all="ignore"):
        numbers = [[number(b, t) for b, t in zip(row, case.ins, strict=True)] for row in rows]
        want = [bits_of(case.what(*values), case.out, values) for values in numbers]
    got = run(f"{name} {operands(case)};", case.out, case.ins, rows)
    wrong = [
        f"{name}({', '.join(map(hex, row))}) = {g:#x}, not {w:#x}"
        for row, g, w in zip(rows, got, want, strict=True)
        if g != w
    ]
    assert not wrong


@pytest.mark.parametrize("table", [0x96, 0xE8, 0xCA, 0x1B, 0x00, 0xFF, 0x80])
def test_lop3(table: int) -> None:
    a, b, c = 0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA  # in each bit, another row of the table
    [got] = run(f"lop3.b32 %d, %a, %b, %c, {table};", "b32", 3 * ("b32",), [(a, b, c)])
    assert got == table * 0x01010101


# ---- half precision and single -----------------------------------------------------------------


def singles() -> np.ndarray:
    random = np.random.default_rng(5).integers(0, 1 << 32, 40_000, dtype=np.uint32)
    near = np.linspace(-65000, 65000, 999).astype(np.float16).astype(np.float32).view(np.uint32)
    large = np.linspace(65400, 65600, 201).astype(np.float32).view(np.uint32)  # near 2^16 - 16
    small = np.arange(0, 1 << 10, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = small.view(np.uint32) + np.uint32(0x1000)
    near = np.concatenate([near, near + np.uint32(0x1000), near ^ np.uint32(1)])
    return np.concatenate([random, near, large, ties])


def test_single_to_half() -> None:
    x = np.concatenate([singles(), np.array(edges("f32"), np.uint32)])
    with np.errstate(all="ignore"):
        half = x.view(np.float32).astype(np.float16).view(np.uint16)
    brain = (
        torch.from_numpy(x.view(np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)
    )
    is_nan = np.isnan(x.view(np.float32))
    rows = [(int(v),) for v in x]
    for kind, want in (("f16", half), ("bf16", brain)):
        want = np.where(is_nan, 0x7FFF, want)
        assert run(f"cvt.rn.{kind}.f32 %d, %a;", kind, ("f32",), rows) == want.tolist()
        pairs = [(int(a), int(b)) for a, b in zip(x, x[::-1], strict=True)]
        both = want.astype(np.uint32) << 16 | want[::-1]  # the first one on top
        got = run(f"cvt.rn.{kind}x2.f32 %d, %a, %b;", "b32", ("f32", "f32"), pairs)
        assert got == both.tolist()


def test_half_to_single() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    rows = [(int(h),) for h in halves]
    got = np.array(run("cvt.f32.f16 %d, %a;", "f32", ("f16",), rows), np.uint32).view(np.float32)
    np.testing.assert_array_equal(got, halves.view(np.float16).astype(np.float32))
    assert np.signbit(got[0x8000])
    assert run("cvt.f32.bf16 %d, %a;", "f32", ("bf16",), rows) == [int(h) << 16 for h in halves]


def test_single_to_double() -> None:
    numbers = [v for v in edges("f32") if not np.isnan(number(v, "f32"))]
    want = [bits_of(np.float64(number(v, "f32")), "f64") for v in numbers]
    got = run("cvt.f64.f32 %d, %a;", "f64", ("f32",), [(v,) for v in [*numbers, 0xFFC12345]])
    assert got == [*want, 0x7FFFFFFFE0000000]


def test_pairs_in_one_register() -> None:
    rows = list(itertools.product(edges("b16"), edges("b16")))
    assert run("mov.b32 %d, {%a, %b};", "b32", ("b16", "b16"), rows) == [
        a | b << 16 for a, b in rows
    ]
    rows = list(itertools.product(edges("b32"), edges("b32")))
    assert run("mov.b64 %d, {%a, %b};", "b64", ("b32", "b32"), rows) == [
        a | b << 32 for a, b in rows
    ]
    swap = ".reg .b32 %l, %h; mov.b64 {%l, %h}, %a; mov.b64 %d, {%h, %l};"
    halves = ".reg .b16 %l, %h; mov.b32 {%l, %h}, %a; mov.b32 %d, {%h, %l};"
    assert run(swap, "b64", ("b64",), [(0x0123456789ABCDEF,)]) == [0x89ABCDEF01234567]
    assert run(halves, "b32", ("b32",), [(0x01234567,)]) == [0x45670123]


# ---- approximations ----------------------------------------------------------------------------


def test_approximations_are_the_nearest_numbers() -> None:
    x = np.concatenate([singles(), np.array([0x3F800000, 0x3F800001, 0x40000000], np.uint32)])
    values = x.view(np.float32)
    rows = [(int(v),) for v in x]
    with np.errstate(all="ignore"):
        flushed = np.where(np.abs(values) < 2.0**-126, np.copysign(0, values), values)
        root = (1 / np.sqrt(flushed.astype(np.float64))).astype(np.float32)
        power = np.exp2(flushed.astype(np.float64)).astype(np.float32)
        power[power < 2.0**-126] = 0
    for name, want in (("rsqrt", root), ("ex2", power)):
        got = run(f"{name}.approx.ftz.f32 %d, %a;", "f32", ("f32",), rows)
        assert got == np.where(np.isnan(want), SINGLE_NAN, want.view(np.uint32)).tolist()
    special = [0, 1 << 31, 1, 0x80000001, 0x7F800000, 0xFF800000, 0xBF800000]
    got = run("rsqrt.approx.ftz.f32 %d, %a;", "f32", ("f32",), [(v,) for v in special])
    infinity, minus = 0x7F800000, 0xFF800000
    assert got == [infinity, minus, infinity, minus, 0, SINGLE_NAN, SINGLE_NAN]


def test_reciprocal_looks_at_the_upper_word_alone() -> None:
    x = [0x3FF8000000000000, 0x3FF80000FFFFFFFF, 0x4000000000000000, 0, 1 << 63, 5]
    x += [0x7FF0000000000000, 0xFFF0000000000000, 0x7FE0000000000000]
    got = run("rcp.approx.ftz.f64 %d, %a;", "f64", ("f64",), [(v,) for v in x])
    third, infinity = 0x3FE5555500000000, 0x7FF0000000000000
    assert got[:2] == [third, third]
    assert got[2:6] == [0x3FE0000000000000, infinity, infinity | 1 << 63, infinity]
    assert got[6:] == [0, 1 << 63, 0]


@pytest.mark.parametrize("units", [-1, 1, 100])
def test_approximations_may_be_off(units: int) -> None:
    x = np.random.default_rng(1).uniform(0.25, 4, 5000).astype(np.float32)
    rows = [(int(v),) for v in x.view(np.uint32)]
    nearest = np.array(run("rsqrt.approx.ftz.f32 %d, %a;", "f32", ("f32",), rows))
    with core.settings(rsqrt=units):
        got = np.array(run("rsqrt.approx.ftz.f32 %d, %a;", "f32", ("f32",), rows))
    off = got - nearest
    if units != 100:
        assert set(off) == {units}
        return
    assert set(off) == {-2, -1, 0, 1, 2}
    exact = 1 / np.sqrt(x.astype(np.float64))
    error = np.abs(got.astype(np.uint32).view(np.float32) - exact) / exact
    assert error.max() <= 2**-22.9
