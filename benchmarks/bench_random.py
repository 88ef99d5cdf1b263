"""Filling tensors with noise: see ``fastscore/bench/cases/random.py``."""

FAMILY = "random"


def test_random(case, measure):
    measure(case)
