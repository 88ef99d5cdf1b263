"""Random calls of every op, for a few seconds: see tests/emulator/fuzz.py.

``FASTSCORE_TEST_FUZZ_SECONDS`` says how many, in all (15). ``FASTSCORE_TEST_FUZZ_SEED`` repeats a
run; without it each has a seed of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulator
import pytest
import torch
from emulator import EmulationError, fuzz, fuzz_check
from emulator.fuzz_cases import FAMILIES, drawn, first_number
from emulator.fuzz_check import Mismatch
from torch import Tensor

pytestmark = pytest.mark.emulated

ROOT = Path(__file__).parents[1]
SECONDS = float(os.environ.get("FASTSCORE_TEST_FUZZ_SECONDS") or 15)
SEED = int(os.environ.get("FASTSCORE_TEST_FUZZ_SEED") or fuzz.new_seed())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small are the calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Before the seconds are counted."""
    emulator.load()


@pytest.mark.parametrize("family", FAMILIES)
def test_random_calls(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = fuzz.fuzz(fuzz.Run(family, SEED), SECONDS / len(FAMILIES))
    with capsys.disabled():
        print(f"\nfuzzer, seed {SEED}: {outcome}", end="")
    assert not outcome.failures, f"seed {SEED}\n\n" + "\n\n".join(outcome.failures)
    assert set(outcome.calls) == set(FAMILIES[family][1])


def test_every_op_is_called() -> None:
    assert {op for _, ops in FAMILIES.values() for op in ops} == set(emulator.op_names())


def test_a_case_hangs_on_seed_and_number_alone() -> None:
    def told(family: str, seed: int, number: int) -> str:
        return fuzz_check.told_case(drawn(family, seed, number)[0])

    for family in FAMILIES:
        texts = [told(family, 7, number) for number in range(30)]
        assert texts == [told(family, 7, number) for number in range(30)]
        assert texts != [told(family, 8, number) for number in range(30)]
        assert len(set(texts)) > 25


# ---- that it sees what is wrong ----------------------------------------------------------------

Spoil = Callable[[str, dict[str, Any], tuple[Tensor, ...]], tuple[Tensor, ...]]


def failures(
    monkeypatch: pytest.MonkeyPatch, spoil: Spoil, family: str, numbers: range = range(60)
) -> list[str]:
    """Of a run where what the emulated side returns goes through ``spoil`` first."""
    true = fuzz_check.results

    def results(op: str, args: dict[str, Any], emulated: bool) -> tuple[Tensor, ...]:
        out = true(op, args, emulated)
        return spoil(op, args, out) if emulated else out

    monkeypatch.setattr(fuzz_check, "results", results)
    run, outcome = fuzz.Run(family, 1), fuzz.Outcome(family)
    for number in numbers:
        fuzz.run_case(run, number, outcome)
    return outcome.failures


def next_number(x: Tensor) -> None:
    """The first number that isn't NaN or 0 becomes the next one."""
    places = (x.isfinite() & (x != 0)).nonzero()
    if len(places):
        at = tuple(places[0].tolist())
        x[at] = torch.nextafter(x[at], x[at] + 1) if x.element_size() > 2 else x[at] * 1.01


@pytest.mark.parametrize("family", FAMILIES)
def test_it_sees_another_last_bit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(op: str, args: dict[str, Any], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if out[0].dtype == torch.float32:
            next_number(out[0])
        return out

    texts = failures(monkeypatch, spoil, family)
    assert texts
    assert any("Mismatch: result 0" in text and "other bytes" in text for text in texts)
    command = f"python tests/emulator/fuzz.py --seed 1 --family {family} --case="
    assert all(f"again: {command}" in text for text in texts)


def test_it_sees_a_sum_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(op: str, args: dict[str, Any], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x * 1.001 for x in out) if op == "sliced_terms" else out

    texts = failures(monkeypatch, spoil, "sliced")
    assert any("more than rounding" in text for text in texts)
    assert all("sliced_terms(" in text for text in texts)


def test_it_sees_a_sum_that_hangs_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(op: str, args: dict[str, Any], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if op == "dsm_residual" and len(out[0]) % 2:
            next_number(out[0])
        return out

    assert any("alone: other bytes" in text for text in failures(monkeypatch, spoil, "dsm"))


def test_it_sees_a_write_between_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(op: str, args: dict[str, Any], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        memory = fuzz_check.memory_of(out[0])
        memory[memory.isnan()] = 0
        return out

    texts = failures(monkeypatch, spoil, "random")
    assert texts
    assert all("the memory between elements" in text for text in texts)


def test_it_sees_what_an_op_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(op: str, args: dict[str, Any], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        raise EmulationError("read of what nobody wrote") if op == "dual" else ValueError("no")

    texts = failures(monkeypatch, spoil, "dual", range(2))
    assert "EmulationError: read of what nobody wrote" in texts[0]
    assert "ValueError: no" in texts[1]


def test_one_radius_may_be_rounded_the_other_way_but_no_two() -> None:
    want = torch.randn(2, 5, 7)
    one, two, far = want.clone(), want.clone(), want.clone()
    one[1, 3] *= 1 + 2**-23
    two[:, 3:] *= 1 + 2**-23
    far[1, 3] *= 1.001
    fuzz_check.compare_but_for_a_radius("v", one, want, 1)
    for wrong in (two, far):
        with pytest.raises(Mismatch):
            fuzz_check.compare_but_for_a_radius("v", wrong, want, 1)


def test_the_command_repeats_a_case() -> None:
    number = first_number("sliced")
    assert number < 0
    words = ["--seed", "9", "--family", "sliced", f"--case={number}"]
    command = [sys.executable, str(ROOT / "tests/emulator/fuzz.py"), *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "sliced: 1 calls" in run.stdout
    assert "0 failures (sliced_terms 1)" in run.stdout
