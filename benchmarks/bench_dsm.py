"""Denoising score matching but for the network: see ``fastscore/bench/cases/dsm.py``."""

FAMILY = "dsm"


def test_dsm(case, measure):
    measure(case)
