"""The README's figures and pictures of the demo, from what `make demo` wrote.

Run: python benchmarks/readme_demo.py [--demo demo]
Copies figures.json of the demo's directory to benchmarks/results/demo.json and its pictures to
docs/images, and writes the README's lines between the two comments that name this script. With
--check it writes nothing, and fails if those lines are not what demo.json says.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results/demo.json"
PICTURES = ("path.png", "samplers.png", "likelihood.png")
BEGIN, END = "<!-- benchmarks/readme_demo.py -->\n", "<!-- end of benchmarks/readme_demo.py -->\n"
WAYS = (  # what the README calls the rows of the figures
    "annealed Langevin",
    "`reverse_sde`, with a corrector",
    '`probability_flow`: `"heun"` with churn',
    "the same",
    '`"dpmpp_2m_sde"`',
    "the same",
    "the same",
    '`"dpmpp_2m"`',
    "the same, with `init_mean`",
)


def lines(figures: dict[str, Any]) -> str:
    """All that stands between the comments."""
    parts = [*sampling(figures), "", *likelihood(figures["likelihood"])]
    return "\n".join(parts) + "\n"


def sampling(figures: dict[str, Any]) -> list[str]:
    rows = zip(WAYS, figures["samplers"], strict=True)
    head = f"| {figures['samples']:,} digits, {threads(figures)} | evaluations | seconds "
    return [
        head + "| Fréchet distance to held-out digits |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['evaluations']} | {row['seconds']:.1f} "
            f"| {row['frechet_distance']:.2f} |"
            for name, row in rows
        ),
        "",
        f"(Training digits themselves: {figures['quality']['frechet_real']:.2f}; "
        "[what `make demo` wrote](benchmarks/results/demo.json).)",
    ]


def threads(figures: dict[str, Any]) -> str:
    count = figures["machine"]["threads"]
    return {1: "one CPU core", 2: "two CPU cores"}.get(count, f"{count} CPU cores")


def likelihood(found: dict[str, Any]) -> list[str]:
    area = {name: f"{a['value']:.3f} ± {a['stderr']:.3f}" for name, a in found["auroc"].items()}
    return [
        f"How likely digits are under the same network, {found['pictures']} pictures of each kind "
        f"({found['evaluations']:.0f} evaluations a picture, {found['seconds']:.0f} s in all):",
        "",
        "![Bits per dimension of four kinds of pictures](docs/images/likelihood.png)",
        "",
        f"| {found['levels']} levels | bits per dimension |",
        "|---|---|",
        *(
            f"| {name} | {row['bits']:.3f} ± {row['stderr']:.3f} |"
            for name, row in found["bits_per_dim"].items()
        ),
        "",
        "Area under the curve for telling outliers from held-out digits by their bits: "
        + ", ".join(f"{name} {value}" for name, value in area.items())
        + ".",
    ]


def rewritten(text: str, figures: dict[str, Any]) -> str:
    """The README with the lines of these figures."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + lines(figures) + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", default="demo", help="the directory that `make demo` wrote")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    text = README.read_text()
    if args.check:
        if rewritten(text, json.loads(RESULTS.read_text())) != text:
            raise SystemExit(f"{README} does not say what {RESULTS} does: run {Path(__file__)}")
        return
    source = Path(args.demo)
    figures = json.loads((source / "figures.json").read_text())
    README.write_text(rewritten(text, figures))
    shutil.copyfile(source / "figures.json", RESULTS)
    for name in PICTURES:
        shutil.copyfile(source / name, ROOT / "docs/images" / name)
    print(f"wrote {README}, {RESULTS} and {len(PICTURES)} pictures")


if __name__ == "__main__":
    main()
