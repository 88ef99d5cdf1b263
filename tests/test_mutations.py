"""Bugs that are put into the real sources must be caught: see tests/emulator/mutations.py.

Each is a compilation: they run with ``FASTSCORE_TEST_MUTATIONS=1``, or where ``CI`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from emulator import build, mutations
from emulator.mutations import MUTATIONS, Mutation, Verdict

WANTED = bool(os.environ.get("CI")) or os.environ.get("FASTSCORE_TEST_MUTATIONS") == "1"
FAMILIES = sorted({(m.family, m.dtype) for m in MUTATIONS})


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_what_it_changes_stands_in_the_sources_once(mutation: Mutation, tmp_path: Path) -> None:
    csrc = mutations.mutated(mutation, tmp_path)
    ours, theirs = (f / "cuda" / mutation.file for f in (csrc, build.CSRC))
    assert ours.read_text() != theirs.read_text()
    assert mutation.new in ours.read_text()
    names = {path.stem for path in (build.CSRC / "cuda").glob("*.cu")}
    assert mutation.family in names


def test_dtypes_that_a_bug_does_not_need_are_left_out(tmp_path: Path) -> None:
    csrc = mutations.mutated(MUTATIONS[0], tmp_path)
    text = (csrc / "cuda" / "elements.cuh").read_text()
    switch = text[text.index("void with_storage") :]
    assert "body(double())" not in switch
    assert "body(float())" in switch


@pytest.fixture(scope="module")
def verdicts() -> Iterator[dict[str, Future[Verdict]]]:
    with mutations.started() as futures:
        yield futures


needs_time = pytest.mark.skipif(not WANTED, reason="only with FASTSCORE_TEST_MUTATIONS=1 or CI")


@needs_time
@pytest.mark.emulated
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_it_is_caught(mutation: Mutation, verdicts: dict[str, Future[Verdict]]) -> None:
    verdict = verdicts[mutation.name].result()
    assert verdict.caught, f"{verdict}\n{verdict.words}"


@needs_time
@pytest.mark.emulated
@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
def test_without_a_bug_the_same_calls_are_right(family: str, dtype: str) -> None:
    status, words = mutations.fuzzed(build.build_library("90"), family, dtype, seconds=3)
    assert status == 0, words
