"""Random calls of every op, for a few seconds: see tests/emulator/fuzz.py.

``FASTSCORE_TEST_FUZZ_SECONDS`` is how many, in all (15); ``FASTSCORE_TEST_FUZZ_SEED`` makes a run
again. Without it each run has a seed of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from emulator import EmulationError, fuzz, fuzz_check, load, op_names
from emulator.fuzz_cases import FAMILIES, Within, drawn
from emulator.fuzz_check import Mismatch, check
from torch import Tensor

pytestmark = pytest.mark.emulated

SECONDS = float(os.environ.get("FASTSCORE_TEST_FUZZ_SECONDS", "15"))
SEED = int(os.environ.get("FASTSCORE_TEST_FUZZ_SEED") or fuzz.new_seed())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small are the calls."""
    load()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_calls(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = fuzz.fuzz(family, SEED, SECONDS / len(FAMILIES))
    with capsys.disabled():
        print(f"\nfuzzer, seed {SEED}: {outcome}")
    assert not outcome.failures, f"seed {SEED}\n\n" + "\n\n".join(outcome.failures)
    assert set(outcome.calls) == set(FAMILIES[family][1])


def test_every_op_is_called() -> None:
    assert {op for _, ops in FAMILIES.values() for op in ops} == set(op_names())


def test_a_case_hangs_on_its_three_words_alone() -> None:
    for family in FAMILIES:
        first, again, other = (
            fuzz_check.told_case(drawn(family, *words)[0]) for words in ((7, 30), (7, 30), (8, 30))
        )
        assert first == again != other


# ---- that it sees what is wrong ----------------------------------------------------------------


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: object) -> None:
    """The emulated side's results are handed to ``spoil`` before they are compared."""
    true = fuzz_check.results

    def results(op: str, args: dict[str, object], emulated: bool) -> tuple[Tensor, ...]:
        out = true(op, args, emulated)
        return spoil(op, args, out) if emulated else out

    monkeypatch.setattr(fuzz_check, "results", results)


def one_bit(x: Tensor) -> None:
    """Changes the last bit of a number that isn't NaN."""
    flat = x.reshape(-1)
    at = int(flat.isfinite().nonzero()[0])
    word = flat[at : at + 1].clone().view(fuzz_check.WORDS[x.element_size()])
    x[tuple(i[0] for i in torch.unravel_index(torch.tensor([at]), x.shape))] = (word ^ 1).view(
        x.dtype
    )[0]
