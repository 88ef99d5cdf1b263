"""The cost of more work and of a call, and of each instruction set: see
``fastscore/bench/cases/scaling.py``.
"""

from fastscore.apps.bench.suite import capability_rows

FAMILY = "scaling"


def test_scaling(case, measure):
    measure(case)


def test_instruction_sets(request, quick, keep):
    if request.config.getoption("device") in ("all", "cpu"):
        keep("cpu-capability", capability_rows(quick, say=lambda _: None))
