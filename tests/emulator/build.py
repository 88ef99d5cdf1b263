"""Builds the emulator's libraries under build/emulator, each object once for what it is made from.

python tests/emulator/build.py [architecture]    90 if none is given
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulator"
KEPT = 8  # of each object and library, that many made last

HOST = ["-std=c++20", "-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden"]
# The interpreter's float arithmetic is the kernels': nothing may be contracted. The last two say
# that nobody looks at errno or at the flags of exceptions.
EMULATOR = [*HOST, "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# Of x86-64, what most machines have and what makes it three times as fast: all of it or nothing.
VECTORS = ("avx2", "fma", "f16c", "bmi", "bmi2", "popcnt")
# The emulator itself; the other sources stand in for CUDA's runtime and PyTorch's.
STAND_INS = frozenset({"devices", "interface", "runtime", "torch"})

# What of PyTorch the library may take from PyTorch itself. All that tells what a tensor is; nothing
# that makes one, changes one or knows of GPUs: of such the emulator has its own, or there is none.
PYTORCHS_OWN = re.compile(
    r"""aoti_torch_(abi_version | delete_(library_object|tensor_object) | new_tensor_handle
        | dtype_\w+ | device_type_\w+ | layout_\w+ | memory_format_\w+ | library_\w+
        | get_(device_type|dim|dtype|numel|sizes|strides|size|stride|storage_offset|layout)
        | is_contiguous | is_defined)
    | torch_(library_\w+ | exception_\w+ | (new|delete)_(list|string)\w* | (list|string)_\w+)""",
    re.VERBOSE,
)
FOREIGN = re.compile(r"aoti_torch_\w+|torch_\w+|cuda\w+|__cuda\w+|cu[A-Z]\w+|_ZN2at\w+|_ZN3c10\w+")


class CannotBuild(Exception):
    """A compiler is missing: the reason."""


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    if not found:
        raise CannotBuild("no nvcc on the PATH or in CUDA_HOME")
    return found


def compiler() -> list[str]:
    words = os.environ.get("CXX", "c++").split()
    if shutil.which(words[0]) is None:
        raise CannotBuild(f"no C++ compiler ({words[0]})")
    return words


def why_not_core() -> str | None:
    """Why the emulator by itself can't be built on this machine, if it can't."""
    try:
        compiler()
    except CannotBuild as reason:
        return str(reason)
    return None


def why_not() -> str | None:
    """Why the emulator can't be built on this machine, if it can't."""
    try:
        nvcc()
        compiler()
    except CannotBuild as reason:
        return str(reason)
    return None


@cache
def setup_lists() -> dict[str, list[str]]:
    """The plain lists of strings in setup.py, by name."""
    found: dict[str, list[str]] = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            words = node.value.elts
            if all(isinstance(w, ast.Constant) and isinstance(w.value, str) for w in words):
                found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    return found


def setup_flags(name: str) -> list[str]:
    """A list of flags that setup.py builds the extension with."""
    return setup_lists()[name]


@cache
def version_of(program: str) -> str:
    run = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return run.stdout


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = f"{done.stdout}{done.stderr}"
        raise RuntimeError(f"the emulator's build failed: {' '.join(command)}\n{words}")


def made(name: str, command: list[str], inputs: list[Path], suffix: str, where: list[str]) -> Path:
    """The file of that name which ``command`` makes of ``inputs``; if it is there already, that.

    ``where`` are the arguments that say where things lie, of which the result doesn't depend.
    """
    digest = hashlib.sha256(f"{version_of(command[0])}{torch.__version__}{command}".encode())
    for path in inputs:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    target = BUILD / f"{name}-{digest.hexdigest()[:16]}{suffix}"
    if target.exists():
        target.touch()
        return target
    unfinished = target.with_suffix(f".{os.getpid()}{suffix}")
    run([*command, *where, "-o", str(unfinished)])
    unfinished.rename(target)
    same = sorted(BUILD.glob(f"{name}-????????????????{suffix}"), key=lambda p: p.stat().st_mtime)
    for old in same[:-KEPT]:
        old.unlink()
    return target


@contextmanager
def alone() -> Iterator[None]:
    """One build at a time, of all processes."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def torch_includes() -> list[str]:
    return [word for path in include_paths() for word in ("-isystem", path)]


def kernel_object(source: Path, csrc: Path, arch: str) -> Path:
    """Host code for this machine and the kernels' PTX, as text, in one object."""
    command = [nvcc(), *COMMON_NVCC_FLAGS, *setup_flags("NVCC"), *setup_flags("STABLE_ABI")]
    command += [f"-gencode=arch=compute_{arch},code=compute_{arch}", "--no-compress"]
    command += ["-DFASTSCORE_EMULATED", "-Xcompiler=-O1,-fPIC,-fvisibility=hidden", "-c"]
    headers = [*csrc.glob("*.h"), *csrc.glob("core/*.h"), *csrc.glob("cuda/*.*h")]
    where = [str(source), f"-I{csrc}", *torch_includes()]
    return made(f"{source.stem}_{arch}", command, [source, *sorted(headers)], ".o", where)


def host_object(source: Path, csrc: Path) -> Path:
    """One of the library's own files without kernels."""
    # The stable headers of torch 2.14 leave parameters unused.
    command = [*compiler(), *HOST, "-O2", "-Wno-unused-parameter", *setup_flags("STABLE_ABI")]
    command += ["-DFASTSCORE_EMULATED", "-c"]
    headers = [*csrc.glob("*.h"), *csrc.glob("core/*.h")]
    where = [str(source), f"-I{csrc}", *torch_includes()]
    return made(source.stem, command, [source, *sorted(headers)], ".o", where)


@cache
def vector_flags() -> list[str]:
    cpu = Path("/proc/cpuinfo")
    here = re.search(r"^flags\s*:(.*)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else None
    if here and set(VECTORS) <= set(here[1].replace("bmi1", "bmi").split()):
        return [f"-m{name}" for name in VECTORS]
    return []


def emulator_object(source: Path) -> Path:
    headers = sorted(HERE.glob("*.h"))
    command = [*compiler(), *EMULATOR, *vector_flags(), "-c"]
    return made(f"emulator_{source.stem}", command, [source, *headers], ".o", [str(source)])


def build_core() -> Path:
    """The emulator by itself, whose functions are those of c_api.cpp."""
    sources = sorted(path for path in HERE.glob("*.cpp") if path.stem not in STAND_INS)
    with alone(), ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(emulator_object, sources))
        command = [*compiler(), "-shared", "-Wl,--no-undefined"]
        return made("emulator_core", command, objects, ".so", [*map(str, objects)])


def check_what_it_takes(library: Path) -> None:
    """No function that might reach a GPU, or memory that the emulator doesn't watch; no exit()."""
    command = ["nm", "-D", "--undefined-only", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1].partition("@")[0] for line in listing.splitlines()]
    unknown = [n for n in names if FOREIGN.fullmatch(n) and not PYTORCHS_OWN.fullmatch(n)]
    if "exit" in names:
        library.unlink()
        raise RuntimeError(
            "host code calls exit(): nvcc puts it in place of a function that is __device__ alone"
        )
    if unknown:
        library.unlink()
        raise RuntimeError(
            f"host code of a kernel calls {', '.join(unknown)}, which the emulator doesn't know: "
            "see tests/emulator/torch.cpp and PYTORCHS_OWN in tests/emulator/build.py"
        )


def link(objects: list[Path], name: str) -> Path:
    """A library that takes all it needs from PyTorch's CPU side, or isn't made."""
    lib = Path(torch.__file__).parent / "lib"
    # -Bsymbolic: its functions are its own, though PyTorch has some of the same name.
    command = [*compiler(), "-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined"]
    where = [*map(str, objects), f"-L{lib}", f"-Wl,-rpath,{lib}", "-ltorch_cpu", "-lc10", "-ldl"]
    return made(name, command, objects, ".so", where)


def build_library(arch: str = "90", csrc: Path = CSRC) -> Path:
    """The CUDA sources under ``csrc``, compiled for compute_``arch``, and what executes them."""
    setup_lists()  # now: threads can't share Python's parser
    with alone(), ThreadPoolExecutor(2) as pool:
        kernels = sorted(csrc.glob("cuda/*.cu"), key=lambda path: -path.stat().st_size)
        jobs = [pool.submit(kernel_object, source, csrc, arch) for source in kernels]
        jobs += [pool.submit(emulator_object, source) for source in sorted(HERE.glob("*.cpp"))]
        jobs += [pool.submit(host_object, csrc / f"{n}.cpp", csrc) for n in ("checks", "library")]
        objects = [job.result() for job in jobs]
        library = link(objects, f"fastscore_emulated_{arch}")
        check_what_it_takes(library)
        return library


if __name__ == "__main__":
    print(build_library(sys.argv[1] if len(sys.argv) > 1 else "90"))
