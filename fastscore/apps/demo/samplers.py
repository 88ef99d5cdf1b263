"""One network sampled in several ways: evaluations, seconds and Fréchet distance of each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import fastscore
from fastscore._support.extras import require
from fastscore.apps.demo.data import as_digits, dequantised_mean
from fastscore.apps.progress import Bar
from fastscore.evaluation.distances import frechet_distance

SHOWN = 16  # digits of each sampler in the picture
LABEL_WIDTH, LINE = 168, 11  # pixels
ZOOM = 4


@dataclass(frozen=True)
class Way:
    """A sampler, its settings, and what it is called."""

    name: str
    sampler: str
    settings: dict[str, Any]


def ways(mean: Tensor) -> list[Way]:
    """From forty evaluations of the network down to eight.

    Where few steps lead from the highest noise level to the data, noise in each of them forgets
    that the start, N(0, sigma_max^2), does not have the data's mean; without noise a start about
    the mean does as well.
    """
    reverse, flow = "reverse_sde", "probability_flow"
    corrected = {"predictor": "ancestral", "corrector": "annealed", "grid": "log", "steps": 19}
    plain, noisy = {"solver": "dpmpp_2m", "steps": 12}, {"solver": "dpmpp_2m_sde"}
    return [
        Way("predictor-corrector", reverse, corrected),
        Way("Heun with churn", flow, {"solver": "heun", "steps": 18, "churn": 7.2}),
        Way("Heun with churn", flow, {"solver": "heun", "steps": 10, "churn": 4.0}),
        *(Way("DPM-Solver++(2M) SDE", flow, noisy | {"steps": steps}) for steps in (20, 12, 8)),
        Way("DPM-Solver++(2M)", flow, plain),
        Way("the same from the mean", flow, plain | {"init_mean": mean}),
    ]


def row_of(
    way: Way, evaluations: int, seconds: float, drawn: Tensor, held_out: Tensor
) -> dict[str, Any]:
    """What is reported of digits that were drawn in one way."""
    return {
        "name": way.name,
        "sampler": way.sampler,
        "settings": {n: v for n, v in way.settings.items() if not isinstance(v, Tensor)},
        "evaluations": evaluations,
        "seconds": seconds,
        "frechet_distance": frechet_distance(drawn, held_out),
    }


def compare(
    checkpoint: fastscore.Checkpoint,
    data: Tensor,
    held_out: Tensor,
    *,
    samples: int,
    seed: int,
    progress: bool,
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """What is reported of each way, and its digits."""
    rows, digits = [], []
    chosen = ways(dequantised_mean(data))
    for number in (bar := Bar(len(chosen), "samplers", progress)):
        way = chosen[number]
        bar.say(sampler=way.name)
        with counted(checkpoint.model) as calls:
            start = time.perf_counter()
            drawn = checkpoint.sample(samples, sampler=way.sampler, seed=seed, **way.settings)
            seconds = time.perf_counter() - start
        drawn = as_digits(drawn)
        rows.append(row_of(way, len(calls), seconds, drawn, held_out))
        digits.append(drawn)
    return rows, digits


@contextmanager
def counted(network: nn.Module) -> Iterator[list[None]]:
    """A list with an entry for each call of the network."""
    calls: list[None] = []
    hook = network.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows in words."""
    lines = [f"  {'':<24} evaluations  seconds  distance"]
    for row in rows:
        name, calls, seconds = row["name"], row["evaluations"], row["seconds"]
        lines.append(f"  {name:<24} {calls:11d} {seconds:8.2f} {row['frechet_distance']:9.3f}")
    return lines


def save_rows(path: Path, rows: list[dict[str, Any]], shown: list[Tensor]) -> None:
    """A picture with a row for each way: its name, its evaluations and first digits."""
    strips = []
    for row, digits in zip(rows, shown, strict=True):
        words = f"{row['name']}\n{row['evaluations']} evaluations"
        strips.append(strip(words, 1 - digits[:SHOWN]))  # ink is 1 in these data
    fastscore.save_grid(path, torch.stack(strips), columns=1, pad=ZOOM)


def strip(words: str, images: Tensor) -> Tensor:
    """Words and, beside them, images (n, 1, H, W), enlarged: (1, ZOOM H, width)."""
    large = images.clamp(0, 1).repeat_interleave(ZOOM, 2).repeat_interleave(ZOOM, 3)
    side_by_side = torch.nn.functional.pad(large, (0, ZOOM), value=1.0).squeeze(1)
    row = torch.cat(list(side_by_side), dim=1)
    return torch.cat([written(words, len(row)), row], dim=1).unsqueeze(0)


def written(words: str, height: int) -> Tensor:
    """Black on white, of at most two lines: (height, LABEL_WIDTH)."""
    pillow = require("demo", "PIL.Image", "pillow")
    draw = require("demo", "PIL.ImageDraw", "pillow")
    image = pillow.new("L", (LABEL_WIDTH, height), 255)
    top = (height - 2 * LINE) // 3
    for i, line in enumerate(words.split("\n")):
        draw.Draw(image).text((0, top + i * (LINE + top)), line, fill=0)
    return torch.from_numpy(numpy.array(image)).float() / 255
