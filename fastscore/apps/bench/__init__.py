"""Benchmarks: every op and whole jobs, side by side with what users would write instead.

``fastscore bench`` runs them for an installed package, ``make bench`` with pytest-benchmark in a
checkout. Every side is checked to do the same work; sides take turns in one process.
"""

from fastscore.apps.bench.case import Disagreement
from fastscore.apps.bench.names import listing
from fastscore.apps.bench.suite import run_bench

__all__ = ["Disagreement", "listing", "run_bench"]
