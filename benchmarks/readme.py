"""The figures of the README's example: its snippets, up to its Frechet distances, run as they are.

Run: python benchmarks/readme.py [--out benchmarks/results]
Writes readme.json: seconds of the example, and the squared Frechet distances to held-out data of
its samples, of data, of something else, of samples with 20 steps at each noise level, and of those
that are drawn in continuous time; and how likely held-out data are.
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
JUDGED = "frechet_distance"  # stands in the snippet that prints distances
# Of the three after it: two draw samples, the one between them says how likely data are.
IN_TIME = (("few", "corrected", "adaptive"), (), ("few", "many", "annealed"))
STEPS = 20


def run() -> dict[str, Any]:
    """Run the snippets in a directory of their own."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    seconds: list[float] = []
    os.environ.setdefault("MPLBACKEND", "agg")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # the snippets write beside themselves
        snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
        judged = next(i for i, snippet in enumerate(snippets) if JUDGED in snippet)
        for snippet in snippets[: judged + 1]:
            start = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                exec(snippet, names)
            seconds.append(time.perf_counter() - start)
        sharp = names["checkpoint"].sample(1000, seed=1, steps_per_sigma=STEPS)
        in_time = []
        for snippet, drawn in zip(snippets[judged + 1 :], IN_TIME, strict=False):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(snippet, names)
            if drawn:
                in_time.append({name: distance(names, name) for name in drawn})
            else:
                likely = likelihood(names)
        os.chdir(README.parent)
    values = map(float, printed.getvalue().split())
    distances = dict(zip(("samples", "data", "else"), values, strict=True))
    names["sharp"] = sharp
    distances["samples_20_steps"] = distance(names, "sharp")
    return {
        "example_seconds": seconds[0],
        "frechet_distance": distances,
        "frechet_distance_in_time": in_time,
        "likelihood": likely,
    }


def likelihood(names: dict[str, Any]) -> dict[str, float]:
    """Of held-out data, and how they are told from what is strange."""
    found, strange = names["found"].log_prob, names["strange"].log_prob
    area = fastscore.evaluation.auroc(-found, -strange)
    return {"mean_log_prob": float(found.mean()), "auroc": area.value, "stderr": area.stderr}


def distance(names: dict[str, Any], drawn: str) -> float:
    """Of samples to held-out data."""
    return fastscore.evaluation.frechet_distance(names[drawn], names["held_out"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    out = prepare_directory("readme", parser.parse_args().out).resolve()
    result = run() | {"date": date.today().isoformat(), "machine": info()}
    (out / "readme.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["frechet_distance"]), f"{result['example_seconds']:.1f} s")


if __name__ == "__main__":
    main()
