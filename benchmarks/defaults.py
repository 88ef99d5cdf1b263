"""What ScoreMLP's defaults, noise_scales and the README's example rest on: samples, not losses.

Networks are trained by denoising score matching on seven sets of data and judged by what annealed
Langevin dynamics draws from their moving average. Five questions, each a part of its own:

- network: activation, depth, width, ``data_std``, the biases' start and learning rate;
- levels: how many noise levels and how many steps at each, for exact scores;
- sigma_min: the smallest level, as a share of the data's standard deviation;
- mean: data that lie off the origin, by 0 to 10 of their standard deviations;
- cost: time of a training step, the networks taking turns.

Measures, on 2,000 samples: ``off``, the share of samples further from the nearest of a large set of
fresh data than 99.9 % of other fresh data are (digits, of which there are few: 99 %, against those
trained on); ``distance``, the sliced Wasserstein distance from fresh data in units of the data's
standard deviation, and ``fresh``, the same of fresh data.

Run: python benchmarks/defaults.py [--out benchmarks/results] [--part PART] [--jobs 2] [--quick]
Writes defaults.json (a part run alone replaces that part only) and prints its tables. All of it
takes about an hour on two cores; scikit-learn is needed for the digits.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore._support.files import prepare_directory
from fastscore._support.spread import standard_deviation
from fastscore.apps.demo.data import load_digits
from fastscore.apps.info import info

TRAINED_ON = 5_000
DRAWN = 2_000
REFERENCE = 10_000
STEPS = 3_000
RATIO = 1.2  # of neighbouring levels
SIGMA_MIN = 0.01  # of the data's standard deviation
Row = dict[str, Any]

# ---- sets of data -------------------------------------------------------------------------------


def moons(n: int, g: torch.Generator) -> Tensor:
    """Two half circles of radius 1 that reach into each other, with noise of 0.05."""
    angle, upper = math.pi * torch.rand(n, generator=g), torch.rand(n, generator=g) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], 1) + 0.05 * torch.randn(n, 2, generator=g)


def checkerboard(n: int, g: torch.Generator) -> Tensor:
    """Eight of the sixteen squares of [-4, 4]^2."""
    corner = torch.randint(4, (n, 2), generator=g)
    corner[:, 1] = 2 * (corner[:, 1] % 2) + corner[:, 0] % 2
    return 2.0 * (corner + torch.rand(n, 2, generator=g)) - 4


def rings(n: int, g: torch.Generator) -> Tensor:
    """Two thin rings, small: data of standard deviation 0.15."""
    angle = 2 * math.pi * torch.rand(n, generator=g)
    radius = torch.tensor([0.12, 0.28])[torch.randint(2, (n,), generator=g)]
    radius = radius + 0.01 * torch.randn(n, generator=g)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def surface(n: int, g: torch.Generator) -> Tensor:
    """A curved surface of two dimensions in eight, with noise of 0.02."""
    u, v = 2 * math.pi * torch.rand(2, n, generator=g)
    angles = torch.stack([u, v, u + v, u - 2 * v], 1)
    return torch.cat([angles.cos(), angles.sin()], 1) + 0.02 * torch.randn(n, 8, generator=g)


def mixture(n: int, g: torch.Generator, *, dim: int, scale: float) -> Tensor:
    """Ten Gaussians of unequal weights, each flat in some directions."""
    fixed = torch.Generator().manual_seed(dim)
    means = torch.randn(10, dim, generator=fixed)
    spread = 0.3 * torch.rand(10, dim, generator=fixed) ** 2 + 0.05
    weights = torch.rand(10, generator=fixed) + 0.2
    which = torch.multinomial(weights, n, replacement=True, generator=g)
    return scale * (means[which] + spread[which] * torch.randn(n, dim, generator=g))


Draw = Callable[[int, torch.Generator], Tensor]
SETS: dict[str, Draw] = {
    "moons": moons,
    "checkerboard": checkerboard,
    "rings": rings,
    "mixture, 8": functools.partial(mixture, dim=8, scale=5.0),
    "surface, 8": surface,
    "mixture, 64": functools.partial(mixture, dim=64, scale=0.2),
}
DIGITS = "digits, 64"
ALL = (*SETS, DIGITS)


@functools.cache
def data(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a network is trained on, a large set of fresh data (the reference), and another."""
    if name == DIGITS:
        seen, held_out = (images.flatten(1) for images in load_digits())
        return seen, seen, held_out
    sizes = (TRAINED_ON, REFERENCE, REFERENCE)
    sets = [SETS[name](n, torch.Generator().manual_seed(i)) for i, n in enumerate(sizes)]
    return sets[0], sets[1], sets[2]


# ---- measures -----------------------------------------------------------------------------------


def sliced_distance(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein distance of order 1, by 256 directions."""
    directions = torch.randn(a.shape[1], 256, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=0)
    share = (torch.arange(1000) + 0.5) / 1000
    return float(
        ((a @ directions).quantile(share, 0) - (b @ directions).quantile(share, 0)).abs().mean()
    )


def nearest(x: Tensor, reference: Tensor) -> Tensor:
    return torch.cat([torch.cdist(part, reference).min(1).values for part in x.split(1000)])


@functools.cache
def limits(name: str) -> tuple[float, float]:
    """The distance beyond which a sample is off the data, and fresh data's sliced distance."""
    _, reference, fresh = data(name)
    share = 0.99 if name == DIGITS else 0.999
    limit = float(nearest(fresh, reference).quantile(share))
    return limit, sliced_distance(fresh[:DRAWN], reference) / standard_deviation(
        "defaults", reference
    )


def judge(name: str, samples: Tensor) -> Row:
    _, reference, _ = data(name)
    limit, fresh = limits(name)
    # Samples that are not finite are off the data, and have no distance from it.
    distance = sliced_distance(samples, reference) / standard_deviation("defaults", reference)
    return {
        "off": 1 - float((nearest(samples, reference) <= limit).double().mean()),
        "distance": distance if math.isfinite(distance) else None,
        "fresh": fresh,
    }


# ---- training and sampling ----------------------------------------------------------------------


def ladder(high: float, low: float, ratio: float = RATIO) -> Tensor:
    """Levels from ``high`` to ``low``, neighbours apart by at most ``ratio``."""
    n = 1 + math.ceil(math.log(high / low) / math.log(ratio))
    return fastscore.geometric_sigmas(high, low, n)


def train(model: torch.nn.Module, x: Tensor, sigmas: Tensor, job: Row) -> torch.nn.Module:
    """The moving average of the weights at the end."""
    average = fastscore.nn.EMA(model, decay=0.999)
    optimiser = torch.optim.Adam(model.parameters(), job["lr"])
    loss_fn = fastscore.DSMLoss(sigmas)
    for _ in range(job["steps"]):
        loss = loss_fn(model, x[torch.randint(len(x), (job["batch"],))])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        average.update()
    return average.module


def network(dim: int, spread: float, job: Row) -> fastscore.nn.ScoreMLP:
    """The network that ``job`` names; its biases are drawn, or 0 as they once were."""
    model = fastscore.nn.ScoreMLP(
        dim,
        job["hidden"],
        activation=job["activation"],
        data_std=spread if job["data_std"] == "data" else job["data_std"],
    )
    for layer in model.layers if job["biases"] == "zero" else ():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.zeros_(layer.bias)
    return model


def run(job: Row) -> Row:
    """Train and judge one network."""
    torch.set_num_threads(1)
    torch.manual_seed(job["seed"])
    x, _, _ = data(job["data"])
    spread = standard_deviation("defaults", x)
    # Data whose mean is so many standard deviations from 0, or the data as they are.
    move = torch.zeros(x.shape[1])
    if job["shift"] is not None:
        move = job["shift"] * spread - x.mean(0)
    x = x + move
    sigmas = ladder(fastscore.sigma_max_from_data(x), job["sigma_min"] * spread)
    model = train(network(x.shape[1], spread, job), x, sigmas, job)
    samples = fastscore.annealed_langevin(model, sigmas, num_samples=DRAWN, seed=job["seed"])
    return {**job, "levels": len(sigmas), **judge(job["data"], samples - move)}


BASE: Row = {
    "hidden": (128, 128, 128),
    "activation": "silu",
    "data_std": "data",
    "biases": "uniform",
    "lr": 2e-3,
    "steps": STEPS,
    "batch": 256,
    "sigma_min": SIGMA_MIN,
    "shift": None,
    "seed": 0,
}
OLD: Row = {"hidden": (128, 128), "activation": "softplus", "data_std": 1.0, "biases": "zero"}
WIDE: Row = {"hidden": (256, 256, 256)}


def network_jobs() -> list[Row]:
    changes: list[Row] = [{}, OLD, {**OLD, "activation": "silu"}]
    changes += [{"activation": name} for name in ("softplus", "gelu")]
    changes += [{"hidden": widths} for widths in ((128,) * 2, (128,) * 4, (256,) * 2)]
    changes += [WIDE, {"data_std": 1.0}, {"biases": "zero"}, {"lr": 1e-3}, {"lr": 4e-3}]
    jobs = [{**change, "data": name} for change in changes for name in ALL]
    return jobs + [
        {**change, "data": name, "seed": seed}
        for seed in (1, 2)
        for change in ({}, OLD, WIDE)
        for name in ALL
    ]


def sigma_min_jobs() -> list[Row]:
    sets = ("moons", "surface, 8", DIGITS)
    return [{"sigma_min": s, "data": name} for s in (0.003, 0.01, 0.03, 0.1) for name in sets]


def mean_jobs() -> list[Row]:
    sets = ("moons", "surface, 8")
    return [{"shift": shift, "data": name} for shift in (0.0, 1.0, 3.0, 10.0) for name in sets]


# ---- levels, for exact scores -------------------------------------------------------------------


def levels(dim: int, quick: bool) -> list[Row]:
    """The sampler's own error on ten Gaussians of standard deviation 0.3 and unequal weights."""
    torch.set_num_threads(1)
    fixed = torch.Generator().manual_seed(dim)
    means = torch.randn(10, dim, generator=fixed)
    weights = torch.rand(10, generator=fixed) + 0.2
    score = fastscore.scores.GaussianMixture(weights / weights.sum(), means, 0.3**2)
    fresh, other = score.sample(4000, seed=1), score.sample(4000, seed=2)
    spread = standard_deviation("defaults", fresh)
    high, low = fastscore.sigma_max_from_data(fresh), SIGMA_MIN * spread
    rows = []
    for ratio in LEVEL_RATIOS[:2] if quick else LEVEL_RATIOS:
        for steps in (2, 5, 10):
            sigmas = ladder(high, low, ratio)
            samples = fastscore.annealed_langevin(
                score, sigmas, shape=(4000, dim), steps_per_sigma=steps, seed=0
            )
            rows.append(
                {
                    "dim": dim,
                    "ratio": ratio,
                    "levels": len(sigmas),
                    "steps_per_sigma": steps,
                    "calls": len(sigmas) * steps + 1,
                    "distance": sliced_distance(samples, fresh) / spread,
                    "fresh": sliced_distance(other, fresh) / spread,
                }
            )
    return rows


LEVEL_RATIOS = (4.0, 2.0, 1.5, 1.3, 1.2, 1.1, 1.05)
LEVEL_DIMS = (1, 2, 4, 8, 64)

# ---- cost ---------------------------------------------------------------------------------------


def cost(quick: bool) -> list[Row]:
    """Milliseconds of a training step for points in the plane, the networks taking turns."""
    torch.set_num_threads(1)
    sides = []
    for widths in ((128,) * 2, (128,) * 3, (128,) * 4, (256,) * 2, (256,) * 3):
        job = {**BASE, "hidden": widths, "steps": 1}
        x, _, _ = data("moons")
        sigmas = ladder(4.0, 0.01)
        model = network(2, 1.0, job)
        average = fastscore.nn.EMA(model, decay=0.999)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        sides.append((widths, model, average, optimiser, fastscore.DSMLoss(sigmas)))
    times: dict[tuple[int, ...], list[float]] = {side[0]: [] for side in sides}
    for turn in range(20 if quick else 200):
        for widths, model, average, optimiser, loss_fn in sides:
            start = time.perf_counter()
            loss = loss_fn(model, x[: job["batch"]])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            average.update()
            if turn >= 5:
                times[widths].append(time.perf_counter() - start)
    first = times[(128,) * 2]
    return [
        {
            "hidden": widths,
            "milliseconds": 1e3 * statistics.median(found),
            "times_128_128": statistics.median(a / b for a, b in zip(found, first, strict=True)),
        }
        for widths, found in times.items()
    ]


# ---- all of it ----------------------------------------------------------------------------------

TRAINED = {"network": network_jobs, "sigma_min": sigma_min_jobs, "mean": mean_jobs}
PARTS = (*TRAINED, "levels", "cost")


def measure(part: str, pool: ProcessPoolExecutor, quick: bool) -> list[Row]:
    if part == "cost":
        return cost(quick)
    rows: list[Row] = []
    if part == "levels":
        dims = LEVEL_DIMS[:2] if quick else LEVEL_DIMS
        for found in pool.map(functools.partial(levels, quick=quick), dims):
            rows += found
        return rows
    jobs = [{**BASE, **job} for job in TRAINED[part]()]
    if quick:
        jobs = [{**job, "steps": 50} for job in jobs if job["data"] == "moons"]
    for row in pool.map(run, jobs):
        rows.append(row)
        changed = {k: v for k, v in row.items() if k in BASE and v != BASE[k]}
        print(
            f"{row['data']:12s} off {row['off']:7.2%}  distance {distance_of(row):.4f} "
            f"(fresh {row['fresh']:.4f})  {changed}",
            flush=True,
        )
    return rows


def distance_of(row: Row) -> float:
    return math.nan if row["distance"] is None else row["distance"]


def table(results: dict[str, Any]) -> Iterable[str]:
    """What the docstrings quote: medians over the seeds."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for part in TRAINED:
        for row in results.get(part, []):
            changed = {k: v for k, v in row.items() if k in BASE and v != BASE[k] and k != "seed"}
            groups.setdefault((f"{part}: {changed}", row["data"]), []).append(row)
    for name in dict.fromkeys(name for name, _ in groups):
        yield f"{name}"
        for measure_of, read in (("off", lambda row: row["off"]), ("distance", distance_of)):
            cells = {
                d: statistics.median(read(row) for row in rows)
                for (n, d), rows in groups.items()
                if n == name
            }
            form = "{:.1%}" if measure_of == "off" else "{:.3f}"
            line = "  ".join(f"{d} {form.format(value)}" for d, value in cells.items())
            yield f"    {measure_of:8s} {line}"
    for row in results.get("levels", []):
        yield "levels: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items())
    for row in results.get("cost", []):
        yield (
            f"cost: {row['hidden']} {row['milliseconds']:.2f} ms, "
            f"{row['times_128_128']:.2f} times (128, 128)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--part", choices=PARTS, help="this part alone")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of a thread each")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    args = parser.parse_args()
    file = prepare_directory("defaults", args.out) / "defaults.json"
    results: dict[str, Any] = json.loads(file.read_text()) if args.part and file.is_file() else {}
    results |= {"date": date.today().isoformat(), "machine": info(), "quick": args.quick}
    with ProcessPoolExecutor(args.jobs) as pool:
        for part in (args.part,) if args.part else PARTS:
            results[part] = measure(part, pool, args.quick)
            file.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(*table(results), sep="\n")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
