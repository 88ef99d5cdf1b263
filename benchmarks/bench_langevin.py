"""One Langevin step, and chains of them: see ``fastscore/bench/cases/langevin.py``."""

FAMILY = "langevin"


def test_langevin(case, measure):
    measure(case)
