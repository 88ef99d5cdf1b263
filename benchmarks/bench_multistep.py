"""One row of a solver on a grid: see ``fastscore/apps/bench/cases/multistep.py``."""

FAMILY = "multistep"


def test_multistep(case, measure):
    measure(case)
