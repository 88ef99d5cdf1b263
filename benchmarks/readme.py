"""The figures of the README's example: its snippets, up to its Frechet distances, run as they are.

Run: python benchmarks/readme.py [--out benchmarks/results]
Writes readme.json: seconds of the example, and the squared Frechet distances to held-out data of
its samples, of data, of something else, and of samples with 20 steps at each noise level.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import fastscore
from fastscore._support.files import prepare_directory
from fastscore.apps.info import info

README = Path(__file__).parents[1] / "README.md"
LAST = "frechet_distance"  # stands in the last snippet that is run
STEPS = 20


def run() -> dict[str, Any]:
    """Run the snippets in a directory of their own."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    seconds: list[float] = []
    os.environ.setdefault("MPLBACKEND", "agg")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # the snippets write beside themselves
        for snippet in re.findall(r"```python\n(.*?)```", README.read_text(), re.S):
            start = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                exec(snippet, names)
            seconds.append(time.perf_counter() - start)
            if LAST in snippet:
                break
        sharp = names["checkpoint"].sample(1000, seed=1, steps_per_sigma=STEPS)
        os.chdir(README.parent)
    distances = dict(
        zip(("samples", "data", "else"), map(float, printed.getvalue().split()), strict=True)
    )
    held_out = names["held_out"]
    distances["samples_20_steps"] = fastscore.evaluation.frechet_distance(sharp, held_out)
    return {"example_seconds": seconds[0], "frechet_distance": distances}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    out = prepare_directory("readme", parser.parse_args().out).resolve()
    result = run() | {"date": date.today().isoformat(), "machine": info()}
    (out / "readme.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["frechet_distance"]), f"{result['example_seconds']:.1f} s")


if __name__ == "__main__":
    main()
