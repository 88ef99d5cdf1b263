"""Rows as a line of text, and as JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastscore._support.files import prepare_directory

Row = dict[str, Any]
FORMAT = "fastscore benchmark rows 1"
LEGEND = """\
A case is an op or a job, its size, dtype, device and parameters; under it a line for each side:
    side          fastscore; a peer: eager (plain PyTorch), compile (torch.compile), jax, torchebm,
                  blackjax, torchdiffeq, func.jvp, a loop or loss as its paper published it; a pass
                  over memory that does nothing else: triad, axpy, copy, clone, fill, read; or the
                  network alone
    time          of one call, the median of all turns (the sides take turns in one process)
    GB/s          the bytes that the op must read and write at least, over that time
    times faster  fastscore than this side: the median of the turns' ratios and, in brackets, the
                  range of the middle three fifths; below 1 the side is faster
    % of triad, of copy, ...            its GB/s over those of that pass
    % of the peak of multiplications    those that it needs, over the most that the machine does
    network %                           the time of the network alone over that of the side
fastscore bench --list says what the names mean, benchmarks/README.md what else the JSON holds.
"""


def seconds_text(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def lines(rows: Sequence[Row]) -> Iterable[str]:
    """The case, then a line for each side."""
    case = rows[0]
    size = " x ".join(map(str, case["shape"]))
    params = "".join(f", {key} {value}" for key, value in case["params"].items())
    threads = f", {case['threads']} threads" if case["device"] == "cpu" else ""
    yield f"{case['op']}  {size}  {case['dtype']} on {case['device']}{threads}{params}"
    for row in rows:
        if row["status"] != "measured":
            yield f"    {row['provider']:<12} {row['status']}"
            continue
        text = f"    {row['provider']:<12} {seconds_text(row['seconds']['p50']):>9}"
        if row["bytes_per_second"]:
            text += f"  {row['bytes_per_second'] / 1e9:7.2f} GB/s"
        if row["role"] in ("peer", "limit") and "fastscore" in row["ratios"]:
            # Of a peer's row: how many times the library is faster.
            ratio = {key: 1 / value for key, value in row["ratios"]["fastscore"].items()}
            text += f"  fastscore {ratio['p50']:.2f} times faster"
            text += f" ({ratio['p80']:.2f} to {ratio['p20']:.2f})"
        shares = [f"{share:.0%} of {name}" for name, share in row["share_of_limit"].items()]
        if row["share_of_peak"]:
            shares.append(f"{row['share_of_peak']:.0%} of the peak of multiplications")
        if row["network_share"] and row["role"] != "network":
            shares.append(f"network {row['network_share']:.0%}")
        yield text + ("  " + ", ".join(shares) if shares and row["role"] != "limit" else "")


def case_lines(rows: Sequence[Row]) -> Iterable[str]:
    """The same for the rows of several cases, each of which starts with the library's."""
    starts = [i for i, row in enumerate(rows) if row["role"] == "library"] + [len(rows)]
    for start, end in itertools.pairwise(starts):
        yield from lines(rows[start:end])


def rounded(value: Any) -> Any:
    """Floats to six digits: more is noise, and makes files long."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """JSON with a line for each row."""
    prepare_directory("bench", path.parent)
    text = ",\n".join(json.dumps(rounded(row)) for row in rows)
    path.write_text(f'{{"format": "{FORMAT}", "rows": [\n{text}\n]}}\n')


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """The rows of all files.

    Raises:
        ValueError: a file is not one that :func:`write_rows` wrote.
    """
    rows: list[Row] = []
    for path in paths:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"bench: {path} is not a file of benchmark rows")
        rows += content["rows"]
    return rows
