"""The example of digits, quickly: its numbers mean what they say, though its digits are poor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the example says, and where its files are."""
    out = tmp_path_factory.mktemp("digits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors, and the same numbers everywhere
    sys.path.insert(0, str(EXAMPLES))
    try:
        import digits

        return digits.main(["--quick", "--out", str(out)]), out
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in ("digits", "figures"):
            sys.modules.pop(name, None)
        torch.set_num_threads(threads)


def test_files(found: Any) -> None:
    numbers, out = found
    assert json.loads((out / "control_digits.json").read_text()) == numbers
    for job in ("inpaint", "classes", "reconstruct"):
        picture = out / f"control-{job}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 150_000


def test_known_pixels_are_kept(found: Any) -> None:
    ways = found[0]["inpaint"]
    for name in ("known", "known, corrector"):
        assert ways[name]["known_pixels_off"] == 0.0
    assert ways["PiGDM"]["known_pixels_off"] < 0.02  # a third of a level of 17
    assert ways["MMPS"]["known_pixels_off"] < 0.5  # 5 deviations of the noise that it is told
    for way in ways.values():
        assert way["interval"] > 0.1  # the samples differ
        assert way["error_of_mean"] < 0.45  # of noise between 0 and 1 it is more


def test_guidance_makes_the_class(found: Any) -> None:
    """Of 100 digits; by chance an independent classifier takes 10 for what they were to be."""
    ways = found[0]["classes"]
    assert found[0]["judge_held_out_accuracy"] > 0.97
    accuracy = {name: [ways[name][w]["accuracy"] for w in "0124"] for name in GUIDED}
    assert accuracy["classifier"][0] < 0.2
    assert accuracy["classifier"][1] > accuracy["classifier"][0] + 0.15
    assert accuracy["classifier"][3] > accuracy["classifier"][1] + 0.1
    assert accuracy["classifier-free"][0] > 0.3
    assert accuracy["classifier-free"][1] > accuracy["classifier-free"][0] + 0.1


GUIDED = ("classifier", "classifier-free")


@pytest.mark.parametrize("kind", ["Radon", "Fourier"])
def test_intervals_where_all_is_exact(found: Any, kind: str) -> None:
    """96 truths of 64 pixels: the standard error of a coverage is below 0.005."""
    ways = found[0]["reconstruct"]["exact"][kind]
    assert max(way["standard_error"] for way in ways.values()) < 0.006
    assert ways["exact"]["coverage"] == pytest.approx(0.9, abs=0.02)
    for name in ("MMPS", "PiGDM"):
        assert 0.85 < ways[name]["coverage"] < 0.95
        # No less certain than twice, no more certain than is possible.
        assert 1.0 < ways[name]["interval"] / ways["exact"]["interval"] < 2.0
        assert ways[name]["error_of_mean"] < 1.6 * ways["exact"]["error_of_mean"]


def test_an_unknown_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import digits

        with pytest.raises(SystemExit):
            digits.main(["outpaint"])
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in ("digits", "figures"):
            sys.modules.pop(name, None)
    assert "outpaint" in capsys.readouterr().err
