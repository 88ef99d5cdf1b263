"""The terms of sliced score matching, and projections: see ``fastscore/bench/cases/sliced.py``."""

FAMILY = "sliced"


def test_sliced(case, measure):
    measure(case)
