"""The square root of the normals' radius on a GPU: correctly rounded for every argument.

It does without ``sqrt.rn``'s test of its argument, and is correctly rounded only if
``rsqrt.approx`` is what it is inside ``sqrt.rn``: what is documented of it leaves 37 pairs of an
argument and a reciprocal root for which the result would be wrong. Only a device can tell.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# The arguments, times powers of 4, that a reciprocal root one unit in the last place too large
# rounds wrongly for.
TELLING = (float.fromhex("0x1.f82294p0"), float.fromhex("0x1.dd26e4p-1"))


def bits(x: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", x))[0])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    target = tmp_path_factory.mktemp("roots") / "roots.so"
    major, minor = torch.cuda.get_device_capability()
    subprocess.run(
        [
            *(nvcc, "-shared", "-Xcompiler=-fPIC", "-std=c++20", "-O3", "-fmad=false"),
            *(f"-arch=sm_{major}{minor}", "-DFASTSCORE_ISA=cuda", f"-I{ROOT / 'csrc'}"),
            *(str(ROOT / "tests/device/roots.cu"), "-o", str(target)),
        ],
        check=True,
    )
    return ctypes.CDLL(str(target))


def compare(library: ctypes.CDLL, begin: int, end: int) -> tuple[int, int, int]:
    """How many floats with bits in [begin, end) were compared, how many are wrong, the first."""
    checked, wrong, first = ctypes.c_ulonglong(), ctypes.c_ulonglong(), ctypes.c_uint32()
    error = library.compare_roots(
        ctypes.c_uint32(begin), ctypes.c_uint32(end),
        ctypes.byref(checked), ctypes.byref(wrong), ctypes.byref(first),
    )  # fmt: skip
    assert error == 0, f"CUDA error {error}"
    return checked.value, wrong.value, first.value


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_roots_are_correctly_rounded(library: ctypes.CDLL) -> None:
    for argument in TELLING:
        for power in range(-16, 3):
            begin = bits(argument * 4.0**power)
            checked, wrong, _ = compare(library, begin, begin + 1)
            assert checked == 1
            assert wrong == 0, f"{(argument * 4.0**power).hex()}"
    # And all others that a radius can be, 2^-32 to 47.
    begin, end = bits(2.0**-32), bits(47.0) + 1
    checked, wrong, first = compare(library, begin, end)
    assert checked == end - begin > 3e8
    assert wrong == 0, f"{wrong} of {checked} arguments, the first of bits {first:#010x}"
