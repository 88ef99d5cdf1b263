"""Rows picked, named and written as Markdown. No more is needed than the rows themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
CASE = ("op", "family", "shape", "dtype", "device", "params", "axis", "at", "threads")
CASE += ("cpu_capability", "date")
PASSES = ("triad", "axpy", "copy", "clone", "fill", "read", "network")  # that are no peers


def library_rows(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["role"] == "library"]


def of_case(rows: Iterable[Row], row: Row) -> list[Row]:
    """The measured rows of the case that ``row`` belongs to."""
    same = [other for other in rows if all(other[key] == row[key] for key in CASE)]
    return [other for other in same if other["status"] == "measured"]


def main_rows(rows: Iterable[Row]) -> list[Row]:
    """The library's rows of single ops and chains: no scaling, no whole jobs."""
    return [row for row in library_rows(rows) if row["axis"] is None and row["family"] != "jobs"]


def largest_cases(rows: Iterable[Row]) -> list[Row]:
    """Of each op the case with the most elements, in float32."""
    best: dict[str, Row] = {}
    for row in main_rows(rows):
        if row["dtype"] == "float32":
            kept = best.get(row["op"])
            if kept is None or math.prod(row["shape"]) > math.prod(kept["shape"]):
                best[row["op"]] = row
    return list(best.values())


def limit_rate(rows: Iterable[Row], row: Row) -> float | None:
    """Bytes in a second of the best pass over memory in the case of ``row``."""
    sides = [other for other in of_case(rows, row) if other["role"] == "limit"]
    return max((other["bytes_per_second"] for other in sides), default=None)


def size_text(shape: Sequence[int]) -> str:
    n = shape[0] if len(shape) == 1 else 0
    if n > 1 and n & (n - 1) == 0:
        return f"2^{n.bit_length() - 1}"
    return "x".join(map(str, shape))


def case_name(row: Row) -> str:
    """The op, its size, and what else tells it from others."""
    parts = [row["params"]["network"]] if "network" in row["params"] else []
    for key, value in row["params"].items():
        if key != "network":
            parts.append(value if isinstance(value, str) else f"{key} {value}")
    if row["dtype"] != "float32":
        parts.append(row["dtype"])
    return f"{row['op']}, {size_text(row['shape'])}" + "".join(f", {part}" for part in parts)


def seconds_text(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def bytes_text(count: int | None) -> str:
    if count is None:
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def ratio_text(ratio: Row | None) -> str:
    """The median and the spread, bold where the peer is faster."""
    if ratio is None:
        return ""
    text = f"{ratio['p50']:.3g} ({ratio['p20']:.3g} to {ratio['p80']:.3g})"
    return f"**{text}**" if ratio["p50"] < 1 else text


def distinct(rows: Iterable[Row], get: Callable[[Row], Any]) -> str:
    return ", ".join(dict.fromkeys(str(get(row)) for row in rows))


def provenance(rows: Sequence[Row]) -> str:
    """The machine, the versions and the date, in a line."""
    cuda = rows[0]["device"] == "cuda"
    where = distinct(rows, lambda row: row["gpu"] if cuda else row["cpu"])
    if not cuda:
        default = [row for row in rows if row["axis"] not in ("threads", "capability")]
        where += f", {distinct(default, lambda row: row['cpu_capability'])}"
        where += f", {distinct(default, lambda row: row['threads'])} threads"
    libraries = distinct(
        rows,
        lambda row: f"fastscore {row['versions']['fastscore']}, torch {row['versions']['torch']}",
    )
    days = distinct(rows, lambda row: row["date"][:10])
    quick = " Quick run: not to be quoted." if any(row["quick"] for row in rows) else ""
    return f"{where}; {libraries}; {days}.{quick}"


# ---- Markdown ------------------------------------------------------------------------------------


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Columns that are empty throughout are left out."""
    lines = [list(line) for line in body]
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    text = [[header[i] for i in kept], ["---"] * len(kept)]
    text += [[line[i] for i in kept] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in text) + "\n"


def agreement_text(row: Row) -> str:
    found = row["agreement"]
    if found is None:
        return ""
    return f"{found['error']:.2g} of {found['tolerance']:.2g} ({found['kind']})"


COLUMNS = ("eager", "compile", "jax")  # the peers that most cases have


def ratio_cells(row: Row) -> list[str]:
    """A cell for each of COLUMNS, and one for all other peers."""
    ratios = {name: ratio for name, ratio in row["ratios"].items() if name not in PASSES}
    others = [name for name in ratios if name not in COLUMNS]
    cells = [ratio_text(ratios.get(name)) for name in COLUMNS]
    return [*cells, "; ".join(f"{name} {ratio_text(ratios[name])}" for name in others)]


def shares_text(row: Row) -> str:
    return ", ".join(f"{share:.0%} of {name}" for name, share in row["share_of_limit"].items())


def ops_table(rows: Sequence[Row]) -> str:
    body = []
    for row in main_rows(rows):
        line = [case_name(row), seconds_text(row["seconds"]["p50"]), *ratio_cells(row)]
        line.append(f"{row['bytes_per_second'] / 1e9:.3g} GB/s" if row["bytes_per_second"] else "")
        line += [shares_text(row), f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else ""]
        body.append([*line, bytes_text(row["peak_memory"]), agreement_text(row)])
    header = ["case", "time", *COLUMNS, "others", "rate", "of passes over memory"]
    return table([*header, "of peak arithmetic", "memory", "error"], body)


def jobs_table(rows: Sequence[Row]) -> str:
    body = []
    for row in library_rows(rows):
        if row["family"] == "jobs":
            sides = {side["provider"]: side for side in of_case(rows, row)}
            line = [case_name(row), seconds_text(row["seconds"]["p50"])]
            for name in ("fastscore", "eager"):
                share = sides[name]["network_share"] if name in sides else None
                line.append(f"{share:.0%}" if share else "")
            body.append([*line, *ratio_cells(row), bytes_text(row["peak_memory"])])
    header = ["job", "time", "network's share", "of eager's time", *COLUMNS, "others"]
    return table([*header, "memory"], body)


def scaling_table(rows: Sequence[Row], axis: str) -> str:
    body = []
    for row in library_rows(rows):
        if row["axis"] == axis:
            eager = row["ratios"].get("eager")
            at = row["cpu_capability"] if axis == "capability" else str(row["at"])
            time = seconds_text(row["seconds"]["p50"])
            body.append([case_name(row), at, time, ratio_text(eager), shares_text(row)])
    return table(["case", axis, "time", "eager", "of passes over memory"], body)


def absent_text(rows: Sequence[Row]) -> str:
    absent = {row["provider"]: row["status"] for row in rows if row["status"] != "measured"}
    present = {row["provider"] for row in rows if row["status"] == "measured"}
    lines = [f"{name}: {why}" for name, why in absent.items() if name not in present]
    return f"Without {'; '.join(lines)}.\n" if lines else ""


AXES = {
    "overhead": "A call on two elements",
    "elements": "More elements",
    "steps": "More steps",
    "levels": "More levels",
    "projections": "More projections",
    "threads": "More threads",
    "capability": "Instruction sets",
}


READING = """\
Times are medians of all turns. The columns of peers say how many times faster the library is: the
median of the turns' ratios and, in brackets, the range that three fifths of them lie in. Bold,
below 1: the peer is faster. "Error" is what was found and what is allowed: the largest difference
from the reference, or the largest standard score of the statistics of the noise. "Memory" is the
peak beyond the inputs.
"""


def markdown(rows: Sequence[Row]) -> str:
    """Everything, a section for each device."""
    parts = ["# Benchmarks\n", READING]
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        parts += [f"## {device.upper()}\n", provenance(here) + "\n", absent_text(here)]
        parts += ["### Ops and chains\n", ops_table(here)]
        if any(row["family"] == "jobs" for row in here):
            parts += ["### Whole jobs\n", jobs_table(here)]
        for axis, title in AXES.items():
            if any(row["axis"] == axis for row in here):
                parts += [f"### {title}\n", scaling_table(here, axis)]
    return "\n".join(part for part in parts if part)
