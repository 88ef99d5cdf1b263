"""benchmarks/quality.py: it runs, it has every sampler, and its results are whole."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastscore.samplers import flow, reverse
from fastscore.samplers._corrector import CORRECTORS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sklearn", "matplotlib"))
    or not BENCHMARKS.is_dir(),
    reason="needs scikit-learn, matplotlib and the checkout",
)


def test_it_writes_a_row_for_each_run_and_the_picture(tmp_path):
    script = [sys.executable, BENCHMARKS / "quality.py", "--quick", "--out", tmp_path]
    subprocess.run(list(map(str, script)), check=True, capture_output=True, text=True)
    results = json.loads((tmp_path / "quality.json").read_text())
    lines = {row["sampler"] for row in results["summary"]}
    for problem in ("digits", "mixture", "plane"):
        rows = [row for row in results["rows"] if row["problem"] == problem]
        assert {row["sampler"] for row in rows} == lines
        assert all(value >= 0 for row in rows for value in row["values"].values())
        assert all(row["evaluations"]["mean"] > 0 for row in rows if row["sampler"] != "true")
    assert (tmp_path / "quality.png").stat().st_size > 10_000


def test_the_results_have_every_sampler():
    """At every number of evaluations."""
    results = json.loads((BENCHMARKS / "results" / "quality.json").read_text())
    assert not results["quick"]
    runs = {
        name: [row["run"] for row in results["summary"] if row["problem"] == name]
        for name in ("digits", "mixture", "plane")
    }
    assert len(runs["mixture"]) == len(runs["plane"])
    for own in runs.values():
        assert {run["function"] for run in own if run} == {
            "annealed_langevin",
            "consistent_annealed_langevin",
            "reverse_sde",
            "probability_flow",
        }
        assert {run.get("solver") for run in own} >= set(flow.SOLVERS)
        pairs = {(run.get("predictor"), run.get("corrector")) for run in own}
        correctors = (None, *CORRECTORS)
        assert pairs >= {(a, b) for a in reverse.PREDICTORS for b in correctors}
