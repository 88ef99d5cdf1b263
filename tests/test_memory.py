"""Freed memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

import fastscore

# Pages mapped while three arrays of 16 MiB come and go, forty times after the first ten. Whether
# glibc gives memory back of itself hangs on what happens to lie at the end of the heap, so it is
# first told to map every large block, and to do so from then on.
FAULTS = """
import ctypes, resource, sys, torch, fastscore
M_MMAP_THRESHOLD = -3
assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)
if sys.argv[1] == "keep":
    assert fastscore.keep_freed_memory(128)
def arrays():
    made = [torch.empty(4 << 20) for _ in range(3)]
    for each in made:
        each.fill_(1)
for _ in range(10):
    arrays()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    arrays()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    run = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's options")
def test_freed_memory_is_found_in_place() -> None:
    # An array has 4096 pages; a huge page, where the system gives them, is one fault for 512.
    rounds, arrays, huge_pages = 40, 3, 8
    assert faults("leave") >= rounds * arrays * huge_pages
    assert faults("keep") < rounds * arrays


@pytest.mark.parametrize(
    ("mebibytes", "error"), [(0, ValueError), (4096, ValueError), (1.5, TypeError)]
)
def test_bad_amount(mebibytes: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^keep_freed_memory: mebibytes must be"):
        fastscore.keep_freed_memory(mebibytes)
