"""Runge-Kutta stages, errors and steps: see ``fastscore/apps/bench/cases/runge_kutta.py``."""

FAMILY = "runge_kutta"


def test_runge_kutta(case, measure):
    measure(case)
