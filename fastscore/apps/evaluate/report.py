"""What the command prints, and the files that it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from fastscore._support.extras import require
from fastscore._support.files import whole_file
from fastscore.apps.evaluate.numbers import FN, Evaluation, Likelihoods, Task

FEWEST_BARS, MOST_BARS = 10, 200


def plus_minus(found: Mapping[str, float | None] | None, digits: int = 4) -> str:
    """A mean and its error, where there are samples to have one.

    >>> plus_minus({"mean": 3.14159, "stderr": 0.0123})
    '3.1416 +- 0.0123'
    """
    if found is None:
        return "none, for too few samples are left"
    *_, value, error = found.values()
    if value is None:
        return "none, for no samples are left"
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def lines_of(
    found: Evaluation, task: Task, shape: tuple[int, ...], names: Mapping[str, Any]
) -> list[str]:
    """What the command prints."""
    figures = found.figures
    if task.levels is None:
        kind = "no --levels: the density itself, in the units of the data"
    else:
        lo, hi = task.data_range
        kind = f"{task.levels} levels on [{lo:g}, {hi:g}], dequantised"
        kind += " once" if task.draws == 1 else f" {task.draws} times, the mean over these"
    lines = [f"{names['data']}: {figures['data']['samples']} samples of shape {shape}; {kind}"]
    lines += _rows(figures["data"], found.data, task)
    if found.against is not None:
        lines.append(f"{names['against']}: {figures['against']['samples']} samples")
        lines += _rows(figures["against"], found.against, task)
        more = "how often one of these has more bits than one of the data"
        lines.append(_row("AUROC", f"{plus_minus(figures['auroc'])} ({more})"))
    if found.compare is not None:
        lines.append(f"{names['compare']}: the same samples")
        lines += _rows(figures["compare"], found.compare, task)
        more = "bits of the first minus those of the second: below 0 the first is better"
        lines.append(_row("difference", f"{plus_minus(figures['difference'])} ({more})"))
    return lines


def _rows(figures: dict[str, Any], of: Likelihoods, task: Task) -> list[str]:
    name = "log density" if task.levels is None else "log probability"
    rows = [
        _row("bits per dimension", plus_minus(figures["bits"])),
        _row(name, f"{plus_minus(figures['log_prob'], 2)} nats a sample"),
        _row("evaluations", f"{figures['evaluations']:.1f} a sample"),
    ]
    if figures["failed"]:
        numbers = [str(i) for i in of.failed.nonzero().flatten().tolist()[:8]]
        more = ", ..." if figures["failed"] > len(numbers) else ""
        which = f"samples {', '.join(numbers)}{more}, left out of the means"
        rows.append(_row("given up", f"{figures['failed']}: {which}"))
    return rows


def _row(name: str, value: str) -> str:
    return f"  {name:<18} {value}"


def save_numbers(path: Path, found: Evaluation, task: Task) -> None:
    """The numbers of each sample; .json has the figures as well."""
    parts = {"": found.data, "against_": found.against, "compare_": found.compare}
    arrays = {
        prefix + name: array
        for prefix, part in parts.items()
        if part is not None
        for name, array in part.arrays().items()
    }
    with whole_file(path) as partial:
        if path.suffix == ".npz":
            with partial.open("wb") as file:
                numpy.savez_compressed(file, allow_pickle=False, **arrays)
            return
        numbers = {name: [_plain(v) for v in array.tolist()] for name, array in arrays.items()}
        settings = {n: v for n, v in vars(task).items() if n != "prior"}
        settings["prior"] = "of noise" if task.prior is None else "of data"
        record = {"figures": found.figures, "settings": settings, "samples": numbers}
        partial.write_text(json.dumps(record, allow_nan=False, indent=1) + "\n")


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def save_histogram(path: Path, found: Evaluation, task: Task, names: Mapping[str, Any]) -> None:
    """Bits per dimension of the data, and beside them of the outliers or the other network."""
    matplotlib_figure = require(FN, "matplotlib.figure", "matplotlib")
    figure = matplotlib_figure.Figure(figsize=(6, 3.5), layout="constrained")
    parts = {"data": found.data, "against": found.against, "compare": found.compare}
    shown = {name: of.bits[~of.failed].cpu() for name, of in parts.items() if of is not None}
    axes, edges = figure.add_subplot(), edges_of(list(shown.values()))
    if edges is not None:
        for name, bits in shown.items():
            axes.hist(bits.numpy(), edges, density=True, alpha=0.6, label=_label(name, names))
        axes.legend(frameon=False)
    unit = "no levels: of the density itself" if task.levels is None else f"{task.levels} levels"
    axes.set_xlabel(f"bits per dimension ({unit})")
    axes.set_ylabel("part of the samples per bit")
    with whole_file(path) as partial, partial.open("wb") as file:
        figure.savefig(file, format="png", dpi=150)


def edges_of(parts: Sequence[Tensor]) -> numpy.ndarray | None:
    """The edges of bars that all parts share; None of no numbers.

    Of each part as many bars as the root of its numbers, or more: so few are wide, and many narrow.
    """
    ends = [(float(part.min()), float(part.max()), len(part)) for part in parts if len(part)]
    if not ends:
        return None
    lo, hi = min(end[0] for end in ends), max(end[1] for end in ends)
    widths = [(high - low) / math.sqrt(n) for low, high, n in ends if high > low]
    if not widths:
        lo, hi, widths = lo - 0.5, hi + 0.5, [0.1]
    count = min(MOST_BARS, max(FEWEST_BARS, math.ceil((hi - lo) / min(widths))))
    return numpy.linspace(lo, hi, count + 1)


def _label(name: str, names: Mapping[str, Any]) -> str:
    if name == "compare":
        return f"{Path(names['data']).name} under {Path(names['compare']).name}"
    return Path(names[name]).name
