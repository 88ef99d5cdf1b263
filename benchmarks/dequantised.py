"""What learning dequantised digits does to the samples: the demo's network, trained both ways.

The demo's network of digits as they are, and of ((levels - 1) x + u)/levels with u fresh in each
batch, from the same seeds, sampled in all of the demo's ways. What the second draws is brought back
to the digits' levels before it is judged. Its bits per dimension are those of the demo.

Run: python benchmarks/dequantised.py [--out benchmarks/results] [--seeds 3] [--quick]
Writes dequantised.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch

import fastscore
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.machine import prepare_process
from fastscore.apps.demo.data import LEVELS, as_digits, dequantised_mean, load_digits
from fastscore.apps.demo.likelihood import likelihoods
from fastscore.apps.demo.run import FLOW_SIGMA_MIN, SIGMA_MIN, STEPS_PER_SIGMA, train
from fastscore.apps.demo.samplers import ways
from fastscore.apps.info import info
from fastscore.evaluation import frechet_distance


def distances(
    checkpoint: fastscore.Checkpoint, levels: int | None, samples: int, seed: int
) -> dict[str, float]:
    """Frechet distances to the held-out digits, of each way."""
    data, held_out = load_digits()
    mean = data.mean(0) if levels is None else dequantised_mean(data)
    annealed = ("annealed_langevin", {"steps_per_sigma": STEPS_PER_SIGMA})
    chosen = {"annealed Langevin": annealed}
    for way in ways(mean):
        steps = way.settings["steps"]
        chosen[f"{way.name}, {steps} steps"] = (way.sampler, way.settings)
    found = {}
    for name, (sampler, settings) in chosen.items():
        drawn = checkpoint.sample(samples, sampler=sampler, seed=seed, **settings)
        drawn = drawn.clamp(0, 1) if levels is None else as_digits(drawn)
        found[name] = frechet_distance(drawn, held_out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="hardly trained: does it run")
    args = parser.parse_args()
    out, where = prepare_directory("dequantised", args.out), prepare_process()
    iterations, samples, seeds = (20, 64, 1) if args.quick else (3000, 1024, args.seeds)
    data, held_out = load_digits()
    sigmas = fastscore.noise_scales(data, sigma_min=SIGMA_MIN)
    process = fastscore.sde.VE(FLOW_SIGMA_MIN, float(sigmas[0]))
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for levels in (None, LEVELS):
            model, _ = train(
                data, sigmas, iterations=iterations, seed=seed, progress=False, levels=levels
            )
            checkpoint = fastscore.Checkpoint(model, sigmas, process=process)
            found = distances(checkpoint, levels, samples, seed)
            row: dict[str, Any] = {"seed": seed, "levels": levels, "frechet_distance": found}
            if levels is not None:
                count = {"count": 4 if args.quick else len(held_out)}
                figures, _ = likelihoods(
                    checkpoint, data, held_out, seed=seed, progress=False, **count
                )
                row["likelihood"] = figures
            rows.append(row)
            print(json.dumps(row), flush=True)
    means = {
        name: {
            str(levels): statistics.fmean(
                row["frechet_distance"][name] for row in rows if row["levels"] == levels
            )
            for levels in (None, LEVELS)
        }
        for name in rows[0]["frechet_distance"]
    }
    for name, pair in means.items():
        print(f"{name:36} " + " ".join(f"{value:.3f}" for value in pair.values()))
    result = {"rows": rows, "means": means, "iterations": iterations, "samples": samples}
    result |= {"threads": torch.get_num_threads()} | where | {"machine": info()}
    (out / "dequantised.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
