"""Random calls of every op: CUDA's kernels, emulated, against the CPU's.

python tests/emulator/fuzz.py --seconds 60 --seed 7 --family sliced
python tests/emulator/fuzz.py --seed 7 --family sliced --case 123    one call alone

Elementwise ops must have the CPU's bytes; sums of rows its values within rounding, and the same
bytes for any part of the batch and in any layout; and no access to memory may be a fault.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: modules are found as by pytest
    HERE = Path(__file__).resolve().parent
    sys.path = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]

import argparse
import os
import random
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

import torch
from helpers import DTYPES

import emulator
from emulator.fuzz_cases import FAMILIES, drawn, first_number
from emulator.fuzz_check import check, told_case
from emulator.side import ARCH

ENOUGH = 3  # failures, and a family is given up


@dataclass
class Outcome:
    """What became of a family's cases."""

    family: str
    calls: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        calls = ", ".join(f"{op} {n}" for op, n in sorted(self.calls.items()))
        return (
            f"{self.family}: {self.calls.total()} calls in {self.seconds:.1f} s, "
            f"{len(self.failures)} failures ({calls})"
        )


def new_seed() -> int:
    return random.SystemRandom().randrange(2**32)


@dataclass(frozen=True)
class Run:
    """What every case of a run hangs on, beside its own number."""

    family: str
    seed: int
    dtypes: tuple[torch.dtype, ...] = DTYPES

    def again(self, number: int) -> str:
        """The command that repeats a case alone."""
        words = f"--seed {self.seed} --family {self.family} --case={number}"
        if self.dtypes != DTYPES:
            words += "".join(f" --dtype {str(dtype)[6:]}" for dtype in self.dtypes)
        if ARCH in os.environ:
            words += f" --arch {os.environ[ARCH]}"
        return f"python tests/emulator/fuzz.py {words}"


def run_case(run: Run, number: int, outcome: Outcome) -> None:
    try:
        case, draw = drawn(run.family, run.seed, number, run.dtypes)
    except Exception:
        words = f"the case can't be drawn:\n{traceback.format_exc()}"
    else:
        outcome.calls[case.op] += 1
        try:
            return check(case, draw)
        except AssertionError as failure:
            words = f"{type(failure).__name__}: {failure}"
        except Exception:
            words = traceback.format_exc()
        words = f"{told_case(case)}\n{words}"
    outcome.failures.append(f"{words}\n  again: {run.again(number)}")


def fuzz(run: Run, seconds: float, enough: int = ENOUGH) -> Outcome:
    """Each op of the family once at least, and on for so many seconds."""
    outcome, start = Outcome(run.family), time.monotonic()
    number, ops = first_number(run.family, run.dtypes), FAMILIES[run.family][1]
    while number < len(ops) or time.monotonic() < start + seconds:
        run_case(run, number, outcome)
        number += 1
        if len(outcome.failures) >= enough:
            break
    outcome.seconds = time.monotonic() - start
    return outcome


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="in all (15)")
    parser.add_argument("--seed", type=int, help="one drawn anew by default")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="all by default")
    names = [str(dtype)[6:] for dtype in DTYPES]
    parser.add_argument("--dtype", choices=names, action="append", help="all by default")
    parser.add_argument("--case", type=int, help="the number of one call, to make it alone")
    parser.add_argument("--arch", help="whose PTX: 80, 90 (default), 100 or 120")
    parser.add_argument("--library", type=Path, help="of kernels, built already")
    parser.add_argument("--enough", type=int, default=ENOUGH, help="failures of a family (3)")
    chosen = parser.parse_args()
    if chosen.case is not None and (chosen.seed is None or len(chosen.family or ()) != 1):
        parser.error("--case goes with --seed and one --family")
    return chosen


def main() -> int:
    chosen = options()
    if chosen.arch:
        os.environ[ARCH] = chosen.arch
    emulator.load(chosen.arch, chosen.library)
    seed = new_seed() if chosen.seed is None else chosen.seed
    families = chosen.family or list(FAMILIES)
    dtypes = tuple(getattr(torch, name) for name in chosen.dtype) if chosen.dtype else DTYPES
    failed = 0
    print(f"seed {seed}", flush=True)
    for run in (Run(family, seed, dtypes) for family in families):
        if chosen.case is not None:
            outcome = Outcome(run.family)
            run_case(run, chosen.case, outcome)
        else:
            outcome = fuzz(run, chosen.seconds / len(families), chosen.enough)
        for failure in outcome.failures:
            print(f"\n{failure}", flush=True)
        print(outcome, flush=True)
        failed += len(outcome.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small are the calls
    sys.exit(main())
