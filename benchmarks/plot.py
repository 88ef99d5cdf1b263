"""Draws the plots and writes the table of the benchmarks, from their JSON alone.

    python benchmarks/plot.py [FILE_OR_DIRECTORY ...] [--out DIRECTORY]

Without arguments it reads and writes benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from tables import (
    case_name,
    largest_cases,
    library_rows,
    limit_rate,
    markdown,
    of_case,
    provenance,
)

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
FORMAT = "fastscore benchmark rows 1"

# Colours of Okabe and Ito, and of Tol, that the colour-blind can tell apart.
COLOURS = {
    "fastscore": "#0072B2",
    "eager": "#E69F00",
    "compile": "#009E73",
    "jax": "#CC79A7",
    "NCSN loop": "#D55E00",
    "score_sde loop": "#D55E00",
    "NCSN loss": "#D55E00",
    "SSM loss": "#D55E00",
    "NCSNv2 loop": "#56B4E9",
    "func.jvp": "#332288",
    "torchebm": "#882255",
    "blackjax": "#000000",
    "torchdiffeq": "#882255",
    "DSM step": "#999999",
    "reduce-overhead": "#117733",
}
LABELS = {
    "eager": "eager PyTorch",
    "compile": "torch.compile",
    "jax": "JAX",
    "NCSN loop": "the paper's code",
    "NCSN loss": "the paper's code",
    "SSM loss": "the paper's code",
    "NCSNv2 loop": "NCSNv2's code",
    "func.jvp": "torch.func.jvp",
    "DSM step": "a step of DSM by fastscore",
    "reduce-overhead": "the whole step compiled and captured",
}
FAMILY_COLOURS = {
    "random": "#0072B2",
    "langevin": "#D55E00",
    "multistep": "#E69F00",
    "continuous": "#56B4E9",
    "dsm": "#009E73",
    "runge_kutta": "#999999",
    "sliced": "#CC79A7",
    "dual": "#000000",
}
LIMIT = {"color": "#666666", "linestyle": "--", "linewidth": 1}
MARKERS = "osD^v"


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of all files, those of a directory in the order of their names."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    rows: list[Row] = []
    for file in files:
        content = json.loads(file.read_text())
        if isinstance(content, dict) and content.get("format") == FORMAT:
            rows += content["rows"]
    return rows


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(1, panels, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path, rows: list[Row]) -> None:
    """With what and where it was measured, in small print below."""
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.text(0.01, 0.005, provenance(rows), fontsize=6, color="#666666", va="bottom")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def plain(axis: Any) -> None:
    """Numbers, not powers, on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(ax: Axes, **options: Any) -> None:
    """Each label once, in the order of COLOURS."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    order = [label for label in dict.fromkeys(map(label_of, COLOURS)) if label in handles]
    order += [label for label in handles if label not in order]
    ax.legend([handles[label] for label in order], order, frameon=False, fontsize=7, **options)


def label_of(provider: str) -> str:
    return LABELS.get(provider, provider)


# ---- plots ---------------------------------------------------------------------------------------


def ratios(rows: list[Row]) -> Figure | None:
    """How many times faster than each peer, at the largest float32 size of each op."""
    cases = largest_cases(rows)
    bars = [
        (row, provider, ratio)
        for row in reversed(cases)
        for provider, ratio in reversed(list(row["ratios"].items()))
        if provider in COLOURS and provider != "DSM step"
    ]
    if not bars:
        return None
    figure, (ax,) = new_figure(8, 1 + 0.16 * len(bars) + 0.1 * len(cases))
    place, centres = 0.0, {}
    for i, (row, provider, ratio) in enumerate(bars):
        if i and bars[i - 1][0] is not row:
            place += 0.8
        value = ratio["p50"]
        spread = [[value - ratio["p20"]], [ratio["p80"] - value]]
        ax.barh(place, value - 1, 0.9, 1, color=COLOURS[provider], label=label_of(provider))
        ax.errorbar(value, place, xerr=spread, color="#333333", linewidth=0.8)
        ax.text(max(ratio["p80"], 1) * 1.05, place, f"{value:.3g}", va="center", fontsize=6)
        centres.setdefault(id(row), (row, []))[1].append(place)
        place += 1
    ax.set_yticks(
        [sum(places) / len(places) for _, places in centres.values()],
        [case_name(row) for row, _ in centres.values()],
        fontsize=7,
    )
    ax.set_xscale("log")
    plain(ax.xaxis)
    ax.axvline(1, color="#333333", linewidth=0.8)
    ax.set_xlabel("times faster than (line: range of three fifths of the turns)")
    legend(ax, loc="best")
    return figure


def roofline(rows: list[Row]) -> Figure | None:
    """Rate of multiplications against those for each byte, under the machine's roofs.

    There are two slopes: what the passes over memory reach in the cases that outgrow a cache, whose
    ops are filled circles, and in the others, whose ops are hollow.
    """
    cases = [row for row in largest_cases(rows) if row["operations"] and row["bytes"]]
    rates: dict[bool, list[float]] = {True: [], False: []}  # by whether in memory
    for row in cases:
        if rate := limit_rate(rows, row):
            rates[in_memory(row)].append(rate)
    bandwidths = [max(found) for found in rates.values() if found]
    if not bandwidths:
        return None
    peak = max(row["peak_operations_per_second"] for row in cases)
    figure, (ax,) = new_figure(6.5, 4.5)
    intensity = [row["operations"] / row["bytes"] for row in cases]
    knees = [peak / bandwidth for bandwidth in bandwidths]
    low, high = min(*intensity, *knees) / 3, max(*intensity, *knees) * 3
    for bandwidth, knee in zip(bandwidths, knees, strict=True):
        ax.plot([low, knee, high], [bandwidth * low / 1e9, peak / 1e9, peak / 1e9], **LIMIT)
    for row, x in zip(cases, intensity, strict=True):
        rate, colour = row["operations_per_second"] / 1e9, FAMILY_COLOURS[row["family"]]
        face = colour if in_memory(row) else "white"
        ax.plot(x, rate, "o", markersize=5, color=colour, markerfacecolor=face)
        ax.annotate(
            row["op"], (x, rate), (5, -2), textcoords="offset points", fontsize=7, color=colour
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    plain(ax.xaxis)
    plain(ax.yaxis)
    ax.set_xlabel("multiplications for each byte moved")
    ax.set_ylabel("10^9 multiplications per second")
    slopes = " and ".join(f"{bandwidth / 1e9:.3g}" for bandwidth in bandwidths)
    ax.set_title(f"roofs: {slopes} GB/s, {peak / 1e9:.3g} G multiplications/s", fontsize=8)
    return figure


def in_memory(row: Row) -> bool:
    """Whether its arrays outgrow any cache."""
    return row["bytes"] >= 2**26


def over_axis(
    rows: list[Row], axis: str, per: Callable[[Row], float], unit: str, label: str
) -> Figure | None:
    """Cost of a unit of work against the amount of it, a panel for each op."""
    found = [row for row in rows if row["axis"] == axis and row["status"] == "measured"]
    ops = list(dict.fromkeys(row["op"] for row in found))
    if not ops:
        return None
    figure, panels = new_figure(3.4 * len(ops) + 0.4, 3.4, len(ops))
    for op, ax in zip(ops, panels, strict=True):
        providers = dict.fromkeys(row["provider"] for row in found if row["op"] == op)
        for provider in providers:
            line = sorted(
                (row["at"], per(row) * row["seconds"]["p50"])
                for row in found
                if row["op"] == op and row["provider"] == provider
            )
            style: Row = LIMIT
            if provider in COLOURS:
                style = {"color": COLOURS[provider], "marker": "o", "markersize": 3}
            ax.plot(*zip(*line, strict=True), label=label_of(provider), **style)
        ax.set_xscale("log", base=2 if axis == "elements" else 10)
        ax.set_yscale("log")
        plain(ax.yaxis)
        ax.set_title(op, fontsize=9)
        ax.set_xlabel(label)
        legend(ax)
    panels[0].set_ylabel(unit)
    return figure


def elements(rows: list[Row]) -> Figure | None:
    return over_axis(rows, "elements", lambda row: 1e9 / row["at"], "ns per element", "elements")


def steps(rows: list[Row]) -> Figure | None:
    return over_axis(rows, "steps", lambda row: 1e6 / row["at"], "us per step", "steps")


def levels(rows: list[Row]) -> Figure | None:
    return over_axis(rows, "levels", lambda row: 1e6 / row["at"], "us per level", "levels")


def projections(rows: list[Row]) -> Figure | None:
    return over_axis(
        rows, "projections", lambda row: 1e6 / row["at"], "us per projection", "projections"
    )


def threads(rows: list[Row]) -> Figure | None:
    """Speed of the library against its own with one thread."""
    found = [row for row in library_rows(rows) if row["axis"] == "threads"]
    single = {row["op"]: row["seconds"]["p50"] for row in found if row["at"] == 1}
    most = max((row["at"] for row in found), default=1)
    if most == 1:
        return None
    figure, (ax,) = new_figure(5, 3.6)
    ax.set_prop_cycle(color=list(FAMILY_COLOURS.values()))
    ax.plot([1, most], [1, most], **LIMIT)
    for op, marker in zip(single, MARKERS, strict=False):
        line = sorted(
            (row["at"], single[op] / row["seconds"]["p50"]) for row in found if row["op"] == op
        )
        ax.plot(*zip(*line, strict=True), marker=marker, label=op, linewidth=1)
    ax.set_xticks(sorted({row["at"] for row in found}))
    ax.set_xlabel("threads")
    ax.set_ylabel("times faster than with one")
    legend(ax)
    return figure


def grouped_bars(
    groups: list[tuple[str, list[tuple[str, float]]]], colours: dict[str, str], label: str
) -> Figure:
    """Horizontal bars, a few for each group."""
    count = sum(len(bars) for _, bars in groups)
    figure, (ax,) = new_figure(7, 1 + 0.17 * count + 0.12 * len(groups))
    place, ticks = 0.0, []
    for name, bars in reversed(groups):
        start = place
        for provider, value in reversed(bars):
            ax.barh(place, value, 0.9, color=colours[provider], label=label_of(provider))
            ax.text(value, place, f" {value:.3g}", va="center", fontsize=6)
            place += 1
        ticks.append(((start + place - 1) / 2, name))
        place += 0.8
    ax.set_yticks(*zip(*ticks, strict=True), fontsize=7)
    ax.set_xlabel(label)
    legend(ax, loc="best")
    return figure


def overhead(rows: list[Row]) -> Figure | None:
    """Microseconds of a call on two elements."""
    found = [row for row in rows if row["axis"] == "overhead" and row["status"] == "measured"]
    groups = [
        (row["op"], [(r["provider"], 1e6 * r["seconds"]["p50"]) for r in of_case(found, row)])
        for row in library_rows(found)
    ]
    return grouped_bars(groups, COLOURS, "us for a call on two elements") if groups else None


def jobs(rows: list[Row]) -> Figure | None:
    """Time of each job over that of its network alone."""
    groups = []
    for row in library_rows(rows):
        if row["family"] == "jobs":
            sides = of_case(rows, row)
            alone = [r["seconds"]["p50"] for r in sides if r["role"] == "network"]
            if not alone:
                continue
            (network,) = alone
            bars = [(r["provider"], r["seconds"]["p50"] / network) for r in sides]
            groups.append((case_name(row), [bar for bar in bars if bar[0] != "network"]))
    if not groups:
        return None
    figure = grouped_bars(groups, COLOURS, "time over that of the network alone in PyTorch")
    figure.axes[0].axvline(1, **LIMIT)
    return figure


def capabilities(rows: list[Row]) -> Figure | None:
    """Nanoseconds for each element with each instruction set."""
    found = [row for row in library_rows(rows) if row["axis"] == "capability"]
    colours = {"default": "#999999", "avx2": "#56B4E9", "avx512": "#0072B2"}
    groups: dict[str, list[tuple[str, float]]] = {}
    for row in found:
        count = 1
        for n in row["shape"]:
            count *= n
        nanoseconds = 1e9 * row["seconds"]["p50"] / count
        groups.setdefault(case_name(row), []).append((row["cpu_capability"], nanoseconds))
    return grouped_bars(list(groups.items()), colours, "ns per element") if groups else None


PLOTS = {
    "ratios": ratios,
    "roofline": roofline,
    "elements": elements,
    "steps": steps,
    "levels": levels,
    "projections": projections,
    "threads": threads,
    "overhead": overhead,
    "jobs": jobs,
    "capabilities": capabilities,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[RESULTS])
    parser.add_argument("--out", type=Path, help="default: where the first rows come from")
    args = parser.parse_args()
    first = args.paths[0]
    out = args.out or (first if first.is_dir() else first.parent)
    out.mkdir(exist_ok=True)
    matplotlib.rcParams["font.size"] = 8
    rows = read(args.paths)
    if not rows:
        parser.error(f"no rows in {', '.join(map(str, args.paths))}")
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        for name, draw in PLOTS.items():
            if (figure := draw(here)) is not None:
                save(figure, out / f"{device}-{name}.png", here)
    (out / "TABLE.md").write_text(markdown(rows))
    print(f"wrote plots and TABLE.md of {len(rows)} rows to {out}")


if __name__ == "__main__":
    main()
