"""Posterior samples: how far from the exact posterior, and what they cost; and those of peers.

``quality``: data of a mixture of Gaussians, of which a linear measurement is known; the posterior
is a mixture with known weights. The sliced Wasserstein distance of every method's samples to it, as
evaluations grow, and the one that two sets of exact samples have. Replacement, projection and
RePaint's resampling take the measurement for exact.

``time``: whole jobs with a convolutional network, each method and the same of another package,
taking turns; and with a score that costs next to nothing, which leaves the library's own part.
``step``: that part beside the same written in eager PyTorch.

Run: python benchmarks/control.py [--out benchmarks/results] [--quick] [--parts quality time step]
Writes control.json. Packages that are not installed (pip install "fastscore[peers]") are left out,
and the JSON says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import guidance, operators, sde
from fastscore._support.files import prepare_directory
from fastscore.apps.bench.case import Case
from fastscore.apps.bench.cases import guided as guided_jobs
from fastscore.apps.bench.cases import langevin, networks
from fastscore.apps.bench.machine import prepare_process
from fastscore.apps.bench.measure import Effort, measure, quantiles
from fastscore.apps.bench.peers import control as peers
from fastscore.apps.info import info
from fastscore.evaluation.distances import sliced_wasserstein
from fastscore.scores import GaussianMixture

SHAPE = (1, 4, 4)
NOISE = 0.05
SIGMA_MIN, SIGMA_MAX = 0.01, 20.0
STEPS = (30, 100, 300)
MEASUREMENTS, SAMPLES, SEEDS = 4, 1024, 4
Job = Callable[[Any, Tensor, Tensor, int, int], Tensor]  # of score, y, noise, steps, seed


# ---- a mixture, and its exact posterior ----------------------------------------------------------


def mixture() -> GaussianMixture:
    """Four components in 16 dimensions, of different widths in different directions."""
    generator = torch.Generator().manual_seed(0)
    means = 1.5 * torch.randn(4, *SHAPE, generator=generator)
    variances = 0.02 + 0.4 * torch.rand(4, *SHAPE, generator=generator).square()
    return GaussianMixture([0.4, 0.3, 0.2, 0.1], means, variances)


def posterior_samples(
    prior: GaussianMixture, operator: Any, y: Tensor, count: int, seed: int
) -> Tensor:
    """Exact ones: each component's posterior is Gaussian, its weight the evidence of y."""
    d = math.prod(SHAPE)
    a = operator.A(torch.eye(d, dtype=torch.float64).reshape(d, *SHAPE)).reshape(d, -1).T
    means = prior.means.double().reshape(-1, d)
    variances = prior.variances.double().reshape(-1, d)
    y = y.double().flatten()
    used = a.abs().sum(1) > 0  # a mask's other elements say nothing
    a, y = a[used], y[used]
    spread = (a * variances[:, None]) @ a.T + NOISE**2 * torch.eye(len(y)).double()
    off = y - means @ a.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), spread)
    weights = (prior.weights.double().log() + evidence.log_prob(off)).softmax(0)
    gain = torch.linalg.solve(spread, a * variances[:, None]).mT
    centre = means + (gain @ off[:, :, None])[:, :, 0]
    covariance = torch.diag_embed(variances) - gain @ (a * variances[:, None])
    root = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(d).double())
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    z = torch.randn(count, d, 1, generator=generator, dtype=torch.float64)
    return (centre[chosen] + (root[chosen] @ z)[:, :, 0]).reshape(-1, *SHAPE)


# ---- the ways ------------------------------------------------------------------------------------


def levels(steps: int) -> list[float]:
    """Log-linear from the largest to the smallest, for ``steps`` evaluations and one at the end."""
    return fastscore.geometric_sigmas(SIGMA_MAX, SIGMA_MIN, steps).tolist()


def reverse(score: Any, x: Tensor, steps: int, seed: int, **options: Any) -> Tensor:
    """Ancestral steps on those levels; correctors come beside."""
    process = sde.VE(SIGMA_MIN, SIGMA_MAX)
    times = process.time_of(torch.tensor(levels(steps)).double()).clamp(0, 1)
    return fastscore.reverse_sde(
        score, process, x, steps=steps - 1, predictor="ancestral", grid=times, seed=seed, **options
    )


def guided(kind: str, operator: Any, **options: Any) -> Job:
    """A posterior score in the reverse SDE."""
    if kind != "DPS":
        options["noise"] = NOISE

    def run(score: Any, y: Tensor, z: Tensor, steps: int, seed: int) -> Tensor:
        posterior = getattr(guidance, kind)(score, operator, y, **options)
        return reverse(posterior, SIGMA_MAX * z, steps, seed)

    return run


def in_flow(kind: str, operator: Any, **options: Any) -> Job:
    """The same in the probability flow, by DPM-Solver++."""

    def run(score: Any, y: Tensor, z: Tensor, steps: int, seed: int) -> Tensor:
        posterior = getattr(guidance, kind)(score, operator, y, noise=NOISE, **options)
        process = sde.VE(SIGMA_MIN, SIGMA_MAX)
        return fastscore.probability_flow(
            posterior, process, SIGMA_MAX * z, solver="dpmpp_2m", steps=steps, grid="karras"
        )

    return run


def replaced(mask: Tensor, **options: Any) -> Job:
    """Known elements at their noise level; ``per_step`` evaluations a step."""
    per_step = options.pop("per_step", 1)

    def run(score: Any, y: Tensor, z: Tensor, steps: int, seed: int) -> Tensor:
        held = {"known": y[0], "mask": mask}
        few = max(steps // per_step, 2)
        return reverse(score, SIGMA_MAX * z, few, seed, **held, **options)

    return run


def projected(operator: Any, **options: Any) -> Job:
    per_step = options.pop("per_step", 1)

    def run(score: Any, y: Tensor, z: Tensor, steps: int, seed: int) -> Tensor:
        few = max(steps // per_step, 2)
        held = {"operator": operator, "measurement": y}
        return reverse(score, SIGMA_MAX * z, few, seed, **held, **options)

    return run


def azula(method: str, operator: Any, **options: Any) -> Job:
    def run(score: Any, y: Tensor, z: Tensor, steps: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        ladder = [*levels(steps), 0.0]
        return peers.sample_azula(
            score, SIGMA_MAX * z, ladder, method, operator, y, noise=NOISE, **options
        )

    return run


def deepinv(method: str, physics: Any, **options: Any) -> Job:
    """Its last step is the prior's denoised mean."""

    def run(score: Any, y: Tensor, z: Tensor, steps: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return peers.sample_deepinv(
                score, SIGMA_MAX * z, levels(steps), method, physics, y, **options
            )

    return run


def ways(task: str, operator: Any, physics: Any) -> Iterator[tuple[str, Job]]:
    """All of a task, by name. ``physics`` is deepinv's object of the operator, or None."""
    for scale in (1.0, 2.0):
        yield f"DPS, scale {scale:g}", guided("DPS", operator, scale=scale)
    for v in (1.0, 0.15):
        yield f"PiGDM, data_variance {v:g}", guided("PiGDM", operator, data_variance=v)
    for iterations in (1, 3, 8):
        yield f"MMPS, iterations {iterations}", guided("MMPS", operator, iterations=iterations)
    yield "MMPS, iterations 3, probability flow", in_flow("MMPS", operator, iterations=3)
    if task == "mask":
        mask = operator.mask
        yield "replacement", replaced(mask)
        yield "replacement, corrector", replaced(mask, corrector="annealed", per_step=2)
        yield "replacement, 5 resamplings", replaced(mask, resamplings=5, per_step=5)
    yield "projection", projected(operator)
    yield "projection, corrector", projected(operator, corrector="annealed", per_step=2)
    if importlib.util.find_spec("azula"):
        yield "azula DPS", azula("dps", operator)
        yield "azula PiGDM", azula("pigdm", operator)
        for iterations in (1, 3):
            yield (
                f"azula MMPS, iterations {iterations}",
                azula("mmps", operator, solver="gmres", iterations=iterations),
            )
    if physics is not None:
        yield "deepinv DPS", deepinv("dps", physics)
        yield "deepinv PiGDM", deepinv("pigdm", physics)
        for iterations in (1, 3):
            yield (
                f"deepinv MMPS, iterations {iterations}",
                deepinv("mmps", physics, iterations=iterations),
            )


def tasks(shape: tuple[int, ...]) -> Iterator[tuple[str, Any, Any]]:
    """Half of the pixels, and the means of squares: ours, and deepinv's object of it."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(shape, generator=generator) < 0.5).contiguous()
    physics: Any = None
    if importlib.util.find_spec("deepinv"):
        package = peers.deepinv_package()
        physics = package.physics
        noise = physics.GaussianNoise(NOISE)
        inpainting = physics.Inpainting(img_size=shape, mask=mask.float(), noise_model=noise)
        pooling = pooled(physics, shape, noise)
    else:
        inpainting = pooling = None
    yield "mask", operators.Mask(mask), inpainting
    yield "pool", operators.AveragePool(2), pooling


def pooled(physics: Any, shape: tuple[int, ...], noise: Any) -> Any:
    """Its LinearPhysics of our operator."""
    ours = operators.AveragePool(2)
    return physics.LinearPhysics(
        A=lambda x, **_: ours.A(x),
        A_adjoint=lambda y, **_: ours.A_adjoint(y),
        img_size=shape,
        noise_model=noise,
    )


# ---- quality -------------------------------------------------------------------------------------


def distance(drawn: list[Tensor], exact: list[Tensor]) -> float:
    """The mean over measurements."""
    pairs = zip(drawn, exact, strict=True)
    return statistics.mean(sliced_wasserstein(a, b, seed=0) for a, b in pairs)


def quality(quick: bool) -> dict[str, Any]:
    """Sliced Wasserstein distances, means over measurements and over seeds, with their errors."""
    prior, result = mixture(), {}
    measurements, samples, steps = (2, 256, (10, 30)) if quick else (MEASUREMENTS, SAMPLES, STEPS)
    seeds = 2 if quick else SEEDS
    truth = prior.sample(measurements, seed=7)
    for task, operator, physics in tasks(SHAPE):
        clean = operator.A(truth)
        noise = NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
        if task == "mask":
            noise = noise * operator.mask
        ys = clean + noise
        exact = [posterior_samples(prior, operator, y, samples, 11) for y in ys]
        others = [posterior_samples(prior, operator, y, samples, 12) for y in ys]
        floor = distance(others, exact)
        rows: dict[str, Any] = {}
        for name, way in ways(task, operator, physics):
            found = {}
            for count in steps:
                means = []
                for seed in range(seeds):
                    generator = torch.Generator().manual_seed(50 + seed)
                    z = torch.randn(samples, *SHAPE, generator=generator)
                    drawn = [
                        way(prior, y[None], z, count, 100 * seed + i) for i, y in enumerate(ys)
                    ]
                    means.append(distance(drawn, exact))
                found[count] = statistics.mean(means), statistics.stdev(means) / len(means) ** 0.5
            rows[name] = {k: {"mean": m, "standard_error": e} for k, (m, e) in found.items()}
            shown = (f"{m / floor:7.2f} +- {e / floor:.2f}" for m, e in found.values())
            print(f"{task:5} {name:38}", *shown, flush=True)
        result[task] = {"floor": floor, "distances": rows}
    sizes = {"measurements": measurements, "samples": samples, "seeds": seeds}
    return {"noise": NOISE, **sizes, "tasks": result}


# ---- time ----------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """The score of N(0, I), which leaves the library's part."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x * (-1 / (1 + sigma.square())).reshape(-1, *[1] * (x.dim() - 1))


PAIRS: list[tuple[str, str, dict[str, Any], list[tuple[str, str, dict[str, Any]]]]] = [
    ("DPS", "DPS", {}, [("azula", "dps", {}), ("deepinv", "dps", {})]),
    ("PiGDM", "PiGDM", {}, [("azula", "pigdm", {}), ("deepinv", "pigdm", {})]),
    ("MMPS, iterations 1", "MMPS", {"iterations": 1},
     [("azula", "mmps", {"solver": "gmres", "iterations": 1}),
      ("deepinv", "mmps", {"iterations": 1})]),
    ("MMPS, iterations 3", "MMPS", {"iterations": 3},
     [("azula", "mmps", {"solver": "cg", "iterations": 3}),
      ("deepinv", "mmps", {"iterations": 3})]),
]  # fmt: skip


def timing(quick: bool) -> dict[str, Any]:
    """Seconds of a whole job; for peers how many times faster the library is."""
    result: dict[str, Any] = {}
    small = networks.conv(2 if quick else 8, 3, 32)
    steps = 3 if quick else 10
    sizes = {
        "conv, 3 x 32 x 32": (small.make("cpu"), small.batch),
        "no network, 3 x 32 x 32": (Linear(), 2 if quick else 64),
    }
    turns = 2 if quick else 5
    for where, (model, batch) in sizes.items():
        z = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for task, operator, physics in tasks((3, 32, 32)):
            y = operator.A(z[:1])
            for name, kind, options, others in PAIRS:
                sides = {"fastscore": guided(kind, operator, **options)}
                for package, method, own in others:
                    if importlib.util.find_spec(package):
                        made = azula if package == "azula" else deepinv
                        there = operator if package == "azula" else physics
                        sides[package] = made(method, there, **own)
                found = in_turns(sides, lambda job: job(model, y, z, steps, 0), turns)  # noqa: B023
                row = result.setdefault(where, {}).setdefault(f"{task}: {name}", {})
                row |= {"batch": batch, "steps": steps, "sides": found}
                print(f"{where}, {task}: {name}", {
                    side: f"{v['seconds']:.3f} s, {v['ratio']['p50']:.2f}"
                    for side, v in found.items()
                }, flush=True)  # fmt: skip
    return result


def step(quick: bool) -> dict[str, Any]:
    """The library's part of a guided step beside eager code, alone and in jobs with no network."""
    shape, result = (2, 3, 32, 32) if quick else (64, 3, 32, 32), {}
    where = prepare_process()
    cases = {
        kind: Case(
            "sample_guided", "jobs", guided_jobs.build(None, kind), shape, params={"steps": 30},
            clock="host",
        )
        for kind in ("classifier-free", "pigdm")
    }  # fmt: skip
    sides = ("fastscore", "eager")
    cases["step of two terms"] = Case(
        "langevin_step_", "langevin", langevin.build_guided, shape, params={"terms": 2},
        providers=sides,
    )  # fmt: skip
    for name, case in cases.items():
        rows = {row["provider"]: row for row in measure(case, Effort(quick=quick), where)}
        ours = rows["fastscore"]
        result[name] = {
            "seconds": {side: rows[side]["seconds"]["p50"] for side in sides},
            "eager_over_ours": ours["ratios"]["eager"],
        }
        print(name, result[name], flush=True)
    return {"shape": shape, "threads": torch.get_num_threads(), "cases": result}


def in_turns(
    sides: dict[str, Job], run: Callable[[Job], Any], turns: int
) -> dict[str, dict[str, Any]]:
    """Medians, and the quantiles of each turn's ratio to the library's time."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, job in sides.items():
            begin = time.perf_counter()
            run(job)
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - begin)
    ours = times["fastscore"]
    return {
        name: {
            "seconds": statistics.median(found),
            "ratio": quantiles([b / a for a, b in zip(ours, found, strict=True)]),
        }
        for name, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--parts", nargs="+", choices=("quality", "time", "step"))
    args = parser.parse_args()
    prepare_directory("benchmarks/control.py", args.out)
    prepare_process()
    path = args.out / "control.json"
    found = json.loads(path.read_text()) if path.is_file() and args.parts else {}
    packages = ("azula", "deepinv")
    found["packages"] = {p: importlib.util.find_spec(p) is not None for p in packages}
    found["info"] = info()
    for part in args.parts or ("quality", "time", "step"):
        found[part] = {"quality": quality, "time": timing, "step": step}[part](args.quick)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
