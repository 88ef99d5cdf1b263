"""The demo: digits dequantised and brought back, what it trains on, what it writes."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import fastscore
from fastscore.apps.cli import main
from fastscore.apps.demo import data, run, run_demo
from fastscore.evaluation.bits import dequantize


def test_digits_are_found_again_and_their_moments_known():
    digits, _ = data.load_digits()
    seen = torch.stack([dequantize(digits, data.LEVELS, seed=1, draw=n) for n in range(20)])
    for drawn in seen:
        assert torch.equal(data.as_digits(drawn), digits)
    assert torch.equal(data.as_digits(torch.tensor([-0.2, 1.3])), torch.tensor([0.0, 1.0]))
    each = seen.flatten(0, 1)
    # 30,000 draws of a pixel: the error of a mean is at most 0.5/173.
    assert (each.mean(0) - data.dequantised_mean(digits)).abs().max() < 2e-3
    std = data.dequantised_std(digits)
    assert (each.std(0) / std - 1).abs().max() < 0.02
    assert std.min() > 0.99 / 17 / 12**0.5  # of pixels that are never inked


class Watched(fastscore.DSMLoss):
    """The loss, and the batches that it was given."""

    batches: list[torch.Tensor]

    def forward(self, model, x):
        type(self).batches.append(x)
        return super().forward(model, x)


@pytest.mark.parametrize("levels", [None, data.LEVELS])
def test_training_dequantises_anew_in_each_batch(monkeypatch, levels):
    Watched.batches = []
    monkeypatch.setattr(fastscore, "DSMLoss", Watched)
    digit = data.load_digits()[0][:1]  # the only one, so that batches differ by their noise alone
    sigmas = fastscore.geometric_sigmas(1.0, 0.1, 3)
    for _ in range(2):
        run.train(digit, sigmas, iterations=2, seed=5, progress=False, levels=levels)
    first, second, *again = Watched.batches
    if levels is None:
        assert all(torch.equal(batch, digit.expand_as(batch)) for batch in Watched.batches)
        return
    assert first.unique().numel() > 1000
    assert torch.equal(data.as_digits(first), digit.expand_as(first))
    noise = torch.stack([17 * x - 16 * digit for x in (first, second)])
    assert ((noise > -1e-5) & (noise < 1 + 1e-5)).all()
    assert abs(torch.corrcoef(noise.flatten(1))[0, 1]) < 0.06  # four errors of 4,096 pairs
    assert torch.equal(torch.stack(again), torch.stack([first, second]))  # the seed governs


@pytest.mark.filterwarnings("ignore:.*at the highest noise level")
def test_demo_writes_what_it_says(tmp_path):
    out = tmp_path / "demo"
    said = []
    figures = run_demo(out, iterations=2, samples=4, progress=False, say=said.append)
    pictures = {"samples.png", "path.png", "samplers.png"}
    assert {path.name for path in out.iterdir()} == pictures | {
        "checkpoint.safetensors",
        "figures.json",
    }
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["quality"]["frechet_real"] < figures["quality"]["frechet_noise"]
    assert min(figures["library_part"].values()) > 0
    assert Image.open(out / "path.png").size[0] == (4 * 9 + 1) * 4
    rows = figures["samplers"]
    assert [row["evaluations"] for row in rows] == [106, 39, 35, 19, 20, 12, 8, 12, 12]
    assert Image.open(out / "samplers.png").size == (168 + 4 * 36 + 2 * 4, len(rows) * 36 + 4)
    for row in rows:
        assert any(f"{row['name']:<24} {row['evaluations']:11d}" in line for line in said)
        assert row["frechet_distance"] > figures["quality"]["frechet_real"]
    assert rows[0]["frechet_distance"] == figures["quality"]["frechet_samples"]
    assert any("1500 digits" in line for line in said)
    loaded = fastscore.load_checkpoint(out / "checkpoint.safetensors")
    assert loaded.process == fastscore.sde.VE(0.02, float(loaded.sigmas[0]))
    few = loaded.sample(4, seed=0, sampler=rows[4]["sampler"], **rows[4]["settings"])
    assert few.shape == (4, 1, 8, 8)
    # Judged at the levels of digits: 17 of them, though what is drawn has none.
    assert rows[4]["frechet_distance"] == fastscore.evaluation.frechet_distance(
        data.as_digits(few), data.load_digits()[1]
    )
    drawn = tmp_path / "more.png"
    sample = ["sample", str(out / "checkpoint.safetensors"), "-n", "2", "-o", str(drawn)]
    assert main([*sample, "--no-progress"]) == 0
