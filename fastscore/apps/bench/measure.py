"""One case from its inputs to its rows: make the sides, check them, let them take turns."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy
import torch

from fastscore.apps.bench.case import LIBRARY, Agreement, Case, Disagreement, NotAvailable, Side
from fastscore.apps.bench.limits import peak_operations
from fastscore.apps.bench.memory import available_bytes, peak_bytes
from fastscore.apps.bench.timing import Clock, calls_per_block, clock_for

Row = dict[str, Any]

# The fields of a row that a side which could not take part has empty.
MEASURED = (
    *("seconds", "turns", "calls", "clock", "ratios", "bytes", "bytes_per_second"),
    *("share_of_limit", "operations", "operations_per_second", "peak_operations_per_second"),
    *("share_of_peak", "peak_memory", "agreement", "network_share"),
)


class Effort:
    """How long to measure: seconds of a case, of a block, and the bounds of the turns."""

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self.case_seconds = 0.25 if quick else 1.5
        self.block_seconds = 0.001 if quick else 0.005
        self.fewest_turns = 3 if quick else 5
        self.most_turns = 15 if quick else 50


class Entrant:
    """A side that takes part, with its clock and its times."""

    def __init__(self, provider: str, role: str, side: Side, clock: Clock) -> None:
        self.provider, self.role, self.side, self.clock = provider, role, side, clock
        self.calls = 1
        self.estimate = 0.0
        self.agreement: Agreement | None = None
        self.memory: int | None = None
        self.times: list[float] = []

    def take_turn(self) -> None:
        self.times.append(self.clock.block(self.side, self.calls))


class Measurement:
    """The sides of a case, taking turns in one process.

    Call ``peers_turn`` and ``library_turn`` alternately, ``turns`` times; then ``rows`` has a row
    for each side. As a context manager it sets the case's number of threads, keeps the garbage
    collector out and releases the buffers.

    Raises:
        Disagreement: a side does not compute what it should.
        NotAvailable: the case's buffers do not fit into the memory that is free.
    """

    def __init__(self, case: Case, effort: Effort, machine: Row) -> None:
        self.case, self.effort, self.machine = case, effort, machine
        self.entrants: list[Entrant] = []
        self.absent: list[Row] = []
        self.turns = 0
        self._rounds = 0

    def __enter__(self) -> Measurement:
        if self.case.memory_bytes > 0.6 * available_bytes(self.case.device):
            raise NotAvailable(f"{self.case.name}: needs {self.case.memory_bytes / 2**30:.1f} GiB")
        self._threads_before = torch.get_num_threads()
        if self.case.threads is not None:
            torch.set_num_threads(self.case.threads)
        self._collects = gc.isenabled()
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        gc.collect()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._collects:
            gc.enable()
        torch.set_num_threads(self._threads_before)
        for entrant in self.entrants:
            del entrant.side, entrant.clock
        gc.collect()

    def _prepare(self) -> None:
        case = self.case
        torch.manual_seed(0)
        self.work = case.build(case)
        for candidate in self.work.candidates:
            if case.providers is not None and candidate.provider not in case.providers:
                continue
            try:
                side = candidate.make()
                clock = clock_for(case.device, case.clock, side)
                entrant = Entrant(candidate.provider, candidate.role, side, clock)
                self._check(entrant)
                entrant.calls, entrant.estimate = calls_per_block(
                    clock, side, self.effort.block_seconds
                )
            except (ImportError, NotAvailable) as reason:
                if candidate.role == "library":
                    raise
                self._leave_out(candidate.provider, candidate.role, reason)
                continue
            entrant.memory = side.memory() if side.memory else peak_bytes(side.run, case.device)
            self.entrants.append(entrant)
        self.threads = torch.get_num_threads()
        self._plan_turns()

    def _check(self, entrant: Entrant) -> None:
        if entrant.side.check is None:
            return
        torch.manual_seed(1)
        found = entrant.side.check()
        if not found.holds:
            raise Disagreement(
                f"{self.case.name}: {entrant.provider} does not compute the same: error "
                f"{found.error:.3g} ({found.kind}), at most {found.tolerance:.3g} is allowed"
            )
        entrant.agreement = found

    def _leave_out(self, provider: str, role: str, reason: Exception) -> None:
        missing = isinstance(reason, ModuleNotFoundError)
        status = "not installed" if missing else f"not available: {reason}"
        self.absent.append({"provider": provider, "role": role, "status": status})

    def _plan_turns(self) -> None:
        effort = self.effort
        once = sum(max(1, e.calls) * e.estimate for e in self.entrants)
        turns = math.floor(self.case.weight * effort.case_seconds / max(once, 1e-9))
        self.turns = min(max(turns, effort.fewest_turns), effort.most_turns)

    @property
    def library(self) -> Entrant:
        return next(e for e in self.entrants if e.role == "library")

    def peers_turn(self) -> None:
        """A block of every side but the library's, in an order that turns round each time."""
        others = [entrant for entrant in self.entrants if entrant.role != "library"]
        for entrant in reversed(others) if self._rounds % 2 else others:
            entrant.take_turn()
        self._rounds += 1

    def library_turn(self) -> None:
        """A block of the library's side."""
        self.library.take_turn()

    def run(self) -> list[Row]:
        """All turns, then the rows."""
        for _ in range(self.turns):
            self.peers_turn()
            self.library_turn()
        return self.rows()

    # ---- rows --------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """A row for each side, also for those that could not take part."""
        empty = dict.fromkeys(MEASURED) | {"ratios": {}, "share_of_limit": {}}
        absent = [self._common() | empty | row for row in self.absent]
        return [self._row(entrant) for entrant in self.entrants] + absent

    def _common(self) -> Row:
        case = self.case
        return {
            "op": case.op,
            "family": case.family,
            "shape": list(case.shape),
            "dtype": str(case.dtype).removeprefix("torch."),
            "device": case.device,
            "params": dict(case.params),
            "axis": case.axis,
            "at": case.at,
            "threads": self.threads,
            "quick": self.effort.quick,
            **self.machine,
        }

    def _row(self, entrant: Entrant) -> Row:
        moved = entrant.side.bytes or self.work.bytes
        operations = self.work.operations if entrant.role == "library" else None
        middle = float(numpy.median(entrant.times))
        row = self._common() | {
            "provider": entrant.provider,
            "role": entrant.role,
            "status": "measured",
            "seconds": quantiles(entrant.times),
            "turns": len(entrant.times),
            "calls": entrant.calls,
            "clock": entrant.clock.name,
            "ratios": self._ratios(entrant),
            "bytes": moved,
            "bytes_per_second": moved / middle if moved else None,
            "share_of_limit": self._share_of_limits(entrant, moved),
            "operations": operations,
            "operations_per_second": operations / middle if operations else None,
            "peak_operations_per_second": None,
            "share_of_peak": None,
            "peak_memory": entrant.memory,
            "agreement": vars(entrant.agreement) if entrant.agreement else None,
            "network_share": self._network_share(entrant),
        }
        if operations:
            peak = peak_operations(self.case.device, self.threads)
            row["peak_operations_per_second"] = peak
            row["share_of_peak"] = operations / middle / peak
        return row

    def _ratios(self, entrant: Entrant) -> dict[str, Row]:
        """How many times this side is faster than each other; of peers, than the library alone."""
        others = [
            e
            for e in self.entrants
            if e is not entrant and LIBRARY in (entrant.provider, e.provider)
        ]
        return {e.provider: quantiles(turn_ratios(e, entrant)) for e in others}

    def _share_of_limits(self, entrant: Entrant, moved: int | None) -> dict[str, float]:
        """This side's rate over that of each pass over memory."""
        if not moved or entrant.role == "limit":
            return {}
        shares = {}
        for other in self.entrants:
            if other.role == "limit" and other.side.bytes:
                ratio = float(numpy.median(turn_ratios(other, entrant)))
                shares[other.provider] = moved / other.side.bytes * ratio
        return shares

    def _network_share(self, entrant: Entrant) -> float | None:
        """What part of this side's time the network takes when it runs alone, in PyTorch."""
        for other in self.entrants:
            if other.role == "network" and entrant.side.wait is None:
                return float(numpy.median(turn_ratios(other, entrant)))
        return None


def turn_ratios(a: Entrant, b: Entrant) -> list[float]:
    """Time of ``a`` over time of ``b`` in each turn."""
    return [x / y for x, y in zip(a.times, b.times, strict=True)]


def quantiles(values: list[float]) -> Row:
    """The median and the range that three fifths of the values lie in."""
    found = numpy.quantile(values, [0.2, 0.5, 0.8])
    return dict(zip(("p20", "p50", "p80"), map(float, found), strict=True))


def measure(case: Case, effort: Effort, machine: Row) -> list[Row]:
    """The rows of one case."""
    with Measurement(case, effort, machine) as measurement:
        return measurement.run()
