"""Builds fastscore._C. Everything declarative is in pyproject.toml.

Environment:
  FASTSCORE_CUDA=0|1     leave CUDA out, or demand it (default: built when nvcc and a CUDA
                         build of torch are both there)
  CUDA_HOME              the CUDA toolkit (default: that of the nvcc on the PATH)
  TORCH_CUDA_ARCH_LIST   the CUDA architectures to build, as for any torch extension (default: those
                         of the GPUs that are here; with none, all that torch was built for)
  MAX_JOBS               how many compilers run at once
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup


def require_build_tools() -> None:
    """What pip installs by itself, but not with --no-build-isolation."""
    needed = ["torch", "pybind11"] + ([] if shutil.which("ninja") else ["ninja"])
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise SystemExit(f"fastscore: building needs {names}: pip install {' '.join(missing)}")
    if "ninja" in needed:  # it is there, in an environment that is not activated
        import ninja

        os.environ["PATH"] += os.pathsep + ninja.BIN_DIR


require_build_tools()
import pybind11  # noqa: E402


def set_cuda_home() -> None:
    """From nvcc itself, which may be a script or a link elsewhere; torch takes it by its place."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    plan = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    found = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    if found:
        os.environ["CUDA_HOME"] = os.path.realpath(found[1])


set_cuda_home()  # torch reads it when it is imported
import torch  # noqa: E402
from torch.utils.cpp_extension import (  # noqa: E402
    CUDA_HOME,
    BuildExtension,
    CppExtension,
    CUDAExtension,
)

CSRC = Path("csrc")
FAMILIES = sorted(path.stem for path in (CSRC / "cpu/isa").glob("*.cpp"))

# Same results everywhere: no contraction but the fma that the code writes.
STRICT = ["-O3", "-ffp-contract=off", "-fno-math-errno"]
COMMON = [*STRICT, "-Wall", "-Wextra", "-fvisibility=hidden"]
# Independent chains of operations are written one after the other; this interleaves them.
SCHEDULE = ["-fschedule-insns", "-fsched-pressure"]
AVX2 = ["-mavx2", "-mfma", "-mf16c", *SCHEDULE]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {
    "default": [],
    "avx2": [*AVX2, "-DFASTSCORE_LANES_AVX2"],
    # GCC 12 warns of _mm512_undefined_ps in its own headers.
    "avx512": [*AVX512, "-DFASTSCORE_LANES_AVX512", "-Wno-uninitialized"],
}
# LibTorch's stable ABI of 2.10: one build serves every torch from there on.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000ULL", "-DTORCH_STABLE_ONLY"]
# A plain list: the tests read it, to compile the kernels for their emulator alike.
NVCC = ["-std=c++20", "-O3", "-fmad=false", "-DUSE_CUDA", "-DFASTSCORE_ISA=cuda"]


def wants_cuda() -> bool:
    """Whether to build CUDA kernels; FASTSCORE_CUDA=1 without what it needs is an error."""
    wish = os.environ.get("FASTSCORE_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"FASTSCORE_CUDA must be 0 or 1, got {wish!r}")
    if wish == "0":
        return False
    nvcc = shutil.which("nvcc") or (CUDA_HOME and shutil.which("nvcc", path=f"{CUDA_HOME}/bin"))
    missing = []
    if not nvcc or not CUDA_HOME:
        missing.append("nvcc (set CUDA_HOME)")
    if torch.version.cuda is None:
        missing.append(f"a CUDA build of torch (found {torch.__version__})")
    if wish == "1" and missing:
        raise SystemExit("FASTSCORE_CUDA=1 needs " + " and ".join(missing))
    return not missing


def cuda_architectures() -> str:
    """Their list, which torch itself makes only where there is a GPU to ask."""
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and torch.cuda.device_count() == 0:
        found = re.findall(r"\bsm_(\d+)(\d)\b", torch._C._cuda_getArchFlags())
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(f"{major}.{minor}" for major, minor in found)
    return os.environ.get("TORCH_CUDA_ARCH_LIST", "native")


class BuildWithInstructionSets(BuildExtension):
    """Compiles csrc/cpu/isa/*.cpp once per instruction set, each with flags of its own."""

    def build_extension(self, ext) -> None:
        ext.extra_objects = [*ext.extra_objects, *self.compile_instruction_sets()]
        super().build_extension(ext)

    def compile_instruction_sets(self) -> list[str]:
        build = Path(self.build_temp)
        headers = [*CSRC.glob("core/*.h"), *CSRC.glob("cpu/*.h"), *CSRC.glob("cpu/isa/*.h")]
        newest = max(path.stat().st_mtime for path in [*headers, Path(__file__)])
        jobs = []
        for name, flags in INSTRUCTION_SETS.items():
            for family in FAMILIES:
                source = CSRC / "cpu/isa" / f"{family}.cpp"
                target = build / "isa" / name / f"{family}.o"
                jobs.append((source, target, [f"-DFASTSCORE_ISA=cpu_{name}", *flags]))
        stale = [
            (source, target, flags)
            for source, target, flags in jobs
            if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime)
        ]
        workers = int(os.environ.get("MAX_JOBS", 0)) or os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: self.compile_unit(*job), stale))
        return [str(target) for _, target, _ in jobs]

    def compile_unit(self, source: Path, target: Path, flags: list[str]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++").split()
        common = [*compiler, "-std=c++20", "-fPIC", f"-I{CSRC}", *COMMON]
        # GCC 12 does not see that a loop from 0 to a constant fills an array.
        common.append("-Wno-maybe-uninitialized")
        self.spawn([*common, *flags, "-c", str(source), "-o", str(target)])


def extension():
    """The one extension module, with CUDA where it can be had."""
    cuda = wants_cuda()
    sources = [CSRC / "library.cpp", CSRC / "module.cpp", CSRC / "checks.cpp"]
    sources += sorted((CSRC / "cpu").glob("*.cpp"))
    macros = [f'-DFASTSCORE_TORCH_VERSION="{torch.__version__}"']
    # The stable headers of torch 2.14 leave parameters unused.
    flags = {"cxx": ["-std=c++20", *COMMON, "-Wno-unused-parameter", *STABLE_ABI, *macros]}
    make = CppExtension
    if cuda:
        make = CUDAExtension
        sources += sorted((CSRC / "cuda").glob("*.cu"))
        flags["cxx"] += ["-DUSE_CUDA", f'-DFASTSCORE_CUDA_ARCHS="{cuda_architectures()}"']
        flags["nvcc"] = [*NVCC, *STABLE_ABI, "--threads=2", "-Xcompiler", "-fvisibility=hidden"]
    return make(
        "fastscore._C",
        [str(path) for path in sources],
        include_dirs=[str(CSRC.resolve()), pybind11.get_include()],
        extra_compile_args=flags,
    )


setup(
    license="BSD-3-Clause",  # here, for setuptools before 77 takes no such string in pyproject.toml
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildWithInstructionSets.with_options(use_ninja=True)},
)
