"""Compiles csrc/cuda/*.cu for sm_90 and tells what each kernel takes of a multiprocessor.

    python tools/cuda_resources.py [directory for the objects]

Needs nvcc on the PATH, no GPU, and any build of torch: the kernels use its stable headers alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
# As setup.py builds them, except that the host's half is left unoptimised.
FLAGS = [
    *COMMON_NVCC_FLAGS,
    "-std=c++20",
    "-O3",
    "-fmad=false",
    "-gencode=arch=compute_90,code=sm_90",
    "-DUSE_CUDA",
    "-DFASTSCORE_ISA=cuda",
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
    "-DTORCH_STABLE_ONLY",
    "-Xcompiler=-O0,-fPIC",
    "-Xptxas=-v",
]
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel; sizes in bytes."""

    source: str
    name: str
    registers: int
    stack: int
    spills: int
    shared: int


def demangled(names: list[str]) -> list[str]:
    """Readable names where c++filt is there, else the names as they are."""
    if not names or shutil.which("c++filt") is None:
        return names
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    noise = r"^void |\(anonymous namespace\)::|fastscore::cuda::"
    return [re.sub(r"\(.*\)$", "", re.sub(noise, "", line)) for line in done.stdout.splitlines()]


def compile_one(source: Path, objects: Path) -> list[Kernel]:
    """The kernels of one file. A compiler's error is raised with its words."""
    includes = [f"-I{CSRC}"]
    for path in include_paths():
        includes += ["-isystem", path]
    target = objects / f"{source.stem}.o"
    command = ["nvcc", *FLAGS, *includes, "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source.name}:\n{done.stdout}{done.stderr}")
    # One entry ends where the next begins: a kernel without shared memory must not take the next's.
    log = re.split(r"(?=ptxas info\s*: Compiling entry)", done.stdout + done.stderr)
    found = [match for part in log if (match := ENTRY.search(part))]
    return [
        Kernel(
            source.stem,
            name,
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
            int(match["shared"] or 0),
        )
        for name, match in zip(demangled([m["name"] for m in found]), found, strict=True)
    ]


def compile_all(objects: Path, jobs: int = 2) -> list[Kernel]:
    """The kernels of all files, the longest compilations first."""
    sources = sorted(SOURCES, key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(jobs) as pool:
        kernels = pool.map(lambda source: compile_one(source, objects), sources)
        return [kernel for group in kernels for kernel in group]


def header() -> str:
    """What the figures depend on."""
    run = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release .*", run.stdout)
    version = release[0] if release else "of unknown version"
    return f"nvcc {version}; torch {torch.__version__} (headers); {' '.join(FLAGS[1:4])}"


def summary(kernels: list[Kernel]) -> list[str]:
    """One line for each family: its fast kernels, which move packs whole, and the others."""
    lines = [f"{'family':<10}{'kernels':>8}{'most registers':>16}{'fast float32':>14}{'spills':>8}"]
    for source in sorted({kernel.source for kernel in kernels}):
        mine = [kernel for kernel in kernels if kernel.source == source]
        fast = [k.registers for k in mine if re.search(r"Packed(<float, 4,|IfLi4E)", k.name)]
        most, spills = max(k.registers for k in mine), sum(k.spills + k.stack for k in mine)
        lines.append(f"{source:<10}{len(mine):>8}{most:>16}{max(fast, default=0):>14}{spills:>8}")
    return lines


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        objects = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        kernels = compile_all(objects)
    print(header())
    print("\n".join(summary(kernels)), end="\n\n")
    print(f"{'registers':>9} {'stack':>5} {'spills':>6} {'shared':>6}  kernel (sm_90)")
    for k in sorted(kernels, key=lambda k: (k.source, k.name)):
        print(f"{k.registers:9} {k.stack:5} {k.spills:6} {k.shared:6}  {k.source}: {k.name}")


if __name__ == "__main__":
    main()
