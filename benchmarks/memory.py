"""Time of training steps on a CPU with freed memory kept (``keep_freed_memory``) and without.

It is a setting of the whole process, so the two sides are processes that take turns.

Run: python benchmarks/memory.py [--out benchmarks/results] [--rounds 5]
Writes memory.json: milliseconds a step, the median of each process, in order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastscore
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.machine import machine

STEPS = 40
Step = Callable[[], None]


def jobs() -> dict[str, Step]:
    """Forward and backward passes, one a step."""
    torch.manual_seed(0)
    sigmas = fastscore.geometric_sigmas(1.0, 0.1, 10)
    dsm, ssm = fastscore.DSMLoss(sigmas), fastscore.SSMLoss(sigmas)

    def step(loss: nn.Module, network: nn.Module, *shape: int) -> Step:
        x = torch.randn(shape)

        def run() -> None:
            network.zero_grad(set_to_none=True)
            loss(network, x).backward()

        return run

    class Output(nn.Module):
        """No network: what it gives is its parameter."""

        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.randn(shape))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.value

    grey, coloured = fastscore.nn.ScoreConvNet(1, 8), fastscore.nn.ScoreConvNet(3, 32)
    mlp = fastscore.nn.ScoreMLP(784, hidden=(512, 512))
    return {
        "DSM without a network, 128 x 3 x 32 x 32": step(
            dsm, Output(128, 3, 32, 32), 128, 3, 32, 32
        ),
        "DSM, convolutional network, 128 x 1 x 8 x 8": step(dsm, grey, 128, 1, 8, 8),
        "DSM, convolutional network, 8 x 3 x 32 x 32": step(dsm, coloured, 8, 3, 32, 32),
        "SSM, convolutional network, 4 x 3 x 32 x 32": step(ssm, coloured, 4, 3, 32, 32),
        "DSM, MLP, 512 x 784": step(dsm, mlp, 512, 784),
        "SSM, MLP, 512 x 784": step(ssm, mlp, 512, 784),
    }


def milliseconds(step: Step) -> float:
    """The median over some steps, after some that warm up."""
    found = []
    for _ in range(STEPS + 5):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return 1e3 * statistics.median(found[5:])


def measure(keep: bool) -> dict[str, float]:
    """In a process of its own."""
    run = [sys.executable, __file__, "--side", "kept" if keep else "returned"]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=("kept", "returned"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if args.side == "kept":
            assert fastscore.keep_freed_memory()
        print(json.dumps({name: round(milliseconds(step), 3) for name, step in jobs().items()}))
        return

    out = prepare_directory("memory", args.out) / "memory.json"
    rounds = [(measure(False), measure(True)) for _ in range(args.rounds)]
    rows = []
    for name in rounds[0][0]:
        returned, kept = ([side[name] for side in sides] for sides in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in zip(returned, kept, strict=True))
        rows.append(
            {"job": name, "returned_ms": returned, "kept_ms": kept, "ratio": round(ratio, 3)}
        )
        print(f"{name:45s} {statistics.median(returned):8.2f} ms  kept {ratio:.2f} times faster")
    out.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
