"""Whatever the emulator must not let pass: a small kernel for each."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import build, core
from emulator.core import READ, WRITE, PtxError, kernel

pytestmark = pytest.mark.skipif(build.why_not_core() is not None, reason="no C++ compiler")

ORDERS = range(len(core.ORDERS))


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    core.forget_memory()
    assert not core.take_faults()


def faults(body: str, out: np.ndarray, threads: int = 1, blocks: int = 1) -> list[str]:
    core.Module(kernel(body)).launch("k", out, grid=blocks, block=threads)
    return core.take_faults()


def words(count: int, access: int = READ | WRITE, unwritten: bool = False) -> np.ndarray:
    array = np.full(count, 0xFFFFFFFF, np.uint32)
    core.allow(array, access, unwritten)
    return array


# ---- global memory -------------------------------------------------------------------------------


def test_a_fault_says_what_and_where() -> None:
    out = words(70)
    text = kernel("st.global.u32 \t[%out],\n  %thread;\nret;", name="_Z3addPf")
    module = core.Module(text)
    module.launch("_Z3addPf", out, grid=3, block=24)
    line = next(n for n, line in enumerate(text.splitlines(), 1) if "st.global" in line)
    assert core.take_faults() == [
        f"write out of bounds: add(float*), PTX line {line} `st.global.u32 [%out], %thread`, "
        f"block 2, thread {thread}, address {out.ctypes.data + 4 * (48 + thread):#x} "
        f"({4 * (thread - 22)} bytes behind the end of 280 bytes at {out.ctypes.data:#x})"
        for thread in (22, 23)
    ]
    assert out.tolist() == [*range(24), *range(24), *range(22)]


def test_only_the_first_faults_are_told() -> None:
    out = words(1)
    core.Module(kernel("st.global.u32 [%out+4], %thread; ret;")).launch("k", out, block=1000)
    assert len(core.take_faults(3)) == 4
    core.Module(kernel("st.global.u32 [%out+4], %thread; ret;")).launch("k", out, block=1000)
    assert core.take_faults(3)[-1] == "and 997 more faults"
    assert core.library().emulator_any_fault() == 0


@pytest.mark.parametrize("offset", [-4, 16, 1 << 40])
def test_reads_out_of_bounds(offset: int) -> None:
    [fault] = faults(f"ld.global.u32 %r1, [%out+{offset}]; ret;", words(4))
    assert fault.startswith("read out of bounds: k, ")


def test_what_was_allowed_before_is_so_no_longer() -> None:
    out = words(4)
    assert not faults("ld.global.u32 %r1, [%out]; ret;", out)
    core.forget_memory()
    assert "read out of bounds" in faults("ld.global.u32 %r1, [%out]; ret;", out)[0]


def test_a_vector_over_the_end() -> None:
    [fault] = faults("ld.global.v2.u32 {%r1, %r2}, [%out+16]; ret;", words(5))
    assert fault.startswith("read out of bounds")


def test_between_and_over_the_edge_of_a_strided_tensors_elements() -> None:
    base = np.zeros(64, np.uint32)
    core.allow(base[::2])
    assert not faults("ld.global.u32 %r1, [%out+8]; st.global.u32 [%out+8], %r1; ret;", base)
    assert (
        "read between a tensor's elements" in faults("ld.global.u32 %r1, [%out+4]; ret;", base)[0]
    )
    assert "write between" in faults("st.global.u32 [%out+12], %thread; ret;", base)[0]
    [fault] = faults("ld.global.v2.u32 {%r1, %r2}, [%out+8]; ret;", base)
    assert fault.startswith("read over the edge of a tensor's element")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_elements_of_any_strided_tensor(order: tuple[int, ...]) -> None:
    """Each element may be read, whatever the order of the dimensions, and nothing beside them."""
    base = np.zeros((7, 6, 11), np.uint32)
    view = base[1:6:2, ::-1, 3:7].transpose(order)
    mine = np.zeros(base.size, bool)
    mine.reshape(base.shape)[1:6:2, :, 3:7] = True
    core.allow(view, READ)
    found = faults("ld.global.u32 %r1, [%out]; ret;", base, threads=base.size)
    assert len(found) == 9
    core.Module(kernel("ld.global.u32 %r1, [%out]; ret;")).launch("k", base, block=base.size)
    told = core.take_faults(256)
    bad = [int(f.split("thread ")[1].split(",")[0]) for f in told[:256]]
    assert bad == np.flatnonzero(~mine).tolist()[:256]
    assert told[256] == f"and {(~mine).sum() - 256} more faults"


def test_read_only_and_write_only() -> None:
    out = words(1, READ)
    [fault] = faults("st.global.u32 [%out], 1; ret;", out)
    assert fault.startswith("write to what is read-only")
    core.forget_memory()
    core.allow(out, WRITE)
    [fault] = faults("ld.global.u32 %r1, [%out]; ret;", out)
    assert fault.startswith("read of what is write-only")
    core.allow(out, READ)
    assert not faults("ld.global.u32 %r1, [%out]; st.global.u32 [%out], %r1; ret;", out)


@pytest.mark.parametrize(
    "access",
    ["ld.global.u32 %r1, [%out+2]", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%out+8]",
     "st.global.u64 [%out+4], %rd1", "st.global.u16 [%out+1], %r1"],
)  # fmt: skip
def test_misaligned(access: str) -> None:
    out = np.zeros(16, np.uint32)
    at = -out.ctypes.data % 16 // 4
    core.allow(out)
    [fault] = faults(f"mov.u32 %r1, 0; {access}; ret;", out[at:])
    assert fault.startswith("misaligned address of ")


def test_checks_can_be_turned_off() -> None:
    out = np.zeros(1, np.uint32)
    with core.settings(check_memory=0):
        assert not faults("st.global.u32 [%out], 7; ret;", out)
    assert out[0] == 7


# ---- races in global memory ----------------------------------------------------------------------

RACES = {
    "write to what another thread has written": "st.global.u32 [%rd1], %size; ret;",
    "read of what another thread has written": """
        setp.eq.u32 %p1, %size, 0;  @%p1 st.global.u32 [%rd1], %size;
        @!%p1 ld.global.u32 %r1, [%rd1]; ret;""",
    "write to what another thread has read": """
        setp.eq.u32 %p1, %size, 1;  @!%p1 ld.global.u32 %r1, [%rd1];
        @%p1 st.global.u32 [%rd1], %size; ret;""",
    "": """
        ld.global.u32 %r1, [%rd1]; add.u32 %r1, %r1, 1; st.global.u32 [%rd1], %r1; ret;""",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("threads", "blocks"), [(2, 1), (64, 1), (1, 2), (33, 3)])
@pytest.mark.parametrize("what", RACES)
def test_races(what: str, threads: int, blocks: int, order: int) -> None:
    with core.settings(order=order):
        found = faults(RACES[what], words(2), threads, blocks)
    if order == 0:
        assert found[0].startswith(f"race: {what}")
    assert found
    assert all(fault.startswith(("race: ", "and ")) for fault in found)
    with core.settings(check_races=0):
        assert not faults(RACES[what], words(2), threads, blocks)


def test_a_race_of_whole_rows() -> None:
    """All lanes write one after the other, and the next warp writes the same: no lane is alone."""
    body = "mul.wide.u32 %rd2, %lane, 4; add.u64 %rd2, %rd1, %rd2;"
    found = faults(f"{body} st.global.u32 [%rd2], %lane; ret;", words(32), threads=64)
    assert found[0].startswith("race: write to what another thread has written")
    assert "thread 32," in found[0]
    assert found[-1] == "and 24 more faults"


def test_bytes_of_one_word_are_not_one_another() -> None:
    body = "cvt.u64.u32 %rd2, %thread; add.u64 %rd2, %rd1, %rd2; st.global.u8 [%rd2], %thread; ret;"
    out = words(16)
    assert not faults(body, out, threads=64)
    assert out.view(np.uint8).tolist() == list(range(64))
    wide = """
        setp.eq.u32 %p1, %thread, 0;
        @%p1 st.global.v4.u32 [%rd1+16], {%r1, %r1, %r1, %r1};
        @!%p1 st.global.u8 [%rd1+OFFSET], %thread; ret;"""
    wide = "mov.u32 %r1, 3;" + wide
    for offset, race in ((15, False), (16, True), (31, True), (32, False)):
        found = faults(wide.replace("OFFSET", str(offset)), out, threads=2)
        assert bool(found) == race, offset


def test_one_thread_or_two_launches_are_no_race() -> None:
    out = words(64)
    body = "ld.global.u32 %r1, [%out]; st.global.u32 [%out], %r1; st.global.u32 [%out], 5; ret;"
    assert not faults(body, out, threads=64)
    assert not faults(body, out, threads=32, blocks=2)
    assert not faults("st.global.u32 [%rd1], %thread; ret;", out)
    assert not faults("st.global.u32 [%rd1], %thread; ret;", out)


# ---- what nobody wrote -------------------------------------------------------------------------


def test_global_memory_that_nobody_wrote() -> None:
    load, store = "ld.global.u32 %r1, [%out]; ret;", "st.global.u32 [%out], 1; ret;"
    out = words(33, unwritten=True)
    assert "read of global memory that nobody wrote" in faults(load, out, threads=33)[0]
    assert not faults(store, out, threads=32)
    assert not faults(load, out, threads=32)
    [fault] = faults(load, out, threads=33)
    assert "thread 32," in fault
    assert not faults("st.global.u32 [%out], 1; ld.global.u32 %r1, [%out]; ret;", out, threads=33)
    core.allow(out, READ, unwritten=True)  # the same memory, of another new tensor
    assert len(faults(load, out, threads=33)) == 9


def test_a_part_that_nobody_wrote() -> None:
    out = words(8)
    core.library().emulator_mark_unwritten(out.ctypes.data + 8, 4)
    found = faults("ld.global.u32 %r1, [%out]; ret;", out, threads=8)
    assert len(found) == 1
    assert "thread 2," in found[0]
    [fault] = faults("ld.global.v2.u32 {%r1, %r2}, [%rd1+8]; ret;", out)
    assert "nobody wrote" in fault


UNWRITTEN = {
    "operand %r1 hangs on": "st.global.u32 [%out], %r1; ret;",
    "operand %r3 hangs on": """
        add.u32 %r2, %r1, 1; mov.u32 %r3, %r2; st.global.u32 [%out], %r3; ret;""",
    "operand %rd2 hangs on": "ld.global.u32 %r1, [%rd2]; ret;",
    "guard %p1 hangs on": "@%p1 st.global.u32 [%out], 1; ret;",
    "guard %p2 hangs on": "setp.eq.u32 %p2, %r1, 0; @%p2 bra $L; $L: ret;",
    "operand %r1 hangs on what": "shfl.sync.idx.b32 %r2, %r1, 0, 31, 1; ret;",
    "operand %p1 hangs on": "bar.red.or.pred %p2, 0, %p1; ret;",
    "operand %r4 hangs on": """
        setp.ne.u32 %p1, %thread, 0; @%p1 mov.u32 %r4, 1; st.global.u32 [%out], %r4; ret;""",
    "operand %h2 hangs on": """
        mov.b16 %h3, 4; mov.b32 %r1, {%h3, %h1}; mov.b32 {%h3, %h2}, %r1;
        st.global.u16 [%out], %h2; ret;""",
    "operand %r2 hangs on": """
        cvt.rn.f16x2.f32 %r1, %r9, 0f00000000; shr.u32 %r2, %r1, 15;
        st.global.u16 [%out], %r2; ret;""",
}  # fmt: skip


@pytest.mark.parametrize("what", UNWRITTEN)
def test_registers_that_nobody_wrote(what: str) -> None:
    found = faults(UNWRITTEN[what], words(1))
    assert what in found[0]
    assert "nobody wrote" in found[0]


@pytest.mark.parametrize(
    "body",
    ["add.u32 %r2, %r1, 1; ret;",
     "setp.eq.u32 %p1, %thread, 0; @%p1 mov.u32 %r4, 1; st.global.u32 [%out], %r4; ret;",
     "setp.eq.u32 %p1, %lane, 0; selp.u32 %r4, 1, %r1, %p1; st.global.u32 [%out], %r4; ret;",
     "mov.b16 %h3, 4; mov.b32 %r1, {%h3, %h1}; st.global.u16 [%out], %r1; ret;",
     "cvt.rn.f16x2.f32 %r1, 0f00000000, %r9; shr.u32 %r2, %r1, 16; st.global.u16 [%out], %r2; ret;",
     "and.b32 %r2, %r1, 0xff00; shr.u32 %r2, %r2, 16; st.global.u32 [%out], %r2; ret;",
     "add.u32 %r1, %r1, 1; mov.u32 %r1, 3; st.global.u32 [%out], %r1; ret;"],
)  # fmt: skip
def test_what_nobody_wrote_may_be_read_if_nothing_hangs_on_it(body: str) -> None:
    assert not faults(body, words(1))


def test_another_block_has_other_registers() -> None:
    body = """
        setp.eq.u32 %p1, %block, 0; @%p1 mov.u32 %r1, 1; st.global.u32 [%out], %r1; ret;"""
    [fault] = faults(body, words(2), blocks=2)
    assert "block 1, thread 0" in fault


# ---- shared memory -------------------------------------------------------------------------------

SHARED = """
    .shared .align 16 .b8 s[256];
    mov.u32 %r1, s;
    mad.lo.u32 %r2, %thread, 4, %r1;
    xor.b32 %r3, %thread, OTHER;
    mad.lo.u32 %r3, %r3, 4, %r1;
    st.shared.u32 [%r2], %thread;
    WAIT
    ld.shared.u32 %r4, [%r3];
    ret;"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("other", "wait", "bad"),
    [(1, "", True), (1, "bar.warp.sync -1;", False), (1, "bar.sync 0;", False), (32, "", True),
     (32, "bar.warp.sync -1;", True), (32, "bar.sync 0;", False), (0, "", False)],
)  # fmt: skip
def test_reads_of_what_others_write(other: int, wait: str, bad: bool, order: int) -> None:
    body = SHARED.replace("OTHER", str(other)).replace("WAIT", wait)
    with core.settings(order=order):
        found = faults(body, words(1), threads=64, blocks=2)
    assert bool(found) == bad
    if other == 1 and bad:
        assert found[0].startswith("race: read of shared memory that another thread has written")
        assert "(shared)" in found[0]


def test_a_write_after_others_have_read() -> None:
    body = """
        .shared .align 4 .b8 s[4];
        setp.eq.u32 %p1, %thread, 0;
        @%p1 st.shared.u32 [s], 5;
        bar.sync 0;
        ld.shared.u32 %r1, [s];
        WAIT
        setp.eq.u32 %p1, %thread, THREAD;
        @%p1 st.shared.u32 [s], 6;
        ret;"""
    for thread in (0, 1, 33):
        late = body.replace("THREAD", str(thread))
        wrong = "race: write to shared memory that another thread has read"
        for wait in (
            "",
            "bar.warp.sync -1;",
        ):  # of one warp; the other one's reads are not in order
            found = faults(late.replace("WAIT", wait), words(1), threads=64)
            assert any(f.startswith(wrong) or "race: read" in f for f in found), (thread, wait)
        assert not faults(late.replace("WAIT", "bar.sync 0;"), words(1), threads=64)
    late = body.replace("THREAD", "1")
    [fault] = faults(late.replace("WAIT", ""), words(1), threads=32)
    assert fault.startswith(wrong)
    assert not faults(late.replace("WAIT", "bar.warp.sync -1;"), words(1), threads=32)
    both = "st.shared.u32 [s], %thread; ret;"
    [fault, *_] = faults(".shared .align 4 .b8 s[4]; " + both, words(1), threads=2)
    assert "write to shared memory that another thread has written" in fault


def test_shared_memory_that_nobody_wrote() -> None:
    body = ".shared .align 4 .b8 s[8]; st.shared.u32 [s], 1; ld.shared.u32 %r1, [s+4]; ret;"
    [fault] = faults(body, words(1))
    assert fault.startswith("read of shared memory that nobody wrote")
    # What another block wrote is gone.
    body = """
        .shared .align 4 .b8 s[8];
        setp.eq.u32 %p1, %block, 0;  @%p1 st.shared.u32 [s], 1;  ld.shared.u32 %r1, [s];  ret;"""
    [fault] = faults(body, words(1), blocks=2)
    assert "block 1" in fault


def test_out_of_shared_memory_and_of_the_parameters() -> None:
    body = ".shared .align 4 .b8 s[8]; mov.u64 %rd2, s; st.shared.u32 [%rd2+OFFSET], 1; ret;"
    for offset in (8, -4, 1 << 32):
        [fault] = faults(body.replace("OFFSET", str(offset)), words(1))
        assert fault.startswith("write out of shared memory")
    [fault] = faults("mov.u64 %rd2, out; ld.param.u32 %r1, [%rd2+8]; ret;", words(1))
    assert fault.startswith("read out of the parameters")


# ---- threads that wait for others ------------------------------------------------------------


def test_barriers_in_divergent_code() -> None:
    body = "setp.lt.u32 %p1, %thread, 16; @%p1 bar.sync 0; ret;"
    assert faults(body, words(1), threads=32)[0].startswith(
        "barrier of the block in divergent code"
    )
    body = """
        setp.lt.u32 %p1, %thread, 32; @%p1 bra $A; bar.sync 0; ret; $A: bar.sync 0; ret;"""
    assert any("different barriers" in f for f in faults(body, words(1), threads=64))


def test_a_warp_that_never_gets_to_the_barrier() -> None:
    body = "setp.ge.u32 %p1, %thread, 32; @%p1 ret; bar.sync 0; ret;"
    [fault] = faults(body, words(1), threads=96)[:1]
    assert fault.startswith("barrier of the block: warp 1 never gets here")
    assert not faults(body, words(1), threads=32)


def test_shuffles_that_wait_for_absent_threads() -> None:
    half = "setp.lt.u32 %p1, %lane, 16; @%p1 shfl.sync.down.b32 %r1, %lane, 1, 31, {}; ret;"
    assert "are elsewhere" in faults(half.format("-1"), words(1), threads=32)[0]
    [fault] = faults(half.format("0xffff"), words(1), threads=32)
    assert fault.startswith("shuffle from thread 16, which takes no part")
    gone = "setp.ge.u32 %p1, %lane, 16; @%p1 ret; bar.warp.sync -1; ret;"
    assert "threads that have ended" in faults(gone, words(1), threads=32)[0]
    assert "without this one" in faults("bar.warp.sync 0xfffe; ret;", words(1), threads=32)[0]
    unlike = "selp.u32 %r1, 0xffffffff, 0x3, %p1; bar.warp.sync %r1; ret;"
    unlike = "setp.eq.u32 %p1, %lane, 0;" + unlike
    assert any("unlike theirs" in f for f in faults(unlike, words(1), threads=2))


def test_loops_that_do_not_end() -> None:
    [fault] = faults("$L: bra.uni $L;", words(1))
    assert fault.startswith("no end in sight")


def test_no_return() -> None:
    [fault] = faults("mov.u32 %r1, 1;", words(1))
    assert fault.startswith("no return at the kernel's end")


# ---- what is not understood, and what cannot be launched ---------------------------------------

NOT_PTX = {
    "unknown opcode frobnicate.u32": "frobnicate.u32 %r1, %r1;",
    "unknown modifier or type of add.sat.s32": "add.sat.s32 %r1, %r1, %r1;",
    "unknown modifier or type of mul.f32": "mul.f32 %r1, %r1, %r1;",
    "unknown modifier or type of add.rn.ftz.f32": "add.rn.ftz.f32 %r1, %r1, %r1;",
    "unknown modifier or type of shfl.sync.down.b64": "shfl.sync.down.b64 %rd1, %rd1, 1, 31, -1;",
    "unknown modifier or type": "ld.global.nc.u32 %r1, [%rd1];",
    "unknown opcode atom.global.add.u32": "atom.global.add.u32 %r1, [%rd1], 1;",
    "unknown register or symbol %r77": "mov.u32 %r77, 1;",
    "unknown register or symbol table": "mov.u64 %rd1, table;",
    "operand %rd1 has 8 bytes, not 4": "mov.u32 %r1, %rd1;",
    "an operand is missing": "add.u32 %r1, %r1;",
    "too many operands": "not.b32 %r1, %r1, %r1;",
    "a destination that is no register": "mov.u32 5, %r1;",
    "a destination that is no register in `shfl": "shfl.sync.down.b32 7|%p1, %r1, 1, 31, -1;",
    "a table of more than 8 bits": "lop3.b32 %r1, %r1, %r1, %r1, 256;",
    "number 65536 of 2 bytes": "mov.u16 %h1, 65536;",
    "number 010": "mov.u32 %r1, 010;",
    "a barrier other than 0": "bar.sync 1;",
    "an address of 4 bytes": "ld.global.u32 %r1, [%r1];",
    "no label $NOWHERE": "bra $NOWHERE;",
    "label $L is there twice": "$L: mov.u32 %r1, 1; $L:",
    "registers of type b128": ".reg .b128 %q<3>;",
    "directive .local": ".local .align 4 .b8 depot[8];",
    "registers of another size": "ld.global.u64 %r1, [%rd1];",
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_PTX)
def test_what_is_not_understood_is_an_error(what: str) -> None:
    module = core.Module(kernel(f"\n  {NOT_PTX[what]}\n  ret;"))
    for _ in range(2):  # and stays one
        with pytest.raises(PtxError, match=r"^PTX of k, line \d+: ") as error:
            module.launch("k", words(1))
        assert what in str(error.value)
    if "unknown" in what and "symbol" not in what:
        assert NOT_PTX[what].rstrip(";") in str(error.value)


def test_bad_launches() -> None:
    text = kernel("ret;").replace("\n{", "\n.maxntid 64, 1, 1\n{", 1)
    module, out = core.Module(text), words(1)
    for size in ({"block": 65}, {"block": 0}, {"grid": 0}, {"grid": 1 << 31}):
        module.launch("k", out, **size)
        [fault] = core.take_faults()
        assert fault.startswith("bad launch of k: ")
    core.Module(kernel("ret;")).launch("k", out, block=1025)
    assert len(core.take_faults()) == 1
    with pytest.raises(PtxError, match="more than one dimension"):
        module.launch("k", out, block=(2, 2))
    with pytest.raises(PtxError, match="more than one dimension"):
        module.launch("k", out, grid=(1, 1, 2))
    with pytest.raises(PtxError, match="dynamic shared memory"):
        module.launch("k", out, shared=4)
