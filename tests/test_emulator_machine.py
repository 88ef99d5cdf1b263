"""The emulator's machine: how threads diverge and meet, wait for each other and share values."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from emulator import build, core
from emulator.core import kernel

pytestmark = pytest.mark.skipif(build.why_not_core() is not None, reason="no C++ compiler")

ORDERS = range(len(core.ORDERS))


def run(body: str, *arrays: np.ndarray, threads: int = 32, blocks: int = 1) -> np.ndarray:
    """What each thread has left in %result; arrays are read only."""
    out = np.zeros(threads * blocks, np.uint32)
    core.forget_memory()
    core.allow(out, core.WRITE, unwritten=True)
    for array in arrays:
        core.allow(array, core.READ)
    text = kernel(f"{body}\nst.global.u32 [%out], %result;\nret;", arrays=len(arrays))
    core.Module(text).launch("k", out, *arrays, grid=blocks, block=threads)
    assert not core.take_faults()
    return out


# ---- control flow --------------------------------------------------------------------------------


def test_threads_know_who_they_are() -> None:
    body = """
        mov.u32 %r1, %tid.x;      mov.u32 %r2, %ctaid.x;  mov.u32 %r3, %ntid.x;
        mov.u32 %r4, %nctaid.x;   mov.u32 %r5, %laneid;
        mad.lo.u32 %result, %r2, 256, %r1;
        mad.lo.u32 %r3, %r3, 1000, %r4;
        shl.b32 %r3, %r3, 12;     add.u32 %result, %result, %r3;
        shl.b32 %r5, %r5, 5;      xor.b32 %result, %result, %r5;"""
    got = run(body, threads=70, blocks=3)
    block, thread = np.divmod(np.arange(210), 70)
    assert (got == ((70_003 << 12) + 256 * block + thread) ^ (thread % 32) << 5).all()


def test_both_sides_of_a_branch_and_together_again() -> None:
    body = """
        and.b32 %r1, %lane, 1;
        setp.eq.u32 %p1, %r1, 0;
        @%p1 bra $EVEN;
        mul.lo.u32 %r2, %lane, 10;
        bra.uni $MEET;
    $EVEN:
        add.u32 %r2, %lane, 7;
    $MEET:  // all 32 are here, or the shuffle would be a fault
        shfl.sync.bfly.b32 %result, %r2, 1, 31, -1;"""
    want = [10 * (n + 1) if n % 2 == 0 else n - 1 + 7 for n in range(32)]
    assert run(body).tolist() == want


def test_loops_of_as_many_rounds_as_each_thread_needs() -> None:
    body = """
        add.u32 %r1, %thread, 1;
        mov.u32 %result, 0;
    $NEXT:  // Collatz
        setp.eq.u32 %p1, %r1, 1;
        @%p1 bra $DONE;
        add.u32 %result, %result, 1;
        and.b32 %r2, %r1, 1;
        setp.ne.u32 %p2, %r2, 0;
        @%p2 mad.lo.u32 %r1, %r1, 3, 1;
        @!%p2 shr.u32 %r1, %r1, 1;
        bra $NEXT;
    $DONE:"""

    def rounds(n: int) -> int:
        return 0 if n == 1 else 1 + rounds(3 * n + 1 if n % 2 else n // 2)

    assert run(body, threads=100).tolist() == [rounds(n + 1) for n in range(100)]


def test_threads_that_return_early_are_gone() -> None:
    out = np.full(64, 9, np.uint32)
    core.forget_memory()
    core.allow(out)
    body = """
        setp.ge.u32 %p1, %thread, 40;
        @%p1 ret;
        setp.lt.u32 %p1, %thread, 32;
        @%p1 exit;
        bar.warp.sync 0xff;
        st.global.u32 [%out], %thread;
        ret;"""
    core.Module(kernel(body)).launch("k", out, block=64)
    assert not core.take_faults()
    assert out.tolist() == 32 * [9] + list(range(32, 40)) + 24 * [9]


def test_names_in_braces_hide_those_outside() -> None:
    body = """
        .reg .b32 x;
        mov.u32 x, 5;
        { .reg .b32 x; .reg .pred p; setp.ne.u32 p, %lane, 3; mov.u32 x, 1; @p mov.u32 x, 2;
          add.u32 %r1, x, 0; }
        mad.lo.u32 %result, x, 100, %r1;"""
    assert run(body).tolist() == [501 if n == 3 else 502 for n in range(32)]


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_blocks_and_warps(order: int) -> None:
    out = np.zeros(1, np.uint32)
    core.forget_memory()
    core.allow(out)
    module = core.Module(
        kernel("mad.lo.u32 %r1, %block, 64, %thread; st.global.u32 [%rd1], %r1; ret;")
    )
    last = set()
    for seed in range(8):
        with core.settings(order=order, seed=seed, check_races=0):
            module.launch("k", out, grid=10, block=64)
        last.add(int(out[0]))
    assert not core.take_faults()
    if order == 2:
        assert len(last) > 2
    else:  # the last lane of a warp writes last
        assert last == {64 * 9 + 63 if order == 0 else 31}


# ---- shuffles ------------------------------------------------------------------------------------

MODES: dict[str, Callable[[int, int, int, int], tuple[int, bool]]] = {
    # source and whether it is in range, by lane, distance, clamp and segment mask
    "up": lambda n, by, c, s: (n - by, n - by >= (n & s | c & ~s)),
    "down": lambda n, by, c, s: (n + by, n + by <= (n & s | c & ~s)),
    "bfly": lambda n, by, c, s: (n ^ by, n ^ by <= (n & s | c & ~s)),
    "idx": lambda n, by, c, s: (n & s | by & ~s, (n & s | by & ~s) <= (n & s | c & ~s)),
}


@pytest.mark.parametrize("mode", MODES)
def test_shuffles(mode: str) -> None:
    segments = {32: 0, 16: 16, 8: 24, 4: 28}
    for by, width in itertools.product((0, 1, 3, 4, 17, 31), segments):
        clamp, segment = 0 if mode == "up" else 31, segments[width]
        body = f"""
            add.u32 %r1, %lane, 100;
            shfl.sync.{mode}.b32 %r2|%p1, %r1, {by}, {segment << 8 | clamp}, -1;
            selp.u32 %result, 1000, 0, %p1;
            add.u32 %result, %result, %r2;"""
        want = []
        for lane in range(32):
            source, valid = MODES[mode](lane, by, clamp, segment)
            want.append(1000 * valid + 100 + (source if valid else lane))
        assert run(body).tolist() == want, (by, width)


def test_shuffle_in_place_and_each_with_its_own_lane() -> None:
    body = """
        sub.u32 %r1, 31, %lane;
        mul.lo.u32 %result, %lane, 3;
        shfl.sync.idx.b32 %result, %result, %r1, 31, 0xffffffff;"""
    assert run(body).tolist() == [3 * (31 - n) for n in range(32)]


def test_tiles_shuffle_among_themselves() -> None:
    """Each quarter names its own eight threads; the last eight are not there."""
    body = """
        and.b32 %r1, %lane, 24;
        shl.b32 %r2, 0xff, %r1;
        setp.ge.u32 %p1, %lane, 24;
        @%p1 bra $END;
        mov.u32 %result, %lane;
        shfl.sync.down.b32 %result, %result, 4, 0x181f, %r2;
    $END:
        @%p1 mov.u32 %result, 77;"""
    want = [n + 4 if n % 8 < 4 else n for n in range(24)] + 8 * [77]
    assert run(body).tolist() == want


# ---- barriers and shared memory ----------------------------------------------------------------

REVERSE = """
    .shared .align 4 .b8 first[12];
    .shared .align 16 .b8 s[1024];
    mov.u32 %r1, s;
    mad.lo.u32 %r2, %thread, 4, %r1;
    st.shared.u32 [%r2], %thread;
    bar.sync 0;
    sub.u32 %r3, 255, %thread;
    mad.lo.u32 %r2, %r3, 4, %r1;
    ld.shared.u32 %result, [%r2];"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_makes_shared_memory_visible(order: int) -> None:
    with core.settings(order=order, seed=3):
        assert run(REVERSE, threads=256, blocks=3).tolist() == 3 * list(range(255, -1, -1))


@pytest.mark.parametrize("order", ORDERS)
def test_a_tree_of_sums(order: int) -> None:
    body = """
        .shared .align 8 .b8 s[2048];
        mov.u64 %rd1, s;
        mul.wide.u32 %rd2, %thread, 8;
        add.u64 %rd3, %rd1, %rd2;
        cvt.rn.f64.u32 %rd4, %thread;
        st.shared.f64 [%rd3], %rd4;
        mov.u32 %r1, 128;
    $HALVE:
        bar.sync 0;
        setp.ge.u32 %p1, %thread, %r1;
        @%p1 bra $SKIP;
        mul.wide.u32 %rd5, %r1, 8;
        add.u64 %rd5, %rd5, %rd3;
        ld.shared.f64 %rd6, [%rd5];
        ld.shared.f64 %rd7, [%rd3];
        add.rn.f64 %rd7, %rd7, %rd6;
        st.shared.f64 [%rd3], %rd7;
    $SKIP:
        shr.u32 %r1, %r1, 1;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra $HALVE;
        bar.sync 0;
        ld.shared.v2.u32 {%r2, %result}, [s];"""
    with core.settings(order=order, seed=4):
        high = np.float64(255 * 128).view(np.uint64) >> np.uint64(32)
        assert (run(body, threads=256, blocks=2) == high).all()


@pytest.mark.parametrize("chosen", [None, 0, 40, 95])
def test_whether_any_thread_of_the_block(chosen: int | None) -> None:
    body = f"""
        setp.eq.u32 %p1, %thread, {1000 if chosen is None else chosen};
        bar.red.or.pred %p2, 0, %p1;
        selp.u32 %result, 1, 0, %p2;"""
    assert (run(body, threads=96, blocks=2) == (chosen is not None)).all()


# ---- loads, stores, parameters -----------------------------------------------------------------


def test_loads_are_extended_to_the_register() -> None:
    values = np.array([0x80, 0xFF, 0x7F, 0x01], np.uint8)
    loads = {"u8": 0x80, "s8": 0xFFFFFF80, "b8": 0x80, "u16": 0xFF80, "s16": 0xFFFFFF80}
    for kind, want in {**loads, "u32": 0x017FFF80}.items():
        body = f"ld.global.{kind} %result, [%rd1];"
        assert (run(body, values) == want).all(), kind
    body = "ld.s8 %rd2, [%rd1+1]; shr.u64 %rd2, %rd2, 32; cvt.u32.u64 %result, %rd2;"
    assert (run(body, values) == 0xFFFFFFFF).all()


def test_vectors_and_narrow_stores() -> None:
    source, out = np.arange(40, dtype=np.uint32), np.zeros(256, np.uint8)
    body = """
        setp.ne.u32 %p1, %lane, 0;
        @%p1 ret;
        ld.param.u64 %rd2, [a];  ld.param.u64 %rd1, [out];
        ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd2+16];
        st.global.v4.b32 [%rd1], {%r4, %r3, %r2, %r1};
        ld.global.v2.u64 {%rd3, %rd4}, [%rd2+32];
        st.global.v2.u64 [%rd1+16], {%rd4, %rd3};
        mov.u32 %r5, 0x12345678;
        st.global.u8 [%rd1+32], %r5;  st.global.u16 [%rd1+34], %r5;
        st.global.u8 [%rd1+33], 9;    st.global.u64 [%rd1+40], -2;
        ret;"""
    core.forget_memory()
    core.allow(source, core.READ)
    core.allow(out, core.WRITE)
    core.Module(kernel(body, arrays=1)).launch("k", out, source)
    assert not core.take_faults()
    words = out[:32].view(np.uint32).tolist()
    assert words == [7, 6, 5, 4, 10, 11, 8, 9]
    assert out[32:36].tolist() == [0x78, 9, 0x78, 0x56]
    assert out[40:48].view(np.int64)[0] == -2


def test_parameters_lie_where_cuda_puts_them() -> None:
    text = """
    .visible .entry k(
        .param .u8 small, .param .u64 .ptr .global .align 16 out, .param .u16 half,
        .param .align 8 .b8 shape[24], .param .f32 last
    )
    .maxntid 32, 1, 1
    {
        .reg .b32 %r<9>;  .reg .b16 %h<3>;  .reg .b64 %rd<9>;
        ld.param.u64 %rd1, [out];
        ld.param.u8 %r1, [small];     ld.param.u16 %r2, [half];
        ld.param.v2.u32 {%r3, %r4}, [shape+8];
        mov.b64 %rd2, shape;          ld.param.u64 %rd3, [%rd2+16];
        add.s64 %rd2, %rd2, 32;       ld.param.u32 %r5, [%rd2+-32];
        ld.param.f32 %r6, [last];
        st.global.v4.u32 [%rd1], {%r1, %r2, %r3, %r4};
        st.global.v2.u32 [%rd1+16], {%r5, %r6};
        st.global.u64 [%rd1+24], %rd3;
        ret;
    }"""
    out, shape = np.zeros(8, np.uint32), np.array([21, 22, 31, 32, 41, 42], np.uint32)
    core.forget_memory()
    core.allow(out)
    struct = shape.view("V24")[0]  # a number of 24 bytes
    core.Module(text).launch("k", np.uint8(3), out, np.uint16(4), struct, np.float32(1), block=1)
    assert not core.take_faults()
    assert out.tolist() == [3, 4, 31, 32, 21, 0x3F800000, 41, 42]


def test_numbers_of_every_kind() -> None:
    literals = {"0x7F": 0x7F, "-1": 0xFFFFFFFF, "0": 0, "12U": 12, "0f3F800000": 0x3F800000}
    for text, want in literals.items():
        assert (run(f"mov.b32 %result, {text};") == want).all()
    body = "mov.b64 %rd2, 0d3FF0000000000000; shr.u64 %rd2, %rd2, 32; cvt.u32.u64 %result, %rd2;"
    assert (run(body) == 0x3FF00000).all()


def test_coverage_says_which_lines_ran() -> None:
    body = """
        setp.eq.u32 %p1, %lane, 40;
        @%p1 bra $NEVER;
        ret;
    $NEVER:
        mov.u32 %r1, 5;
        ret;"""
    module = core.Module(kernel(body, name="covered"))
    module.launch("covered", np.zeros(1, np.uint32))
    [lines] = [lines for name, launches, lines in core.coverage() if name == "covered"]
    assert [text for _, reached, text in lines if not reached] == ["mov.u32 %r1, 5", "ret"]
    numbers = [number for number, _, text in lines if text == "mov.u32 %r1, 5"]
    text = kernel(body, name="covered").splitlines()
    assert text[numbers[0] - 1].strip() == "mov.u32 %r1, 5;"
