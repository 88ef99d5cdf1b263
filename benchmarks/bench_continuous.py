"""Steps in continuous time: see ``fastscore/apps/bench/cases/continuous.py``."""

FAMILY = "continuous"


def test_continuous(case, measure):
    measure(case)
