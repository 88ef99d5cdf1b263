"""Every CUDA source compiles against the torch that is here: no GPU, no CUDA build of torch.

Also what its host code calls: where it calls a function that is for the device alone, nvcc puts a
call of exit() in its place, without a word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
FAMILIES = ("random", "langevin", "multistep", "dsm", "runge_kutta", "sliced", "dual")

# Minutes of nvcc: on request, and in continuous integration.
WANTED = os.environ.get("CI") or os.environ.get("FASTSCORE_TEST_CUDA_BUILD")
pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH"),
    pytest.mark.skipif(not WANTED, reason="set FASTSCORE_TEST_CUDA_BUILD=1 to compile CUDA"),
]


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "cuda_resources", ROOT / "tools/cuda_resources.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fingerprint(tool: ModuleType) -> str:
    """Of everything that the compilation depends on."""
    compiler = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    digest = hashlib.sha256(f"{compiler.stdout}{torch.__version__}{tool.FLAGS}".encode())
    for path in sorted([*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/c*/*.[hc]*")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def undefined_symbols(target: Path) -> list[str]:
    run = ["nm", "--undefined-only", "--format=just-symbols", str(target)]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What ptxas says of every kernel, and what each object's unoptimised host code calls.

    Kept from one run to the next: compiling takes a while.
    """
    tool = load_tool()
    key = f"fastscore/cuda-{fingerprint(tool)}"
    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    known = cache and cache.get(key, None)
    if known is None:
        objects = tmp_path_factory.mktemp("objects")
        found = tool.compile_all(objects)
        known = {
            "kernels": [dataclasses.asdict(kernel) for kernel in found],
            "calls": {path.stem: undefined_symbols(path) for path in objects.glob("*.o")},
        }
        if cache:
            cache.set(key, known)
    return known


@pytest.fixture(scope="module")
def kernels(compiled: dict) -> list:
    tool = load_tool()
    return [tool.Kernel(**kernel) for kernel in compiled["kernels"]]


def test_host_code_does_not_end_the_process(compiled: dict) -> None:
    calls = compiled["calls"]
    assert set(calls) == {path.stem for path in ROOT.glob("csrc/cuda/*.cu")} >= set(FAMILIES)
    assert all("__cudaRegisterFatBinary" in names for names in calls.values())
    ends = {"exit", "_exit", "_Exit", "quick_exit", "abort"}
    found = {source: ends & set(names) for source, names in calls.items()}
    assert not any(found.values()), found


def test_such_a_call_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("""
        template <class T> struct Jobs { __device__ __forceinline__ T count() const { return 3; } };
        template <class Op> long host(const Op& op) { return op.count(); }
        long twice() { return 2 * host(Jobs<long>{}); }
        """)
    target = tmp_path / "wrong.o"
    command = ["nvcc", "-std=c++20", "-Xcompiler=-O0,-fPIC", "-c", str(source), "-o", str(target)]
    subprocess.run(command, capture_output=True, check=True)
    assert "exit" in undefined_symbols(target)


def test_every_source_compiles(kernels: list) -> None:
    assert {kernel.source for kernel in kernels} == set(FAMILIES)
    assert len({kernel.name for kernel in kernels}) == len(kernels) > 100


def test_no_kernel_spills_on_its_fast_path(kernels: list) -> None:
    fast = [kernel for kernel in kernels if "Packed" in kernel.name]
    assert {kernel.source for kernel in fast} == set(FAMILIES)
    spilling = [kernel for kernel in fast if kernel.stack or kernel.spills]
    assert not spilling


def test_float32_kernels_leave_room_for_many_threads(kernels: list) -> None:
    """At most 64 registers: at least 1024 threads on a multiprocessor, to hide memory's latency.

    With four packs of a thread in flight, twice the usual, 512 threads hide as much.
    """
    fast = [k for k in kernels if re.search(r"Packed(<float, 4,|IfLi4E)", k.name)]
    assert {kernel.source for kernel in fast} == set(FAMILIES)
    four = [k for k in fast if re.search(r"Packed(<float, 4, 4>|IfLi4ELi4EE)", k.name)]
    assert {kernel.source for kernel in four} == {"random", "sliced"}
    heavy = [k for k in fast if k.registers > (96 if k in four else 64)]
    assert not heavy
