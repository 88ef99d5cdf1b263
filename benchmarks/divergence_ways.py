"""The divergence of a network by probes: one reverse pass each, beside the dual pass of all.

``log_likelihood`` needs the network's output and v'J v for M probes v at most points of the flow.
Reverse mode runs the network once with a graph, and once backwards for each probe; dual tensors
carry value and tangents through it together. Both beside the plain output.

Run: python benchmarks/divergence_ways.py [--out benchmarks/results] [--quick] [--threads N]
Writes divergence_ways.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import fastscore
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.machine import prepare_process
from fastscore.apps.bench.measure import quantiles
from fastscore.apps.info import info
from fastscore.derivatives.call import Call
from fastscore.derivatives.projections import Batch, Slicing, forward, reverse_alone

PROBES = (1, 2, 4)


class Attention(nn.Module):
    """A transformer of 32 tokens."""

    shape = (32, 64)

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x)


class Normalised(nn.Module):
    """Convolutions with group norms, as in a U-Net's blocks."""

    shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        block = [nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU()]
        layers = [nn.Conv2d(3, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU(), *block]
        self.net = nn.Sequential(*layers, nn.Conv2d(64, 3, 3, padding=1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], int]]:
    """Each with the shape of its data and a batch."""
    mlp, conv = fastscore.nn.ScoreMLP(64), fastscore.nn.ScoreConvNet(channels=1, image_size=8)
    return {
        "ScoreMLP, 16 samples": (mlp, (64,), 16),
        "ScoreMLP, 256 samples": (mlp, (64,), 256),
        "ScoreConvNet, 16 samples": (conv, (1, 8, 8), 16),
        "ScoreConvNet, 256 samples": (conv, (1, 8, 8), 256),
        "convolutions with group norms": (Normalised(), Normalised.shape, 32),
        "attention": (Attention(), Attention.shape, 16),
    }


@torch.no_grad()
def measure(net: nn.Module, shape: tuple[int, ...], batch: int, probes: int, turns: int) -> Any:
    """Times over that of the plain output, the three in turns."""
    x, sigma = torch.randn(batch, *shape), torch.full((batch,), 0.5)
    job = Batch(x, Call("divergence_ways", net, (sigma,)), None, fastscore.random.key(0))
    slicing = Slicing(probes, "rademacher")
    ways = {
        "plain": lambda: net(x, sigma),
        "reverse": lambda: reverse_alone(job, slicing),
        "dual": lambda: forward(job, slicing),
    }
    a, b = (ways[name]().vjv for name in ("reverse", "dual"))  # type: ignore[union-attr]
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    plain = times.pop("plain")
    row = {"probes": probes, "plain_seconds": quantiles(plain)}
    for name, own in times.items():
        row[name] = quantiles([a / b for a, b in zip(own, plain, strict=True)])
    row["reverse_over_dual"] = quantiles(
        [a / b for a, b in zip(times["reverse"], times["dual"], strict=True)]
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="few turns: does it run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out, where = prepare_directory("divergence_ways", args.out), prepare_process()
    warnings.simplefilter("ignore")
    fastscore.keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for name, (net, shape, batch) in networks().items():
        for probes in PROBES:
            found = measure(net.eval(), shape, batch, probes, 3 if args.quick else 25)
            rows.append({"network": name, "shape": list(shape), "batch": batch} | found)
            ratios = {key: found[key]["p50"] for key in ("reverse", "dual", "reverse_over_dual")}
            said = ", ".join(f"{key} {value:.2f}" for key, value in ratios.items())
            print(f"{name}, {probes} probes: {said}", flush=True)
    result = {"rows": rows, "threads": args.threads, "quick": args.quick} | where
    (out / "divergence_ways.json").write_text(
        json.dumps(result | {"machine": info()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
