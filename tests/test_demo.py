"""The demo: digits dequantised and brought back, what it trains on, what it writes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image

import fastscore
from fastscore.apps.cli import main
from fastscore.apps.demo import data, likelihood, run, run_demo
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


def test_pictures_whose_likelihood_is_told():
    digits, held_out = data.load_digits()
    sets = likelihood.sets_of(digits, held_out, 1000)
    assert {name: x.shape for name, x in sets.items()} == dict.fromkeys(sets, held_out.shape)
    for x in sets.values():
        assert ((16 * x).round() == 16 * x).all()
        assert x.min() == 0
        assert x.max() == 1
    shuffled = sets[likelihood.SHUFFLED]
    assert torch.equal(shuffled.flatten(1).sort(1)[0], held_out.flatten(1).sort(1)[0])
    # The corners are hardly ever inked; shuffled, they are as often as any other pixel.
    assert held_out[:, 0, 0, 0].mean() < 0.01
    assert (shuffled.mean(0) - held_out.mean()).abs().max() < 0.1
    assert torch.equal(sets[likelihood.INVERTED] + held_out, torch.ones_like(held_out))
    counts = torch.bincount((16 * sets[likelihood.NOISE]).long().flatten(), minlength=17)
    expected = held_out.numel() / 17
    assert (counts - expected).abs().max() < 5 * expected**0.5
    few = likelihood.sets_of(digits, held_out, 10)
    assert all(len(x) == 10 for x in few.values())


def test_likelihoods_of_a_network_that_is_known():
    digits, held_out = data.load_digits()
    mean, variance = data.dequantised_mean(digits), 0.1
    model = fastscore.scores.GaussianMixture([1.0], mean.unsqueeze(0), variance)
    sigmas = fastscore.geometric_sigmas(20.0, 0.02, 10)
    options = {"count": 30, "seed": 3, "progress": False}
    checkpoint = fastscore.Checkpoint(model, sigmas)
    figures, bits = likelihood.likelihoods(checkpoint, digits, held_out, **options)
    spread = variance + 0.02**2  # where the flow begins
    sets = likelihood.sets_of(digits, held_out, 30)
    assert list(figures["bits_per_dim"]) == list(bits) == list(sets)
    for name, x in sets.items():
        off = (dequantize(x, 17, seed=3) - mean).double().flatten(1).square().sum(1)
        nats = off / spread / 2 + 32 * math.log(2 * math.pi * spread)
        exact = nats / (64 * math.log(2)) + math.log2(17)
        assert (bits[name] - exact).abs().max() < 3e-3
        row = figures["bits_per_dim"][name]
        assert row["bits"] == pytest.approx(float(exact.mean()), abs=3e-3)
        assert row["stderr"] == pytest.approx(float(exact.std()) / 30**0.5, abs=1e-3)
    pairs = bits[likelihood.SHUFFLED][:, None] > bits[likelihood.HELD_OUT]
    area = figures["auroc"][likelihood.SHUFFLED]["value"]
    assert area == pytest.approx(float(pairs.double().mean()))
    assert figures["pictures"] == 30
    assert 5 < figures["evaluations"] <= figures["most_evaluations"] < 200


@pytest.mark.filterwarnings("ignore:.*at the highest noise level")
def test_demo_writes_what_it_says(tmp_path):
    out = tmp_path / "demo"
    said = []
    figures = run_demo(out, iterations=2, samples=4, progress=False, say=said.append)
    pictures = {"samples.png", "path.png", "samplers.png", "likelihood.png", "likeliest.png"}
    assert {path.name for path in out.iterdir()} == pictures | {
        "checkpoint.safetensors",
        "figures.json",
    }
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["quality"]["frechet_real"] < figures["quality"]["frechet_noise"]
    assert min(figures["library_part"].values()) > 0
    assert Image.open(out / "path.png").size[0] == (4 * 9 + 1) * 4
    assert Image.open(out / "likeliest.png").size == ((4 * 9 + 1) * 4, (2 * 9 + 1) * 4)
    assert Image.open(out / "likelihood.png").size == (640, 260)
    found = figures["likelihood"]
    assert (found["pictures"], found["levels"]) == (4, 17)
    for name, row in found["bits_per_dim"].items():
        assert any(f"{name:<24} {row['bits']:7.3f} +- {row['stderr']:.3f}" in line for line in said)
    for name, area in found["auroc"].items():
        assert 0 <= area["value"] <= 1
        assert any(f"{name:<24} {area['value']:7.4f}" in line for line in said)
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
