"""How likely digits are under the network that draws them, in bits per dimension."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore._support.extras import require
from fastscore.apps.demo.data import LEVELS, dequantised_mean, dequantised_std
from fastscore.apps.progress import Bar
from fastscore.evaluation import auroc, discrete_log_likelihood

HELD_OUT, TRAINING, NOISE = "held-out digits", "training digits", "uniform noise"
INVERTED, SHUFFLED = "inverted digits", "shuffled digits"
OUTLIERS = (INVERTED, SHUFFLED)  # what held-out digits are told from
PICTURED = (HELD_OUT, TRAINING, *OUTLIERS)
SHOWN = 10  # likeliest and least likely digits in the picture
BINS = 80
ZOOM = 4
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00")  # of Okabe and Ito: for the colour-blind


def sets_of(data: Tensor, held_out: Tensor, count: int) -> dict[str, Tensor]:
    """As many pictures of each kind, all at the digits' 17 levels; the same in every run."""
    real = held_out[:count]
    source = torch.Generator().manual_seed(0)
    noise = torch.randint(LEVELS, real.shape, generator=source).to(real) / (LEVELS - 1)
    # The places in order of a random number each: a permutation for every picture.
    order = torch.rand(real.flatten(1).shape, generator=source).argsort(1)
    return {
        HELD_OUT: real,
        TRAINING: data[: len(real)],
        NOISE: noise,
        INVERTED: 1 - real,
        SHUFFLED: real.flatten(1).gather(1, order).reshape(real.shape),
    }


def likelihoods(
    checkpoint: fastscore.Checkpoint,
    data: Tensor,
    held_out: Tensor,
    *,
    count: int,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is reported of each set of at most ``count`` pictures, and the bits of each picture.

    The flow begins at the lowest level that the network was trained on: higher up, where samplers
    of few steps may end, the boxes of dequantised data are blurred, which costs bits.
    """
    sigmas = checkpoint.sigmas
    assert sigmas is not None  # the demo's own checkpoint has them
    process = fastscore.sde.VE(float(sigmas[-1]), float(sigmas[0]))
    prior = (dequantised_mean(data), dequantised_std(data))
    sets = sets_of(data, held_out, count)
    bits: dict[str, Tensor] = {}
    rows: dict[str, dict[str, float]] = {}
    names = list(sets)
    start = time.perf_counter()
    evaluations: list[Tensor] = []
    for number in (bar := Bar(len(names), "likelihoods", progress)):
        name = names[number]
        bar.say(set=name)
        found = discrete_log_likelihood(
            checkpoint.model,
            sets[name],
            process,
            levels=LEVELS,
            prior=prior,
            seed=seed,
        )
        bits[name] = found.bits
        rows[name] = {"bits": found.mean_bits, "stderr": found.stderr}
        evaluations.append(found.evaluations)
    seconds = time.perf_counter() - start
    counts = torch.cat(evaluations).double()
    figures = {
        "levels": LEVELS,
        "pictures": len(sets[HELD_OUT]),
        "sigma_min": float(sigmas[-1]),
        "bits_per_dim": rows,
        "auroc": {name: _area(bits[HELD_OUT], bits[name]) for name in OUTLIERS},
        "evaluations": float(counts.mean()),
        "most_evaluations": int(counts.max()),
        "seconds": seconds,
    }
    return figures, bits


def _area(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """The probability that an outlier takes more bits than a held-out digit."""
    value, stderr = auroc(inside, outside)
    return {"value": float(value), "stderr": float(stderr)}


def save_pictures(directory: Path, held_out: Tensor, bits: dict[str, Tensor]) -> None:
    """likelihood.png: how bits are spread. likeliest.png: digits of fewest bits, and of most."""
    save_histogram(directory / "likelihood.png", {name: bits[name] for name in PICTURED})
    order = bits[HELD_OUT].argsort()
    shown = min(SHOWN, len(order))
    chosen = torch.cat([order[:shown], order[-shown:]])
    # Ink is 1 in these data, and dark on white paper.
    fastscore.save_grid(directory / "likeliest.png", 1 - held_out[chosen], columns=shown, zoom=ZOOM)


def save_histogram(path: Path, bits: dict[str, Tensor]) -> None:
    """How the bits of each set are spread, over one axis."""
    figure = require("demo", "matplotlib.figure", "matplotlib").Figure
    low = min(float(values.min()) for values in bits.values())
    high = max(float(values.max()) for values in bits.values())
    edges = torch.linspace(low, high, BINS + 1).tolist()
    sheet = figure(figsize=(6.4, 2.6), layout="constrained")
    axes = sheet.subplots()
    for (name, values), colour in zip(bits.items(), COLOURS, strict=True):
        label = f"{name}, {statistics.fmean(values.tolist()):.2f} in the mean"
        axes.hist(values.tolist(), edges, alpha=0.6, color=colour, label=label)
    axes.set(xlabel="bits per dimension", ylabel="pictures")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    sheet.savefig(path, dpi=100)


def report(figures: dict[str, Any]) -> list[str]:
    """The figures in words."""
    lines = [
        f"bits per dimension of {figures['pictures']} pictures each, dequantised from "
        f"{figures['levels']} levels ({figures['evaluations']:.0f} evaluations a picture, "
        f"{figures['seconds']:.1f} s):"
    ]
    for name, row in figures["bits_per_dim"].items():
        lines.append(f"  {name:<24} {row['bits']:7.3f} +- {row['stderr']:.3f}")
    lines.append("outliers told from held-out digits by their bits, area under the curve:")
    for name, area in figures["auroc"].items():
        lines.append(f"  {name:<24} {area['value']:7.4f} +- {area['stderr']:.4f}")
    return lines
