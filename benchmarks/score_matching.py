"""Time per training iteration and estimation error of the score matching losses, by dimension.

Two results of Song, Garg, Shi and Ermon 2019 ("Sliced score matching"), made again on any machine:

- time of a training iteration against the dimension d of the data, N(0, I_d): score matching in
  its naive form (a backward pass for each dimension) grows linearly more than the others, which
  stay a small multiple of denoising score matching's;
- error of the score estimated from clean data, the Fisher divergence from the known score, after
  the same number of iterations of each method. DSM learns the score of perturbed data and is
  measured against the clean one, as the others are.

Run: python benchmarks/score_matching.py [--out benchmarks/results] [--quick]
Draws score_matching.png from score_matching.json, which it writes first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

import fastscore
from fastscore._support.files import prepare_directory
from fastscore.apps.info import info

HIDDEN = 128
BATCH = 128
DSM_SIGMA = 0.1
Loss = Callable[[nn.Module, Tensor], Tensor]


def naive_score_matching(model: nn.Module, x: Tensor) -> Tensor:
    """Hyvarinen 2005 as it is usually written: one backward pass for each dimension."""
    x = x.detach().requires_grad_()
    score = model(x)
    trace = 0.0
    for i in range(x.shape[1]):
        row = torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0]
        trace = trace + row[:, i]
    return (0.5 * score.square().sum(1) + trace).mean()


LOSSES: dict[str, Loss] = {
    "SM, naive": naive_score_matching,
    "SM, exact closed form": fastscore.score_matching_loss,
    # method="auto" would take the exact trace of this network in place of projections.
    "SSM": lambda model, x: fastscore.ssm_loss(model, x, method="forward", variance_reduced=False),
    "SSM-VR": lambda model, x: fastscore.ssm_loss(model, x, method="forward"),
    "FD-SSM-VR": lambda model, x: fastscore.ssm_loss(model, x, method="finite_difference"),
    "DSM": lambda model, x: fastscore.dsm_loss(model, x, [DSM_SIGMA], conditioning="none"),
}


def network(dim: int, seed: int = 0) -> nn.Module:
    """A score network of two hidden layers."""
    torch.manual_seed(seed)
    return fastscore.nn.ScoreMLP(dim, (HIDDEN, HIDDEN), activation="silu", noise_conditional=False)


def iteration(loss: Loss, model: nn.Module, x: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss(model, x).backward()
    optimiser.step()


def time_by_dimension(dims: list[int], repeats: int, naive_limit: int) -> list[dict[str, object]]:
    """p20, p50 and p80 seconds of an iteration, the methods taking turns at each dimension."""
    rows: list[dict[str, object]] = []
    for dim in dims:
        x = torch.randn(BATCH, dim)
        sides = {}
        for name, loss in LOSSES.items():
            if name != "SM, naive" or dim <= naive_limit:
                model = network(dim)
                sides[name] = (loss, model, x, torch.optim.Adam(model.parameters(), 1e-3))
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(repeats + 2):
            for name, side in sides.items():
                if name == "SM, naive" and turn > max(3, repeats // 5):
                    continue
                start = time.perf_counter()
                iteration(*side)
                if turn >= 2:
                    times[name].append(time.perf_counter() - start)
        for name, values in times.items():
            tenths = statistics.quantiles(values, n=10) if len(values) > 1 else values * 9
            p50 = statistics.median(values)
            rows.append(
                {"method": name, "dim": dim, "p20": tenths[1], "p50": p50, "p80": tenths[7]}
            )
    return rows


def error_by_method(dim: int, iterations: int, every: int) -> list[dict[str, object]]:
    """Fisher divergence from the known score of a two-component mixture, during training."""
    mixture = fastscore.scores.GaussianMixture(
        torch.tensor([0.5, 0.5]), torch.stack([torch.ones(dim), -torch.ones(dim)]), 1.0
    )
    data, test = mixture.sample(10_000, seed=1), mixture.sample(2_000, seed=2)
    rows: list[dict[str, object]] = []
    for name, loss in LOSSES.items():
        model = network(dim)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        start = time.perf_counter()
        spent = 0.0
        for step in range(1, iterations + 1):
            iteration(loss, model, data[torch.randint(len(data), (BATCH,))], optimiser)
            if step % every == 0:
                spent += time.perf_counter() - start
                with torch.no_grad():
                    error = fastscore.fisher_divergence(model, mixture, test)
                rows.append({"method": name, "step": step, "seconds": spent, "error": float(error)})
                start = time.perf_counter()
    return rows


def draw(results: dict[str, object], path: Path) -> None:
    """Both plots side by side, from the JSON alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(LOSSES, plt.colormaps["tab10"].colors, strict=False))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, colour in colours.items():
        rows = [row for row in results["time"] if row["method"] == name]
        dims = [row["dim"] for row in rows]
        left.plot(dims, [1e3 * row["p50"] for row in rows], "o-", color=colour, label=name)
        low, high = ([1e3 * row[p] for row in rows] for p in ("p20", "p80"))
        left.fill_between(dims, low, high, color=colour, alpha=0.2)
        rows = [row for row in results["error"] if row["method"] == name]
        right.plot(
            [row["step"] for row in rows], [row["error"] for row in rows], color=colour, label=name
        )
    left.set(xscale="log", yscale="log", xlabel="dimension of the data")
    left.set(ylabel="milliseconds a training iteration", title="Time")
    right.set(yscale="log", xlabel="training iteration", ylabel="Fisher divergence")
    right.set(title=f"Error on clean data, a mixture in {results['error_dim']} dimensions")
    left.legend(fontsize=8)
    machine = results["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}", fontsize=8
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", default="benchmarks/results")
    options.add_argument("--quick", action="store_true", help="few dimensions, few iterations")
    args = options.parse_args()
    out = prepare_directory("score_matching", args.out)
    quick = args.quick
    dims = [10, 30] if quick else [10, 30, 100, 300, 1000, 2000]
    error_dim = 8
    results = {
        "date": date.today().isoformat(),
        "machine": info(),
        "network": f"MLP d-{HIDDEN}-{HIDDEN}-d, SiLU, batch {BATCH}, Adam",
        "time": time_by_dimension(dims, 5 if quick else 25, naive_limit=1000),
        "error_dim": error_dim,
        "error": error_by_method(error_dim, 100 if quick else 3000, 50 if quick else 100),
    }
    file = out / "score_matching.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    draw(json.loads(file.read_text()), file.with_suffix(".png"))
    print(f"wrote {file} and {file.with_suffix('.png')}")


if __name__ == "__main__":
    main()
