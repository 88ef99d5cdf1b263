"""Train, sample in several ways, judge, write."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore._support.checks import check_int
from fastscore._support.extras import require_all
from fastscore._support.files import prepare_directory
from fastscore.apps.demo import likelihood
from fastscore.apps.demo.data import LEVELS, as_digits, load_digits
from fastscore.apps.demo.samplers import Way, compare, row_of, save_rows, table
from fastscore.apps.demo.timing import dsm_seconds, langevin_seconds
from fastscore.apps.info import info
from fastscore.apps.progress import Bar, shows_progress
from fastscore.evaluation.bits import dequantize
from fastscore.evaluation.distances import frechet_distance, nearest_distance

SIGMA_MIN = 0.01  # a sixth of the box of a level
BATCH = 64
LEARNING_RATE = 4e-3
STEPS_PER_SIGMA = 3
FLOW_SIGMA_MIN = (
    0.02  # where samplers with few steps end: lower levels cost steps, and show nothing
)
SAMPLES, SHOWN = 1024, 256
EMA_DECAY = 0.999
ZOOM = 4
PACKAGES = {
    "sklearn": "scikit-learn",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "matplotlib": "matplotlib",
}
Say = Callable[[str], None]


def train(
    data: Tensor,
    sigmas: Tensor,
    *,
    iterations: int,
    seed: int,
    progress: bool,
    levels: int | None = None,
) -> tuple[torch.nn.Module, list[float]]:
    """A score network's moving average after ``iterations`` steps of Adam, and the losses.

    Data of so many ``levels`` are dequantised, anew in each batch; None takes them as they are.
    """
    torch.manual_seed(seed)
    model = fastscore.nn.ScoreConvNet(channels=1, image_size=8)
    # Twice as fast on a CPU. PyTorch's overloads of Module.to leave this argument out.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = fastscore.nn.EMA(model, decay=EMA_DECAY)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    loss_fn = fastscore.DSMLoss(sigmas)
    losses: list[float] = []
    for step in (bar := Bar(iterations, "training", progress)):
        batch = data[torch.randint(len(data), (BATCH,))]
        if levels is not None:
            batch = dequantize(batch, levels, seed=seed, draw=step)
        loss = loss_fn(model, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update()
        losses.append(float(loss.detach()))
        if len(losses) % 50 == 0:
            bar.say(loss=f"{sum(losses[-50:]) / 50:.2f}")
    return average.module.eval(), losses


def run_demo(
    out: str | Path = "demo",
    *,
    iterations: int = 3000,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: bool | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Train a score network on handwritten digits, draw samples by every kind, tell how likely.

    Writes samples.png (by annealed Langevin dynamics), path.png (from noise to digit across its
    levels), samplers.png (a row for each sampler), likelihood.png (how the bits per dimension of
    digits and of other pictures are spread), likeliest.png (held-out digits that take the fewest
    bits, over those that take the most), checkpoint.safetensors and figures.json to ``out``;
    returns what stands in the JSON.

    Args:
        out: directory; made if its parent exists.
        iterations: training steps.
        samples: how many to draw by each sampler; and of how many pictures of each kind to tell
            the likelihood, up to the number of digits held out.
        seed: governs the network's start, the batches and all noise.
        progress: show progress bars; by default where tqdm is there, on a terminal.
        say: where the report goes.

    Raises:
        ImportError: a package that the demo needs is missing; as all errors before any work.
        OSError: ``out`` can't be written to.
        ValueError, TypeError: counts below 1 or not integers.
    """
    check_int("demo", "iterations", iterations, minimum=1)
    check_int("demo", "samples", samples, minimum=2)
    require_all("demo", PACKAGES)
    bars = shows_progress("demo", progress)
    directory = prepare_directory("demo", out)
    begin = time.perf_counter()
    data, held_out = load_digits()
    sigmas = fastscore.noise_scales(data, sigma_min=SIGMA_MIN)
    say(
        f"{len(data)} digits of 8 x 8, {len(held_out)} held out; {len(sigmas)} noise scales from "
        f"{float(sigmas[0]):.3g} (largest distance in the data) to {SIGMA_MIN}"
    )

    start = time.perf_counter()
    model, losses = train(
        data, sigmas, iterations=iterations, seed=seed, progress=bars, levels=LEVELS
    )
    training = time.perf_counter() - start
    sampling: dict[str, Any] = {"steps_per_sigma": STEPS_PER_SIGMA}
    process = fastscore.sde.VE(FLOW_SIGMA_MIN, float(sigmas[0]))
    checkpoint = fastscore.Checkpoint(model, sigmas, sampling, process=process)
    fastscore.save_checkpoint(directory / "checkpoint.safetensors", checkpoint)
    say(f"trained for {iterations} steps in {training:.1f} s, loss {_tail_mean(losses):.2f}")

    start = time.perf_counter()
    shown_levels = torch.linspace(0, len(sigmas) - 1, 12).round().long().tolist()
    drawn, path = fastscore.annealed_langevin(
        model, sigmas, num_samples=samples, seed=seed, trajectory=shown_levels, progress=bars,
        **sampling,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    drawn = as_digits(drawn)
    evaluations = len(sigmas) * STEPS_PER_SIGMA + 1
    say(f"drew {samples} samples in {seconds:.1f} s ({evaluations} steps)")

    annealed = Way("annealed Langevin", "annealed_langevin", sampling)
    rows, digits = compare(checkpoint, data, held_out, samples=samples, seed=seed, progress=bars)
    rows.insert(0, row_of(annealed, evaluations, seconds, drawn, held_out))
    digits.insert(0, drawn)
    save_rows(directory / "samplers.png", rows, digits)

    # Ink is 1 in these data, and dark on white paper.
    first = drawn[:SHOWN]
    fastscore.save_grid(
        directory / "samples.png", 1 - first, columns=math.isqrt(len(first)), zoom=ZOOM
    )
    shown = min(10, samples)
    way = torch.cat([normalised(path[:, :shown].flatten(0, 1)), drawn[:shown]])
    fastscore.save_grid(directory / "path.png", 1 - way, columns=shown, zoom=ZOOM)

    likely, bits = likelihood.likelihoods(
        checkpoint, data, held_out, count=samples, seed=seed, progress=bars
    )
    likelihood.save_pictures(directory, held_out, bits)

    figures = {
        "training_seconds": training,
        "sampling_seconds": seconds,
        "loss": _tail_mean(losses),
        "levels": len(sigmas),
        "library_part": library_part(data, sigmas, drawn, iterations),
        "samples": samples,
        "quality": quality(drawn, data, held_out),
        "samplers": rows,
        "likelihood": likely,
        "total_seconds": time.perf_counter() - begin,
        "machine": info(),
    }
    (directory / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    report(figures, directory, say)
    return figures


def normalised(images: Tensor) -> Tensor:
    """Each image stretched to [0, 1] about 1/2, so that noise of any scale can be seen."""
    reach = (images - 0.5).abs().flatten(1).amax(1).clamp_min(0.5).reshape(-1, 1, 1, 1)
    return (images - 0.5) / (2 * reach) + 0.5


def _tail_mean(losses: list[float]) -> float:
    tail = losses[-200:]
    return sum(tail) / len(tail)


def library_part(data: Tensor, sigmas: Tensor, drawn: Tensor, iterations: int) -> dict[str, float]:
    """Seconds that everything but the network takes over the whole job, fused and eager."""
    train_fused, train_eager = dsm_seconds(data[:BATCH], sigmas)
    step_fused, step_eager = langevin_seconds(drawn, sigmas, STEPS_PER_SIGMA)
    steps = len(sigmas) * STEPS_PER_SIGMA + 1
    return {
        "training_fused_seconds": train_fused * iterations,
        "training_eager_seconds": train_eager * iterations,
        "sampling_fused_seconds": step_fused * steps,
        "sampling_eager_seconds": step_eager * steps,
    }


def quality(drawn: Tensor, data: Tensor, held_out: Tensor) -> dict[str, float]:
    """Samples against held-out digits, and the same of as many that are real."""
    count = len(drawn)  # fewer are further away, whatever they are
    uniform = torch.rand(held_out.shape, generator=torch.Generator().manual_seed(0))
    return {
        "frechet_samples": frechet_distance(drawn, held_out),
        "frechet_real": frechet_distance(data[:count], held_out),
        "frechet_noise": frechet_distance(uniform[:count], held_out),
        "nearest_samples": nearest_distance(drawn, data),
        "nearest_real": nearest_distance(held_out, data),
    }


def report(figures: dict[str, Any], directory: Path, say: Say) -> None:
    """The figures in words."""
    part, q = figures["library_part"], figures["quality"]
    say("the library's part, all else being the network's (seconds, fused against eager PyTorch):")
    for job in ("training", "sampling"):
        fused, eager = part[f"{job}_fused_seconds"], part[f"{job}_eager_seconds"]
        say(f"  {job:<9} {fused:7.3f} against {eager:7.3f}: {eager / fused:.1f} times faster")
    say("Fréchet distance to held-out digits (0 is perfect):")
    say(
        f"  samples {q['frechet_samples']:.2f}, real digits {q['frechet_real']:.2f}, "
        f"uniform noise {q['frechet_noise']:.2f}"
    )
    say("median distance to the nearest training digit:")
    say(f"  samples {q['nearest_samples']:.2f}, held-out digits {q['nearest_real']:.2f}")
    say("the same network by other samplers, and their Fréchet distance to held-out digits:")
    for line in (*table(figures["samplers"]), *likelihood.report(figures["likelihood"])):
        say(line)
    say(
        "wrote samples.png, path.png, samplers.png, likelihood.png, likeliest.png, "
        f"checkpoint.safetensors and figures.json to {directory}/"
    )
