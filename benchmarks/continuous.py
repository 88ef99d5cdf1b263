"""Whole sampling jobs in continuous time beside other packages, and what their samples are worth.

Each job is one of this library's samplers and another package's with the same network, steps and
start: on the demo's network of digits, and on a convolutional network of 3 x 32 x 32, untrained.
They take turns; what is compared is the time of an evaluation of the network, everything around it
included, since some packages can't be asked for the same number. The same with no network at all
(one that returns a tensor that is there): what each side adds to an evaluation. Then, on digits,
the Frechet distance to held-out ones after as many evaluations as each side takes.

Run: python benchmarks/continuous.py [--out benchmarks/results] [--quick]
         [--jobs NAME ...] [--parts time quality]
Writes continuous.json. The network of digits, as they are, is trained first. Packages that are
not installed (pip install "fastscore[peers]") are left out, and the JSON says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastscore
from fastscore import sde
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.cases import networks
from fastscore.apps.bench.machine import prepare_process
from fastscore.apps.bench.measure import quantiles
from fastscore.apps.bench.peers import continuous as peers
from fastscore.apps.demo.data import load_digits
from fastscore.apps.demo.run import train
from fastscore.apps.info import info

SIGMA_MIN = 0.01
SNR = 0.16
TOLERANCE = 1e-2  # of the adaptive solvers, relative and absolute
ITERATIONS = 3000  # of training, the demo's
CONV = networks.conv(8, 3, 32)
CONV_SIGMA_MAX = 50.0
Run = Callable[[Any, Tensor, int], Tensor]  # of network, noise of unit variance and steps


@dataclass(frozen=True)
class Levels:
    """The noise levels that a network knows."""

    smallest: float
    largest: float

    @property
    def process(self) -> sde.VE:
        return sde.VE(self.smallest, self.largest)

    @property
    def ends(self) -> tuple[float, float]:
        return self.smallest, self.largest


@dataclass(frozen=True)
class Job:
    """Both sides of a comparison, made for the levels of a network."""

    name: str
    package: str
    ours: Callable[[Levels], Run]
    theirs: Callable[[Levels], Run]
    steps: int  # where time is taken
    ladder: tuple[int, ...] = ()  # where quality is


# ---- this library's side -----------------------------------------------------------------------


def flow(solver: str, **options: Any) -> Callable[[Levels], Run]:
    """The probability flow of a VE process, by default on Karras' ladder with a last step to 0."""
    options = {"grid": "karras"} | options

    def at(levels: Levels) -> Run:
        process = levels.process

        def run(net: Any, z: Tensor, steps: int) -> Tensor:
            return fastscore.probability_flow(
                net, process, levels.largest * z, solver=solver, steps=steps, **options
            )

        return run

    return at


def adaptive(levels: Levels) -> Run:
    process = levels.process

    def run(net: Any, z: Tensor, steps: int) -> Tensor:
        return fastscore.probability_flow(
            net, process, levels.largest * z, solver="rk45", rtol=TOLERANCE, atol=TOLERANCE
        )

    return run


def reverse(**options: Any) -> Callable[[Levels], Run]:
    """The reverse SDE of a VE process, one interval less than steps, then the step to 0."""

    def at(levels: Levels) -> Run:
        process = levels.process

        def run(net: Any, z: Tensor, steps: int) -> Tensor:
            return fastscore.reverse_sde(
                net, process, levels.largest * z, steps=steps - 1, snr=SNR, **options
            )

        return run

    return at


def vp_flow(solver: str) -> Callable[[Levels], Run]:
    """The flow of a VP process to its t_min, steps equal in time."""
    process = sde.VP(*peers.VP_BETAS)

    def run(net: Any, z: Tensor, steps: int) -> Tensor:
        return fastscore.probability_flow(
            net, process, z, solver=solver, steps=steps, grid="uniform", denoise=False,
            conditioning="sigma",
        )  # fmt: skip

    return lambda levels: run


def vp_reverse(levels: Levels) -> Run:
    process = sde.VP(*peers.VP_BETAS)

    def run(net: Any, z: Tensor, steps: int) -> Tensor:
        return fastscore.reverse_sde(
            net, process, z, steps=steps, predictor="euler_maruyama", conditioning="sigma"
        )

    return run


# ---- the other's -------------------------------------------------------------------------------


def on_ladder(sample: Callable[..., Tensor], **options: Any) -> Callable[[Levels], Run]:
    """A function of net, noise, steps, sigma_min and sigma_max."""

    def at(levels: Levels) -> Run:
        def run(net: Any, z: Tensor, steps: int) -> Tensor:
            return sample(net, levels.largest * z, steps, *levels.ends, **options)

        return run

    return at


def azula(sampler: str, ladder: str, **options: Any) -> Callable[[Levels], Run]:
    """On Karras' ladder and to 0 ("karras"), or log-linear to the smallest level ("log")."""

    def at(levels: Levels) -> Run:
        def run(net: Any, z: Tensor, steps: int) -> Tensor:
            if ladder == "karras":
                sigmas = [*peers.karras_sigmas(steps, *levels.ends).tolist(), 0.0]
            else:
                sigmas = fastscore.geometric_sigmas(*levels.ends[::-1], steps + 1).tolist()
            return peers.sample_azula(net, levels.largest * z, sampler, sigmas, **options)

        return run

    return at


def torchebm(**options: Any) -> Callable[[Levels], Run]:
    return lambda levels: lambda net, z, steps: peers.sample_torchebm(net, z, steps, **options)


def ode(sample: Callable[..., Tensor]) -> Callable[[Levels], Run]:
    def at(levels: Levels) -> Run:
        def run(net: Any, z: Tensor, steps: int) -> Tensor:
            start = levels.largest * z
            return sample(net, start, *levels.ends, rtol=TOLERANCE, atol=TOLERANCE)

        return run

    return at


FEW = (5, 8, 12, 20, 40)
MANY = (25, 50, 100)
ANNEALED = reverse(predictor="reverse_diffusion", corrector="annealed")
DPMPP = peers.sample_diffusers_dpmpp
JOBS = [
    Job(
        "predictor-corrector", "diffusers", ANNEALED,
        on_ladder(peers.sample_diffusers_ve, snr=SNR), 25, MANY,
    ),
    Job("Euler", "diffusers", flow("euler"), on_ladder(peers.sample_diffusers_euler), 20, FEW),
    Job(
        "Heun", "diffusers", flow("heun"), on_ladder(peers.sample_diffusers_heun), 10,
        (4, 6, 10, 18),
    ),
    Job("DPM++ 2M", "diffusers", flow("dpmpp_2m"), on_ladder(DPMPP), 20, FEW),
    Job(
        "DPM++ 2M SDE", "diffusers", flow("dpmpp_2m_sde"), on_ladder(DPMPP, stochastic=True), 20,
        FEW,
    ),
    Job("Euler", "azula", flow("euler"), azula("DDIMSampler", "karras"), 20),
    Job(
        "Heun, log-linear", "azula", flow("heun", grid="log", denoise=False),
        azula("HeunSampler", "log"), 10, (5, 10, 20),
    ),
    Job(
        "multistep, log-linear", "azula", flow("dpmpp_2m", grid="log", denoise=False),
        azula("xEABSampler", "log"), 20, FEW,
    ),
    Job("predictor-corrector", "azula", ANNEALED, azula("PCSampler", "karras"), 25, MANY),
    Job("VP, Heun", "torchebm", vp_flow("heun"), torchebm(), 10, (5, 10, 20)),
    Job("VP, Euler-Maruyama", "torchebm", vp_reverse, torchebm(stochastic=True), 25, MANY),
    Job("adaptive, by batch", "torchdiffeq", adaptive, ode(peers.sample_torchdiffeq), 1),
    Job("adaptive, by sample", "torchode", adaptive, ode(peers.sample_torchode), 1),
]  # fmt: skip


# ---- measuring ---------------------------------------------------------------------------------


class Counted(nn.Module):
    """A network, and how many rows it was called with."""

    conditioning = "sigma"
    prediction = "score"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows += len(x)
        score: Tensor = self.net(x, sigma)
        return score


class Nothing(nn.Module):
    """No network: the score is there, whatever the state."""

    conditioning = "sigma"
    prediction = "score"

    def __init__(self, score: Tensor) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.score


def evaluations(run: Run, net: nn.Module, z: Tensor, steps: int) -> float:
    """Of the network, on average of the samples."""
    counted = Counted(net)
    run(counted, z, steps)
    return counted.rows / len(z)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_job(job: Job, net: nn.Module, levels: Levels, z: Tensor, turns: int) -> dict[str, Any]:
    """Seconds of an evaluation on either side and of the network alone, and their ratios."""
    runs = {"ours": job.ours(levels), "theirs": job.theirs(levels)}
    counts: dict[str, float] = {}
    row: dict[str, Any] = {"job": job.name, "package": job.package, "steps": job.steps}
    for name, run in list(runs.items()):
        try:
            counts[name] = evaluations(run, net, z, job.steps)
        except ImportError as reason:
            del runs[name]
            row["left_out"] = str(reason)
    calls = round(max(counts.values(), default=1))
    sigma = z.new_full((len(z),), levels.smallest)

    def alone() -> None:
        with torch.no_grad():
            for _ in range(calls):
                net(z, sigma)

    sides = {name: functools.partial(run, net, z, job.steps) for name, run in runs.items()}
    sides["network"], counts["network"] = alone, calls
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            times[name].append(seconds(sides[name]) / counts[name])
    row["evaluations"] = counts
    row["seconds_an_evaluation"] = {name: quantiles(found) for name, found in times.items()}
    for name, other in (("ours", "theirs"), ("ours", "network"), ("theirs", "network")):
        if name in times and other in times:
            pairs = zip(times[name], times[other], strict=True)
            row[f"{name}_over_{other}"] = quantiles([a / b for a, b in pairs])
    return row


def judge(
    job: Job, side: str, net: nn.Module, levels: Levels, held_out: Tensor, samples: int, seeds: int
) -> Iterator[dict[str, Any]]:
    """The Frechet distance to held-out digits for each number of steps."""
    run = getattr(job, side)(levels)
    for steps in job.ladder or (job.steps,):
        distances = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            z = torch.randn(samples, 1, 8, 8)
            try:
                drawn = run(net, z, steps).clamp(0, 1)
            except ImportError:
                return
            distances.append(fastscore.evaluation.frechet_distance(drawn, held_out))
        yield {
            "job": job.name,
            "package": job.package if side == "theirs" else "fastscore",
            "steps": steps,
            "evaluations": evaluations(run, net, z[:16], steps),
            "frechet": statistics.mean(distances),
            "spread": statistics.pstdev(distances),
        }


def digits_network(held_in: Tensor) -> tuple[nn.Module, Levels]:
    """The demo's network, trained on digits as they are, and its levels."""
    sigmas = fastscore.noise_scales(held_in, sigma_min=SIGMA_MIN)
    model, _ = train(held_in, sigmas, iterations=ITERATIONS, seed=0, progress=False)
    return model, Levels(float(sigmas[-1]), float(sigmas[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="few turns: to see that it runs")
    parser.add_argument("--turns", type=int, default=21, help="of each side of a job")
    parser.add_argument("--jobs", nargs="+", help="names of jobs or packages")
    parser.add_argument("--parts", nargs="+", default=["time", "quality"])
    args = parser.parse_args()
    out = prepare_directory("continuous", args.out)
    where = prepare_process()
    turns, samples, seeds = (3, 128, 1) if args.quick else (args.turns, 1024, 5)
    held_in, held_out = load_digits()
    digits, levels = digits_network(held_in)
    jobs = [job for job in JOBS if not args.jobs or {job.name, job.package} & set(args.jobs)]
    result: dict[str, Any] = {"time": [], "quality": []}
    torch.manual_seed(0)
    conv_levels = Levels(SIGMA_MIN, CONV_SIGMA_MAX)
    timed: dict[str, tuple[nn.Module, Levels, Tensor]] = {}
    for shape in ((256, 1, 8, 8), (64, 3, 32, 32)):
        z = torch.randn(shape)
        timed[f"none {'x'.join(map(str, shape))}"] = (Nothing(1e-3 * z), conv_levels, z)
    timed |= {
        "digits": (digits, levels, torch.randn(256, 1, 8, 8)),
        "conv 3x32x32": (CONV.make("cpu"), conv_levels, torch.randn(CONV.batch, *CONV.shape)),
    }
    for name, (net, known, z) in timed.items():
        for job in jobs if "time" in args.parts else ():
            row = {"network": name, "batch": len(z)} | time_job(job, net, known, z, turns)
            result["time"].append(row)
            print(summary(row), flush=True)
    for job in jobs if "quality" in args.parts else ():
        for side in ("theirs", "ours"):
            for row in judge(job, side, digits, levels, held_out, samples, seeds):
                result["quality"].append(row)
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    about = {"samples": samples, "seeds": seeds, "turns": turns, "quick": args.quick}
    result |= about | where | {"machine": info()}
    (out / "continuous.json").write_text(json.dumps(result, indent=2) + "\n")


def summary(row: dict[str, Any]) -> str:
    counts = {name: round(count, 1) for name, count in row["evaluations"].items()}
    ratios = {k: round(row[k]["p50"], 3) for k in row if "_over_" in k}
    return f"{row['network']}: {row['job']}, {row['package']}: evaluations {counts}, {ratios}"


if __name__ == "__main__":
    main()
