"""Activations with tangents: see ``fastscore/bench/cases/dual.py``."""

FAMILY = "dual"


def test_dual(case, measure):
    measure(case)
