"""Whether training for the likelihood gives a better one: digits on a VP process.

The training digits, dequantised afresh in each batch, train one network several times: with times
uniform in t or in log s, and the loss weighted by sigma^2 or for the likelihood, from the same
seeds and for as many steps. Then the held-out digits, dequantised once, get their bits per
dimension from each network, with the same probes; the ways are compared sample by sample.

Run: python benchmarks/likelihood_training.py [--out benchmarks/results] [--quick]
         [--iterations 3000] [--seeds 3] [--threads N] [--networks DIRECTORY]
Writes likelihood_training.json. With a directory for the networks, those that are there are taken
as they are. Needs torchdiffeq (pip install "fastscore[peers]").
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import sde
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.machine import prepare_process
from fastscore.apps.bench.peers import likelihood as peers
from fastscore.apps.demo.data import load_digits
from fastscore.apps.info import info

PROCESS = sde.VP()
LEVELS = 17  # of a pixel
BATCH = 64
LEARNING_RATE = 2e-3
EMA_DECAY = 0.999
TOLERANCE = 1e-4
PROBES = 4
BATCH_OF_EVALUATION = 99


@dataclass(frozen=True)
class Way:
    """How the loss of a network is made."""

    times: str
    weighting: str

    @property
    def name(self) -> str:
        return f"{self.weighting}, {self.times} times"


BASELINE = Way("uniform", "sigma2")
WAYS = [
    BASELINE,
    Way("log_uniform", "likelihood"),
    Way("log_uniform", "sigma2"),
    Way("uniform", "likelihood"),
]


def dequantised(x: Tensor, generator: torch.Generator) -> Tensor:
    """Digits k/16 as (k + u)/17."""
    u = torch.rand(x.shape, generator=generator)
    return (x * (LEVELS - 1) + u) / LEVELS


def new_network(data_std: float) -> torch.nn.Module:
    net = fastscore.nn.ScoreConvNet(channels=1, image_size=8, data_std=data_std)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(digits: Tensor, way: Way, data_std: float, iterations: int, seed: int) -> Any:
    """The moving average of a network, and what the last losses were."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    net = new_network(data_std)
    average = fastscore.nn.EMA(net, decay=EMA_DECAY)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    loss_fn = fastscore.SDELoss(PROCESS, times=way.times, weighting=way.weighting)
    losses: list[float] = []
    for step in range(iterations):
        chosen = torch.randint(len(digits), (BATCH,), generator=draws)
        loss = loss_fn(net, dequantised(digits[chosen], draws), seed=seed * iterations + step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update()
        losses.append(float(loss.detach()))
    return average.module.eval(), statistics.mean(losses[-200:])


def bits(net: torch.nn.Module, x: Tensor, probes: Tensor) -> tuple[Tensor, float]:
    """Bits per dimension of each sample, float64, and the evaluations that it took.

    A level is 1/17 wide, so that its probability is that of a density over 17.
    """
    found, passes = [], []
    for part, v in zip(
        x.split(BATCH_OF_EVALUATION), probes.split(BATCH_OF_EVALUATION, 1), strict=True
    ):
        field = peers.by_probes(net, v)
        spread = float(net.data_std)  # type: ignore[arg-type]
        flow = peers.Scaled(field, PROCESS, part.shape, PROCESS.t_eps, spread=spread)
        solved = peers.solve_torchdiffeq(flow, part, rtol=TOLERANCE, atol=TOLERANCE)
        found.append(solved.log_prob)
        passes.append(solved.passes)
    dimensions = x[0].numel()
    return -torch.cat(found) / (dimensions * math.log(2)) + math.log2(LEVELS), statistics.mean(
        passes
    )


def mean_and_error(values: Tensor) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "stderr": float(values.std() / math.sqrt(len(values))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", type=Path, help="where they are kept")
    args = parser.parse_args()
    if args.quick:
        args.iterations, args.seeds = 60, 2
    torch.set_num_threads(args.threads)
    out = prepare_directory("likelihood_training", args.out)
    where = prepare_process()
    held_in, held_out = load_digits()
    data_std = fastscore.nn.ScoreConvNet.for_data(held_in).data_std
    x = dequantised(held_out, torch.Generator().manual_seed(0))
    signs = torch.randint(0, 2, (PROBES, *x.shape), generator=torch.Generator().manual_seed(1))
    probes = signs.float() * 2 - 1
    found: dict[Way, list[Tensor]] = {way: [] for way in WAYS}
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for way in WAYS:
            row: dict[str, Any] = {"way": way.name, "seed": seed}
            net, kept = new_network(data_std), None
            if args.networks:
                args.networks.mkdir(parents=True, exist_ok=True)
                name = f"{way.weighting}-{way.times}-{args.iterations}-{seed}.pt"
                kept = args.networks / name
            if kept and kept.exists():
                net.load_state_dict(torch.load(kept, weights_only=True))
                net.eval()
            else:
                start = time.perf_counter()
                net, row["loss"] = train(held_in, way, data_std, args.iterations, seed)
                row["training_seconds"] = time.perf_counter() - start
                if kept:
                    torch.save(net.state_dict(), kept)
            each, row["evaluations"] = bits(net, x, probes)
            found[way].append(each)
            row["bits"] = mean_and_error(each)
            rows.append(row)
            print(row, flush=True)
    result = {"networks": rows, "ways": summary(found)}
    for row in result["ways"]:
        print(row)
    about = {
        "process": repr(PROCESS),
        "t_eps": PROCESS.t_eps,
        "iterations": args.iterations,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "held_out": len(x),
        "probes": PROBES,
        "tolerance": TOLERANCE,
        "threads": args.threads,
        "quick": args.quick,
    }
    result |= about | where | {"machine": info()}
    (out / "likelihood_training.json").write_text(json.dumps(result, indent=2) + "\n")


def summary(found: dict[Way, list[Tensor]]) -> list[dict[str, Any]]:
    """Of each way: bits over samples and seeds, and the difference to the first way's.

    Its error is over the samples, of the mean over the seeds; the differences of each seed say
    how much a run of training varies.
    """
    rows = []
    for way, each in found.items():
        differences = [a - b for a, b in zip(each, found[BASELINE], strict=True)]
        rows.append(
            {
                "way": way.name,
                "bits": mean_and_error(torch.stack(each).mean(0)),
                "bits_of_each_seed": [float(values.mean()) for values in each],
                "less_baseline": mean_and_error(torch.stack(differences).mean(0)),
                "less_baseline_of_each_seed": [float(values.mean()) for values in differences],
            }
        )
    return rows


if __name__ == "__main__":
    main()
