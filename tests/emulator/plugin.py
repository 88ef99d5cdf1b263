"""The three sides of the suite, for pytest: CPU kernels, CUDA kernels emulated, CUDA on a device.

    --emulated=some    (default) the choice of choice.py, about 90 seconds on one core
    --emulated=all     every test that runs on a device, and the modules of WHOLE with every op
    --emulated=none    nothing of it

FASTSCORE_TEST_EMULATED says the same where the option isn't given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from emulator import choice, report, side

VARIABLE = "FASTSCORE_TEST_EMULATED"
AMOUNTS = ("all", "some", "none")

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
EMULATED = pytest.param("emulated", marks=pytest.mark.emulated)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastscore")
    group.addoption(
        "--emulated",
        choices=AMOUNTS,
        default=os.environ.get(VARIABLE, "some"),
        help="how many tests run the CUDA kernels emulated on the CPU",
    )


def amount(config: pytest.Config) -> str:
    wanted: str = config.getoption("emulated")
    if wanted not in AMOUNTS:  # of the environment: pytest checks the option alone
        raise pytest.UsageError(f"{VARIABLE} must be one of {', '.join(AMOUNTS)}, got {wanted!r}")
    return wanted


# ---- fixtures ------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """The emulator has one; more for the small tensors around it only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def emulated() -> Iterator[None]:
    with one_thread(), side.emulated():
        yield


@dataclass(frozen=True)
class Side:
    """Where the kernels that are not the CPU's run: call it to run a function there."""

    device: torch.device
    context: Callable[[], AbstractContextManager[None]]

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.context():
            return function(*args, **kwargs)


@pytest.fixture(params=["cpu", EMULATED, CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device that the library has kernels for; the CPU also with the CUDA kernels emulated."""
    if request.param == "cuda":
        yield torch.device("cuda", torch.cuda.current_device())
        return
    with emulated() if request.param == "emulated" else nullcontext():
        yield torch.device("cpu")


@pytest.fixture(params=[EMULATED, CUDA])
def other(request: pytest.FixtureRequest) -> Iterator[Side]:
    """The CUDA kernels, emulated or on a device: what the CPU's kernels are compared with."""
    if request.param == "cuda":
        yield Side(torch.device("cuda", torch.cuda.current_device()), nullcontext)
        return
    with one_thread():
        yield Side(torch.device("cpu"), side.emulated)


@pytest.fixture
def whole_side(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tests that know nothing of devices: every op of theirs by the side's kernels."""
    with emulated() if request.param == "emulated" else nullcontext():
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With ``all``, tests without a device in the modules of WHOLE run a second time, emulated."""
    if amount(metafunc.config) != "all" or metafunc.module.__name__ not in choice.WHOLE:
        return
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    if {"device", "other"} & set(metafunc.fixturenames) or "cuda" in marks:
        return
    metafunc.fixturenames.insert(0, "whole_side")
    metafunc.parametrize("whole_side", ["cpu", EMULATED], indirect=True)


# ---- which tests run -------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted, missing = amount(config), side.why_not()
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        emulated = item.get_closest_marker("emulated") is not None
        reason = choice.why_never(item.nodeid) if emulated else None
        if emulated and wanted == "none":
            item.add_marker(pytest.mark.skip(reason="--emulated=none"))
        elif emulated and missing is not None:
            item.add_marker(pytest.mark.skip(reason=f"not emulated: {missing}"))
        elif reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"not emulated: {reason}"))
        elif emulated and wanted == "some" and not choice.is_chosen(item.nodeid):
            left.append(item)
            continue
        kept.append(item)
    # What looks at a whole run comes after it.
    kept.sort(key=lambda item: item.get_closest_marker("last") is not None)
    items[:] = kept
    if left:
        config.hook.pytest_deselected(items=left)


def is_whole_run(config: pytest.Config) -> bool:
    """Whether every emulated test of the suite has been asked for."""
    narrowed = any(config.getoption(o, None) for o in ("keyword", "markexpr", "lf", "deselect"))
    everything = config.args == config.getini("testpaths")
    return amount(config) == "all" and everything and not narrowed and side.why_not() is None


# ---- what happened ---------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counts = side.counts()
    if counts.launches == 0:
        return
    kernels = side.coverage()
    write = terminalreporter.write_line
    terminalreporter.section(f"CUDA kernels emulated ({amount(config)})")
    write(
        f"{counts.launches} launches, {counts.thread_instructions / 1e9:.2f} G thread "
        f"instructions, {counts.seconds:.0f} s; {sum(k.launches > 0 for k in kernels)} of "
        f"{len(kernels)} kernels"
    )
    if amount(config) != "all":
        return
    for line in report.family_lines(kernels):
        write(line)
    target = Path(config.rootpath) / "build" / "emulator" / "coverage.txt"
    target.write_text(report.text(kernels))
    write(f"branches not reached: {target.relative_to(config.rootpath)}")
