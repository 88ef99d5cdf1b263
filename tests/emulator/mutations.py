"""Bugs, put one at a time into a copy of the real sources: the emulator, or the comparison with
the CPU's kernels, must see each of them.

python tests/emulator/mutations.py [name ...]    all by default
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: modules are found as by pytest
    HERE = Path(__file__).resolve().parent
    sys.path = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from emulator import build

SECONDS = 30.0  # of the fuzzer, at most: most bugs are seen in the first one
# The sorts of what tells of a bug.
OTHER_BYTES, ROUNDING = r"Mismatch: .*other bytes", r"Mismatch: .*more than rounding"
BOUNDS, ALIGNMENT = r"(read|write) out of bounds", r"misaligned address"
SHARED_RACE = r"race: (read|write) (of|to) shared memory"
UNWRITTEN = r"nobody wrote"
ABSENT = r"waits for (are elsewhere|threads that have ended)"
STREAM = r"the stream is not one of the current device"
EXIT = r"host code calls exit\(\)"

SUM_SEGMENTS = (
    "launch.blocks<kRowThreads>(shape.rows * shape.segments, &sum_segments<Op>, op, shape, sums);"
)
ADD_SEGMENTS = (
    "launch.blocks(ceil_div(sets * 32, kThreads), &add_segments<Op>, op, shape,\n"
    "                static_cast<const double*>(sums));"
)


@dataclass(frozen=True)
class Mutation:
    """A file of csrc/cuda, what stands there once, and what is put in its place."""

    name: str
    file: str
    old: str
    new: str
    family: str  # whose kernels are compiled and called
    caught: str  # what tells of it, a pattern
    dtype: str = "float32"  # of the data: kernels of other ones are left out
    build: bool = False  # the bug is seen when the library is built


MUTATIONS = (
    Mutation(
        "no barrier between two uses of shared memory",
        "rows.cuh",
        "    if (job > 0) __syncthreads();  // The storage is used again.\n",
        "",
        "sliced",
        SHARED_RACE,
    ),
    Mutation(
        "threads without a pack return before the others shuffle",
        "rows.cuh",
        "#pragma unroll 1\n      for (int64_t pack = lane; run.first + pack * V < run.end;",
        "      if (run.first + lane * V >= run.end) return;\n"
        "#pragma unroll 1\n      for (int64_t pack = lane; run.first + pack * V < run.end;",
        "dsm",
        ABSENT,
    ),
    Mutation(
        "a part is stored one element too far",
        "elements.cuh",
        "    if (j < low || j >= high) continue;\n    if constexpr (sizeof(S) == 8) {\n"
        "      reinterpret_cast<uint2*>(to)",
        "    if (j < low || j > high) continue;\n    if constexpr (sizeof(S) == 8) {\n"
        "      reinterpret_cast<uint2*>(to)",
        "random",
        BOUNDS,
    ),
    Mutation(
        "packs are not cut at multiples in the flat index",
        "tiles.cuh",
        "begin_(number * kTileElements<Access> - origin % V)",
        "begin_(number * kTileElements<Access>)",
        "random",
        OTHER_BYTES,
    ),
    Mutation(
        "nobody asks whether packs are aligned",
        "access.cuh",
        "return view.contiguous() && aligned(view.data, size, v);",
        "return view.contiguous();",
        "random",
        ALIGNMENT,
    ),
    Mutation(
        "nobody asks whether each tangent's packs are aligned",
        "dual.cu",
        "const bool slices_fit = (args.tangents + (args.first_tangent > 0) <= 1) || "
        "args.numel % v == 0;",
        "const bool slices_fit = true;",
        "dual",
        ALIGNMENT,
    ),
    Mutation(
        "the wrong block of normals",
        "noise.cuh",
        "static_cast<uint64_t>(flat + b / kEach * apart)",
        "static_cast<uint64_t>(flat + b / kEach * V)",
        "dsm",
        OTHER_BYTES,
    ),
    Mutation(
        "a flat index of 32 bits",
        "sample_noise.cuh",
        "source.origin = sample_offset * size;",
        "source.origin = static_cast<uint32_t>(sample_offset * size);",
        "random",
        OTHER_BYTES,
    ),
    Mutation(
        "the last tile is left out where packs begin before the tensor",
        "tiles.cuh",
        "return ceil_div(origin % Access::V + numel, kTileElements<Access>);",
        "return ceil_div(numel, kTileElements<Access>);",
        "random",
        OTHER_BYTES,
    ),
    Mutation(
        "the last segment is left out where a row begins within a pack",
        "rows.cuh",
        "const int64_t slack = shape.size % V == 0 ? 0 : V - 1;",
        "const int64_t slack = 0;",
        "dsm",
        ROUNDING,
    ),
    Mutation(
        "a segment's sum is put in the wrong place",
        "rows.cuh",
        "partial[(set + k) * shape.segments + segment] = totals.of[k];",
        "partial[set + k + segment * Op::kSums] = totals.of[k];",
        "dsm",
        f"{UNWRITTEN}|race: write",
    ),
    Mutation(
        "sums of segments are read before they are written",
        "rows.cuh",
        f"  {SUM_SEGMENTS}\n  {ADD_SEGMENTS}\n",
        f"  {ADD_SEGMENTS}\n  {SUM_SEGMENTS}\n",
        "dsm",
        UNWRITTEN,
    ),
    Mutation(
        "a pack that begins before its row counts as whole",
        "rows.cuh",
        "const int whole = run.first < run.begin ? 0 : (run.end",
        "const int whole = (run.end",
        "dsm",
        f"{BOUNDS}|{ROUNDING}",
    ),
    Mutation(
        "the row of the sample before",
        "tiles.cuh",
        "row = load(++sample);",
        "row = load(sample++);",
        "dsm",
        OTHER_BYTES,
    ),
    Mutation(
        "a tile of several samples has the first one's row",
        "tiles.cuh",
        "if (begin_ + kTileElements<Access> <= (sample + 1) * sample_size.divisor) {",
        "if (begin_ < (sample + 1) * sample_size.divisor) {",
        "dsm",
        OTHER_BYTES,
    ),
    Mutation(
        "a sample's sum hangs on its place in the batch",
        "runge_kutta.cu",
        "return -sample * size;",
        "return 0;",
        "runge_kutta",
        OTHER_BYTES,
    ),
    Mutation(
        "every sample has the first one's coefficients",
        "steps.cuh",
        "step * args.batch_rows + sample : step",
        "step * args.batch_rows : step",
        "multistep",
        OTHER_BYTES,
        dtype="float64",  # float32 would come with scores of half precision
    ),
    Mutation(
        "threads don't tell each other what differs",
        "dsm.cu",
        "return !__syncthreads_or(differs);",
        "return !differs;",
        "dsm",
        OTHER_BYTES,
    ),
    Mutation(
        "a function of the device is called by the host",
        "dsm.cu",
        "__host__ __device__ __forceinline__ int64_t jobs() const { return 1; }",
        "__device__ __forceinline__ int64_t jobs() const { return 1; }",
        "dsm",
        EXIT,
        build=True,
    ),
    Mutation(
        "a neighbour's infinite noise, times 0",
        "sliced.cu",
        "      if (!whole && (k < range.low || k >= range.high)) continue;\n",
        "",
        "sliced",
        f"{ROUNDING}.*nan for",
        dtype="float16",
    ),
    Mutation(
        "launches on the default stream",
        "launch.h",
        "    stream_ = static_cast<cudaStream_t>(stream);\n",
        "",
        "random",
        STREAM,
    ),
)

# In a switch of csrc/cuda, the case of a dtype.
CASE_OF_DTYPE = re.compile(r"    +case DType::k(\w+):\n +return [^;]*;\n")


def without_dtypes_but(dtype: str, csrc: Path) -> None:
    """Takes the other dtypes' kernels out of the copy, as far as they are chosen by a switch."""
    for path in (csrc / "cuda").iterdir():
        text = path.read_text()
        kept = CASE_OF_DTYPE.sub(lambda m: m[0] if m[1].lower() == dtype else "", text)
        if kept != text:
            path.write_text(kept)


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of csrc with the bug."""
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc)
    path = csrc / "cuda" / mutation.file
    text = path.read_text()
    assert text.count(mutation.old) == 1, mutation.name
    path.write_text(text.replace(mutation.old, mutation.new))
    without_dtypes_but(mutation.dtype, csrc)
    return csrc


def library(mutation: Mutation) -> Path:
    """Of one family alone, with the bug. What all libraries share must have been built."""
    name = f"mutant_{re.sub('[^a-z0-9]+', '_', mutation.name.lower())}"
    with tempfile.TemporaryDirectory() as folder:
        csrc = mutated(mutation, Path(folder))
        source = csrc / "cuda" / f"{mutation.family}.cu"
        # Under a name of its own: of each name a few objects are kept.
        source = source.rename(source.with_stem(name))
        objects = [build.kernel_object(source, csrc, "90")]
    objects += [build.emulator_object(path) for path in sorted(build.HERE.glob("*.cpp"))]
    shared = (build.CSRC / f"{n}.cpp" for n in ("checks", "library"))
    found = build.link([*objects, *(build.host_object(path, build.CSRC) for path in shared)], name)
    build.check_what_it_takes(found)
    return found


def fuzzed(library: Path, family: str, dtype: str, seconds: float) -> tuple[int, str]:
    """The fuzzer's exit status and words, on that library; it ends with the first failure."""
    words = ["--library", str(library), "--family", family, "--dtype", dtype]
    words += ["--seed", "1", "--seconds", str(seconds), "--enough", "1"]
    command = [sys.executable, str(build.HERE / "fuzz.py"), *words]
    path = os.pathsep.join(filter(None, (str(build.ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60 + 20 * seconds, check=False
    )
    return run.returncode, run.stdout + run.stderr


@dataclass(frozen=True)
class Verdict:
    """Whether a bug was caught as it should be, by which words, and after how many seconds."""

    mutation: Mutation
    caught: bool
    words: str
    built: float
    seen: float

    def __str__(self) -> str:
        found = re.search(self.mutation.caught, self.words)
        by = f"by '{found[0]}'" if found else f"not by '{self.mutation.caught}'"
        what = f"caught {by}" if self.caught else f"MISSED, {by}"
        return f"{self.mutation.name}: {what}; {self.built:.0f} s to build, {self.seen:.1f} to see"


def verdict(mutation: Mutation) -> Verdict:
    start = time.monotonic()
    status, words = 1, ""
    try:
        made = library(mutation)
    except RuntimeError as error:
        if not mutation.build:
            raise
        words = str(error)
    built = time.monotonic()
    if not words:
        status, words = fuzzed(made, mutation.family, mutation.dtype, SECONDS)
    caught = status == 1 and re.search(mutation.caught, words) is not None
    return Verdict(mutation, caught, words, built - start, time.monotonic() - built)


@contextmanager
def started(mutations: Sequence[Mutation] = MUTATIONS) -> Iterator[dict[str, Future[Verdict]]]:
    """By name, in their order and two at a time."""
    build.build_library("90")  # what all share
    with ThreadPoolExecutor(2) as pool:
        yield {m.name: pool.submit(verdict, m) for m in mutations}
        pool.shutdown(cancel_futures=True)


def main() -> int:
    wanted = [m for m in MUTATIONS if not sys.argv[1:] or m.name in sys.argv[1:]]
    missed = 0
    with started(wanted) as futures:
        for future in futures.values():
            found = future.result()
            print(found if found.caught else f"{found}\n{found.words}", flush=True)
            missed += not found.caught
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
