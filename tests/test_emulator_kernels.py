"""The emulator understands every kernel of the library, for every kind of GPU."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulator import build, core, side

# The default run compiles for one architecture anyway; the others are minutes of nvcc.
WANTED = os.environ.get("CI") or os.environ.get("FASTSCORE_TEST_CUDA_BUILD")
ARCHITECTURES = ("80", "90", "100", "120")


def ptx_of(source: Path, arch: str) -> str:
    """The PTX in an object, uncompressed and between zeros."""
    found = re.findall(
        rb"\.version [^\0]*", build.kernel_object(source, build.CSRC, arch).read_bytes()
    )
    [text] = [text for text in found if b".entry" in text]
    return text.decode()


@pytest.mark.emulated
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_is_understood(arch: str) -> None:
    if arch != os.environ.get(side.ARCH, "90") and not WANTED:
        pytest.skip("set FASTSCORE_TEST_CUDA_BUILD=1 to compile CUDA")
    sources = sorted(build.CSRC.glob("cuda/*.cu"))
    assert len(sources) == 7
    with build.alone(), ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda source: ptx_of(source, arch), sources))
    total = 0
    for text in texts:
        assert f".target sm_{arch}" in text
        module = core.Module(text)
        assert len(module.names()) == text.count(".entry ")
        total += len(module.names())
        for name in module.names():
            module.prepare(name)
    assert total > 200
