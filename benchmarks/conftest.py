"""Runs the cases of ``fastscore.apps.bench`` under pytest-benchmark, writes their rows as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastscore.apps.bench.case import Case, NotAvailable
from fastscore.apps.bench.machine import devices, prepare_process
from fastscore.apps.bench.measure import Effort, Measurement
from fastscore.apps.bench.report import LEGEND, case_lines, write_rows
from fastscore.apps.bench.suite import family_cases

Row = dict[str, Any]
Rows = dict[str, list[Row]]  # by the name of the file
ROWS = pytest.StashKey[Rows]()
RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastscore")
    group.addoption("--quick", action="store_true", help="small sizes: to see that all runs")
    group.addoption("--device", default="all", help="cpu, cuda or all that are there")
    group.addoption("--out", type=Path, default=RESULTS, help="directory of the JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``case`` runs for each case of its module's FAMILY."""
    if "case" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("device")
    there = devices()
    if wanted not in ("all", *there):
        raise pytest.UsageError(f"--device must be one of {', '.join(('all', *there))}")
    quick = metafunc.config.getoption("quick")
    cases = [
        case
        for device in (there if wanted == "all" else [wanted])
        for case in family_cases(metafunc.module.FAMILY, device, quick=quick)
    ]
    metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("quick")


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[str, list[Row]], None]:
    """Adds rows to a file of the results."""

    def add(name: str, rows: list[Row]) -> None:
        request.config.stash[ROWS].setdefault(name, []).extend(rows)

    return add


@pytest.fixture
def measure(
    benchmark: BenchmarkFixture, quick: bool, keep: Callable[[str, list[Row]], None]
) -> Callable[[Case], None]:
    """Measures a case. A round is a block of calls of the library, after one of each other side."""

    def run(case: Case) -> None:
        benchmark.group = f"{case.op} ({case.device})"
        try:
            measurement = Measurement(case, Effort(quick=quick), prepare_process())
            with measurement as m:
                benchmark.pedantic(m.library_turn, setup=m.peers_turn, rounds=m.turns)
                rows = m.rows()
        except NotAvailable as reason:
            pytest.skip(str(reason))
        ours = rows[0]
        benchmark.extra_info["calls_per_round"] = ours["calls"]
        benchmark.extra_info["times_faster"] = {
            provider: ratio["p50"] for provider, ratio in ours["ratios"].items()
        }
        keep(f"{case.device}-{case.family}", rows)

    return run


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes ``<device>-<family>.json`` for each family that ran, also after a failure."""
    for name, rows in session.config.stash[ROWS].items():
        write_rows(rows, session.config.getoption("out") / f"{name}.json")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Every side of every case in a line."""
    if config.stash[ROWS]:
        terminalreporter.section("what the columns mean")
        terminalreporter.write_line(LEGEND)
    for name, rows in config.stash[ROWS].items():
        terminalreporter.section(name)
        for line in case_lines(rows):
            terminalreporter.write_line(line)
