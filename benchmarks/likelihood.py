"""Log-likelihoods by the probability flow: this library beside score_sde's way and other solvers.

Two problems: the exact scores of ten Gaussians at the class means of scikit-learn's digits, on
VE(0.01, 50), with samples of theirs; and the demo's network of digits, with held-out ones. What a
way is worth is the error of its values in bits per dimension, against a solve to 1e-9 in float64 of
the same field, with the same divergence: exact of the mixture, by one probe of the network. Then
what it takes: evaluations, and seconds of the whole job, which take turns in one process.

score_sde's way is one probe and scipy's RK45 at 1e-5 over t from 1e-5 on; the network is called
twice for an evaluation. "scipy" is the same with one call. torchdiffeq, torchode and zuko integrate
the same field, in x over t as score_sde does, or in y/sqrt(spread^2 + sigma^2) over log sigma with
the spread of the data.

Run: python benchmarks/likelihood.py [--out benchmarks/results] [--quick] [--threads N]
         [--checkpoint demo/checkpoint.safetensors] [--problems mixture digits]
         [--packages fastscore scipy ...]
Writes likelihood.json. Without a checkpoint the demo's network is trained first. Packages that are
not installed (pip install "fastscore[peers]") are left out, and the JSON says so.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

import fastscore
from fastscore import sde
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.machine import prepare_process
from fastscore.apps.bench.measure import quantiles
from fastscore.apps.bench.peers import likelihood as peers
from fastscore.apps.demo.data import load_digits
from fastscore.apps.demo.run import train
from fastscore.apps.info import info

SAMPLES = 256
MIXTURE_RANGE = (0.01, 50.0)
SIGMA_MIN = 0.01  # of the network's levels
ITERATIONS = 3000  # of training, the demo's
LEVELS = 17  # of a pixel of a digit
SEED = 1  # of the probe
REFERENCE_TOLERANCE = 1e-9
PACKAGES = ("scipy", "torchdiffeq", "torchode", "zuko")
TOLERANCES = (2e-3, 1e-3, 1e-4, 1e-5)  # of this library, beside its default
GUESSES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the spread, over what it is


@dataclass
class Problem:
    """A score, its process, data, and what their log densities are."""

    name: str
    score: nn.Module
    process: sde.Process
    x: Tensor
    spread: float  # of the data, about its mean
    exact: peers.ScoreAndDivergence | None = None  # the divergence in closed form
    about: dict[str, Any] | None = None

    @functools.cached_property
    def probe(self) -> Tensor:
        """(1, *x.shape), the numbers that this library draws."""
        key = fastscore.random.key(SEED)
        return fastscore.ops.projections(key, self.x.shape, 1, distribution="rademacher")

    def field(self, divergence: str) -> peers.ScoreAndDivergence:
        if divergence == "exact":
            assert self.exact is not None
            return self.exact
        return peers.by_probes(self.score, self.probe)

    @functools.cached_property
    def reference(self) -> peers.LogLikelihoods:
        """With the exact divergence, or the probe, to 1e-9 in float64."""
        field = self.exact
        if field is None:
            net = copy.deepcopy(self.score).double()
            field = peers.by_probes(net, self.probe.double())
        return peers.reference(
            field, self.process, self.x, spread=self.spread, tolerance=REFERENCE_TOLERANCE
        )


@dataclass(frozen=True)
class Way:
    """How log-likelihoods are found; ``run`` does the whole job."""

    package: str
    name: str
    divergence: str  # "exact" or "probe"
    tolerance: float | None  # None for a package's own
    run: Callable[[Problem], peers.LogLikelihoods]


# ---- the ways ----------------------------------------------------------------------------------


def score_sde(problem: Problem) -> peers.LogLikelihoods:
    return peers.log_likelihood_score_sde(
        problem.score, problem.x, problem.process, probe=problem.probe[0]
    )


def solver(package: str, divergence: str, coordinate: str, tolerance: float) -> Way:
    """A package's solver on the field of score_sde, or on the scaled one."""

    def run(problem: Problem) -> peers.LogLikelihoods:
        field, x, process = problem.field(divergence), problem.x, problem.process
        if coordinate == "scaled":
            scale = problem.spread
            flow: peers.InTime = peers.Scaled(field, process, x.shape, process.t_eps, spread=scale)
        else:
            flow = peers.InTime(field, process, x.shape, peers.SCORE_SDE_EPS)
        return peers.SOLVERS[package](flow, x, rtol=tolerance, atol=tolerance)

    name = f"{package}, {'scaled, over log sigma' if coordinate == 'scaled' else 'over t'}"
    return Way(package, name, divergence, tolerance, run)


def ours(divergence: str, name: str, tolerance: float | None = None, **options: Any) -> Way:
    """This library's, at its own tolerances if none is given."""
    if tolerance is not None:
        options |= {"rtol": tolerance, "atol": tolerance}
    kind = "exact" if divergence == "exact" else "hutchinson"

    def run(problem: Problem) -> peers.LogLikelihoods:
        found = fastscore.log_likelihood(
            problem.score, problem.x, problem.process, divergence=kind, seed=SEED, **options
        )
        passes = int(found.evaluations.max())
        return peers.LogLikelihoods(found.log_prob, found.evaluations, passes)

    return Way("fastscore", f"fastscore, {name}", divergence, tolerance, run)


def ways(problem: Problem) -> Iterator[Way]:
    """score_sde's first, which the others are compared with."""
    at = peers.SCORE_SDE_TOLERANCE
    yield Way("scipy", "score_sde", "probe", at, score_sde)
    divergence = "probe" if problem.exact is None else "exact"
    yield ours(divergence, "as it comes")
    for tolerance in TOLERANCES:
        yield ours(divergence, "rk45", tolerance, solver="rk45")
    yield ours(divergence, "rk23", TOLERANCES[1], solver="rk23")
    for guess in GUESSES:
        guessed = {"sigma_data": guess * problem.spread}
        yield ours(divergence, f"spread x {guess:g}", **guessed)
        yield ours(divergence, f"spread x {guess:g}", 1e-3, **guessed)
    for guess in (GUESSES[0], 1.0, GUESSES[-1]):
        loosely: dict[str, Any] = {"sigma_data": guess * problem.spread, "log_prob_atol": 3e-3}
        yield ours(divergence, f"spread x {guess:g}", 5e-3, **loosely)
    if divergence == "exact":
        yield ours("probe", "as it comes")
    yield solver("scipy", divergence, "t", at)
    for package in PACKAGES[1:]:
        yield solver(package, divergence, "t", at)
        yield solver(package, divergence, "scaled", 1e-3)


# ---- the problems ------------------------------------------------------------------------------


def mixture_problem(samples: int) -> Problem:
    from sklearn.datasets import load_digits as labelled

    data = labelled()
    images = torch.from_numpy(data.data).double() / 16
    labels = torch.from_numpy(data.target)
    means = torch.stack([images[labels == k].mean(0) for k in range(10)])
    variance = float((images - means[labels]).square().mean())
    mixture = fastscore.scores.GaussianMixture([0.1] * 10, means.float(), variance)
    x = mixture.sample(samples, seed=0, sigma=MIXTURE_RANGE[0])
    spread = math.sqrt(float((images - images.mean(0)).square().mean()))
    about = {"variance_of_a_component": variance, "spread": spread, "components": 10}
    field = functools.partial(score_and_divergence, means, variance)
    return Problem("mixture", mixture, sde.VE(*MIXTURE_RANGE), x, spread, field, about)


def score_and_divergence(
    means: Tensor, variance: float, y: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Of equal weights and one variance: with posterior r, the score is the mean of the offsets
    o/v, and the divergence that of |o|^2/v^2 - d/v less |score|^2.
    """
    width = (variance + sigma.square())[:, None]
    offsets = means.to(y.dtype) - y[:, None]
    squares = offsets.square().sum(2)
    posterior = (-squares / (2 * width)).softmax(1)
    score = (posterior[:, :, None] * offsets).sum(1) / width
    mean = (posterior * squares).sum(1) / width[:, 0].square()
    return score, mean - y.shape[1] / width[:, 0] - score.square().sum(1)


def digits_problem(samples: int, checkpoint: str | None, iterations: int) -> Problem:
    """The demo's network and held-out digits, dequantised once."""
    held_in, held_out = load_digits()
    if checkpoint is not None:
        loaded = fastscore.load_checkpoint(checkpoint)
        model, sigmas = loaded.model, loaded.sigmas
    else:
        sigmas = fastscore.noise_scales(held_in, sigma_min=SIGMA_MIN)
        model, _ = train(
            held_in, sigmas, iterations=iterations, seed=0, progress=False, levels=LEVELS
        )
    process = sde.VE(float(sigmas.min()), float(sigmas.max()))
    u = torch.rand(held_out.shape, generator=torch.Generator().manual_seed(0))
    grid = (held_out * (LEVELS - 1)).round().clamp(0, LEVELS - 1)
    x = ((grid + u) / LEVELS)[:samples]
    spread = float((held_in - held_in.mean(0)).square().mean().sqrt())
    about = {"checkpoint": checkpoint is not None, "spread": spread}
    return Problem("digits", model.requires_grad_(False), process, x, spread, about=about)


# ---- measuring ---------------------------------------------------------------------------------


def judge(way: Way, problem: Problem) -> dict[str, Any]:
    """Errors in bits per dimension and evaluations."""
    found = way.run(problem)
    bits = math.log(2) * problem.x[0].numel()
    errors = (found.log_prob.cpu() - problem.reference.log_prob) / -bits
    evaluations = found.evaluations.double()
    return {
        "evaluations": {"mean": float(evaluations.mean()), "max": float(evaluations.max())},
        "bits": {
            "mean_error": float(errors.mean()),
            "stderr": float(errors.std() / math.sqrt(len(errors))),
            "mean_absolute_error": float(errors.abs().mean()),
        },
    }


def measure(problem: Problem, chosen: list[Way], turns: int) -> list[dict[str, Any]]:
    """A row of each way; the first is the one that seconds are compared with."""
    rows, running = [], []
    for way in chosen:
        row: dict[str, Any] = {
            "problem": problem.name,
            "package": way.package,
            "way": way.name,
            "divergence": way.divergence,
            "tolerance": way.tolerance,
        }
        rows.append(row)
        try:
            row |= judge(way, problem)
        except ImportError as reason:
            row["left_out"] = str(reason)
        else:
            running.append((way, row))
        print("; ".join(f"{key}: {short(value)}" for key, value in row.items()), flush=True)
    times: dict[str, list[float]] = {str(i): [] for i in range(len(running))}
    for turn in range(turns):
        for i in range(len(running))[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            running[i][0].run(problem)
            times[str(i)].append(time.perf_counter() - start)
    first = times["0"]
    for i, (_, row) in enumerate(running):
        own = times[str(i)]
        row["seconds"] = quantiles(own)
        row["over_score_sde"] = quantiles([a / b for a, b in zip(own, first, strict=True)])
    return rows


def short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: short(part) for name, part in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'way':38} {'divergence':10} {'tol':>6} {'mean':>6} {'max':>5} " + (
        f"{'error':>9} {'|error|':>8} {'seconds':>8} {'ratio':>6}"
    )
    for row in (row for row in rows if "left_out" not in row):
        bits, counts = row["bits"], row["evaluations"]
        tolerance = "" if row["tolerance"] is None else f"{row['tolerance']:.0e}"
        yield (
            f"{row['way']:38} {row['divergence']:10} {tolerance:>6} {counts['mean']:6.1f} "
            f"{counts['max']:5.0f} {bits['mean_error']:9.5f} {bits['mean_absolute_error']:8.5f} "
            f"{row['seconds']['p50']:8.3f} {row['over_score_sde']['p50']:6.3f}"
        )


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="few samples, one turn: does it run")
    parser.add_argument("--turns", type=int, default=3, help="of each way")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint", help="of the demo; without it the network is trained")
    parser.add_argument("--problems", nargs="+", default=["mixture", "digits"])
    parser.add_argument("--packages", nargs="+", help="beside score_sde's way")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = prepare_directory("likelihood", args.out)
    where = prepare_process()
    turns, samples, iterations = (1, 16, 100) if args.quick else (args.turns, SAMPLES, ITERATIONS)
    result: dict[str, Any] = {"problems": {}, "rows": []}
    for name in args.problems:
        if name == "mixture":
            problem = mixture_problem(samples)
        else:
            problem = digits_problem(samples, args.checkpoint, iterations)
        print(f"{name}: the reference took {problem.reference.passes} evaluations", flush=True)
        first, *others = ways(problem)
        chosen = [way for way in others if not args.packages or way.package in args.packages]
        rows = measure(problem, [first, *chosen], turns)
        result["rows"] += rows
        result["problems"][name] = (problem.about or {}) | {
            "process": repr(problem.process),
            "samples": len(problem.x),
            "shape": list(problem.x.shape[1:]),
            "mean_log_prob": float(problem.reference.log_prob.mean()),
            "reference_evaluations": problem.reference.passes,
            "reference_tolerance": REFERENCE_TOLERANCE,
        }
        print("\n".join(table(rows)), flush=True)
    about = {"turns": turns, "threads": args.threads, "quick": args.quick, "packages": versions()}
    result |= about | where | {"machine": info()}
    (out / "likelihood.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
