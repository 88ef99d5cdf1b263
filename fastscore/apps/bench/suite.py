"""All cases, and the command ``fastscore bench``."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastscore._support.checks import check_choice
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.case import Case, NotAvailable
from fastscore.apps.bench.cases import (
    continuous,
    dsm,
    dual,
    langevin,
    multistep,
    random,
    runge_kutta,
    sampling,
    scaling,
    sliced,
    training,
)
from fastscore.apps.bench.machine import devices, prepare_process
from fastscore.apps.bench.measure import Effort, measure
from fastscore.apps.bench.names import FAMILIES, OPS
from fastscore.apps.bench.report import LEGEND, case_lines, lines, read_rows, write_rows
from fastscore.ops._library import _C

Row = dict[str, Any]
Say = Callable[[str], Any]

SOURCES: dict[str, list[Callable[[str, bool], Any]]] = {
    "random": [random.cases],
    "langevin": [langevin.cases],
    "multistep": [multistep.cases],
    "continuous": [continuous.cases],
    "dsm": [dsm.cases],
    "runge_kutta": [runge_kutta.cases],
    "sliced": [sliced.cases],
    "dual": [dual.cases],
    "jobs": [sampling.cases, training.cases],
    "scaling": [scaling.cases],
}
CAPABILITY = "FASTSCORE_CPU_CAPABILITY"
say_now = functools.partial(print, flush=True)


def family_cases(family: str, device: str, *, quick: bool = False) -> list[Case]:
    """The cases of one family on one device."""
    return [case for source in SOURCES[family] for case in source(device, quick)]


def all_cases(device: str, *, quick: bool = False) -> list[Case]:
    """The cases of every family on one device."""
    return [case for family in SOURCES for case in family_cases(family, device, quick=quick)]


def selected(ops: Sequence[str] | None, device: str, *, quick: bool) -> list[Case]:
    """The cases whose op or family is named; all of them for None."""
    for op in ops or ():
        check_choice("bench", "--op", op, (*FAMILIES, *OPS))
    cases = all_cases(device, quick=quick)
    if ops is None:
        return cases
    return [case for case in cases if case.op in ops or case.family in ops]


def capability_rows(quick: bool, say: Say) -> list[Row]:
    """Rows of the main kernels for every instruction set, each in a process of its own.

    In a process that was itself told which to use: of that one, here.
    """
    rows: list[Row] = []
    if os.environ.get(CAPABILITY):
        measure_all(list(scaling.capability_cases(quick)), rows, quick=quick, say=say)
        return rows
    for name in _C.cpu_capabilities():
        say(f"-- instruction set {name}")
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "fastscore", "bench", "--op", "capability"]
            command += ["--device", "cpu", "--out", out] + ["--quick"] * quick
            environment = os.environ | {CAPABILITY: name}
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            found = read_rows([Path(out) / "cpu.json"])
        rows += found
        for text in case_lines(found):
            say(text)
    return rows


def measure_all(cases: Sequence[Case], rows: list[Row], *, quick: bool, say: Say) -> None:
    """Adds the rows of all cases; one that the machine has no memory for is left out, and said."""
    effort, where = Effort(quick=quick), prepare_process()
    for case in cases:
        try:
            found = measure(case, effort, where)
        except NotAvailable as reason:
            say(f"left out: {reason}")
            continue
        rows += found
        for text in lines(found):
            say(text)


def run_bench(
    out: str | Path,
    *,
    ops: Sequence[str] | None = None,
    device: str = "all",
    quick: bool = False,
    say: Say = say_now,
) -> list[Path]:
    """Measure, and write the rows of each device to ``OUT/<device>.json``.

    Args:
        out: directory; made if its parent exists.
        ops: names of ops or families, those of ``names.py``; None for all.
        device: "cpu", "cuda" or "all" that are there.
        quick: small sizes and few turns: to see that all runs, not to quote.
        say: where the report goes.

    Returns:
        The files written.

    Raises:
        ValueError: an unknown op, or a device that is not there.
        Disagreement: a side did not compute what it should.
        OSError: ``out`` can't be written to; said before any work is done.
    """
    there = devices()
    check_choice("bench", "--device", device, ("all", *there))
    directory = prepare_directory("bench", out)
    chosen = there if device == "all" else [device]
    plan = {name: selected(ops, name, quick=quick) for name in chosen}
    written = []
    say(LEGEND)
    for name, cases in plan.items():
        rows: list[Row] = []
        path = directory / f"{name}.json"
        told = ops is not None and "capability" in ops
        try:
            measure_all(cases, rows, quick=quick, say=say)
            if name == "cpu" and (told or (ops is None and not os.environ.get(CAPABILITY))):
                rows += capability_rows(quick, say)
        finally:  # what there is, if a side disagrees or the user has enough
            if rows:
                write_rows(rows, path)
                written.append(path)
                say(f"wrote {len(rows)} rows to {path}")
    return written
