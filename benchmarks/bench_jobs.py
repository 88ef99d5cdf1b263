"""Whole jobs, sampling and training: see ``fastscore/bench/cases/{sampling,training}.py``."""

FAMILY = "jobs"


def test_jobs(case, measure):
    measure(case)
