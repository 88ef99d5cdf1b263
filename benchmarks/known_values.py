"""What each way of holding known values gives, where the answer is known.

Two coordinates of variance 1 and correlation 0.9, of which the first is known to be 1: given that,
the second has mean 0.9 and variance 0.19. The score is exact, so all that is off is the way's own.

Each row has a way at a number of steps: mean and variance of the second coordinate over samples,
with the standard errors of both, and, where every element that is known has fresh noise in each
row of the sampler's table, mean and variance computed from that table, without any samples: the
second coordinate is then a Gaussian whose moments each row moves. ``limits`` has those of
replacement at up to 100,000 steps.

Run: python benchmarks/known_values.py [--out benchmarks/results] [--samples 40000] [--quick]
Writes known_values.json and prints its table; takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import sde
from fastscore._support.files import prepare_directory
from fastscore.apps.info import info
from fastscore.samplers._plan import Plan

CORRELATION = 0.9
VALUE = 1.0
TRUTH = {"mean": CORRELATION * VALUE, "variance": 1 - CORRELATION**2}
STEPS = (100, 500, 1000)
PROCESSES = {"VE(0.01, 10)": sde.VE(0.01, 10.0), "VP()": sde.VP()}
CORRECTIONS = ((1, 0.16), (5, 0.16), (1, 0.5), (5, 0.5), (20, 0.5))  # how many, snr
RESAMPLINGS = (2, 5, 10, 20)
SOLVERS = ("euler", "heun", "rk4", "dpmpp_2m", "dpmpp_2m_sde", "rk45")
COVARIANCE = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)
Row = dict[str, Any]


class Pair:
    """The exact score, which counts its calls."""

    def __init__(self) -> None:
        values, vectors = torch.linalg.eigh(COVARIANCE)
        self.values, self.vectors, self.calls = values.float(), vectors.float(), 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Of (x, sigma)."""
        self.calls += 1
        inverse = 1 / (self.values + sigma[:, None] ** 2)
        return -((x @ self.vectors) * inverse) @ self.vectors.mT


class First:
    """A x, the first coordinate."""

    def A(self, x: Tensor) -> Tensor:
        """Of x (batch, 2)."""
        return x[:, :1]

    def A_dagger(self, y: Tensor) -> Tensor:
        """Of y (batch, 1)."""
        return torch.cat([y, torch.zeros_like(y)], dim=1)


KNOWN = {"known": VALUE, "mask": torch.tensor([True, False])}
MEASURED = {"operator": First(), "measurement": torch.full((1, 1), VALUE)}


def computed(plan: Plan) -> Row:
    """Mean and variance of the free coordinate, moved by each row of the table."""
    table = plan.table[torch.arange(plan.rows[-1]).clamp(max=len(plan.table) - 1)]
    a, b, c, k = table[:, :4].unbind(1)
    level = torch.arange(len(a)) // plan.steps_per_level
    s = plan.sigmas[level.clamp(max=len(plan.sigmas) - 1)]
    precision = torch.linalg.inv(COVARIANCE + s[:, None, None] ** 2 * torch.eye(2).double())
    seen = torch.cat([s[:1], k[:-1]])  # the noise that the known coordinate has in each row
    kept, pulled = a - b * precision[:, 1, 1], -b * precision[:, 1, 0]
    fresh = (pulled * seen).square() + c.square()
    mean, variance = 0.0, float(s[0]) ** 2
    for factor, pull, noise in zip(kept.tolist(), pulled.tolist(), fresh.tolist(), strict=True):
        mean, variance = factor * mean + pull * VALUE, factor**2 * variance + noise
    return {"mean": mean, "variance": variance}


def drawn(sampler: Any, *args: Any, samples: int, **options: Any) -> Row:
    """Mean and variance of samples."""
    model, start = Pair(), time.perf_counter()
    x = sampler(model, *args, shape=(samples, 2), seed=0, **options)[:, 1].double()
    variance = float(x.var())
    return {
        "evaluations": model.calls,
        "mean": float(x.mean()),
        "mean_error": math.sqrt(variance / samples),
        "variance": variance,
        "variance_error": variance * math.sqrt(2 / samples),
        "seconds": round(time.perf_counter() - start, 2),
    }


def predictor_corrector(steps: int, samples: int) -> Iterator[Row]:
    """reverse_sde, with everything that it has for known values."""
    ways: list[dict[str, Any]] = [{}]
    ways += [{"corrector": "annealed", "corrector_steps": n, "snr": r} for n, r in CORRECTIONS]
    ways += [{"resamplings": n} for n in RESAMPLINGS]
    ways += [{"resamplings": 5, "corrector": "annealed", "snr": 0.5}]
    held: dict[str, dict[str, Any]] = {
        "replacement": KNOWN,
        "projection 1": MEASURED,
        "projection 0.5": {**MEASURED, "projection": 0.5},
    }
    for name, process in PROCESSES.items():
        for how in ways:
            for holding, values in held.items():
                many = how.get("corrector_steps", 0) > 5 or how.get("resamplings", 0) > 10
                if holding != "replacement" and many:
                    continue
                options = {"steps": steps, "conditioning": "sigma", **how}
                row = drawn(fastscore.reverse_sde, process, samples=samples, **values, **options)
                if holding != "projection 0.5":  # choosing elements is replacement
                    plan = fastscore.reverse_sde.plan(Pair(), process, None, **options)
                    row["computed"] = computed(plan)
                yield {"sampler": "reverse_sde", "process": name, "holding": holding, **how} | row


def by_levels(steps: int, samples: int) -> Iterator[Row]:
    """The samplers of noise levels."""
    sigmas = fastscore.geometric_sigmas(10.0, 0.01, steps)
    how: dict[str, Any]
    for each in (1, 5, 20):
        how = {"steps_per_sigma": each}
        row = drawn(fastscore.annealed_langevin, sigmas, samples=samples, **KNOWN, **how)
        row["computed"] = computed(fastscore.annealed_langevin.plan(Pair(), sigmas, **how))
        yield {"sampler": "annealed_langevin", "holding": "replacement", **how} | row
    sampler, how = fastscore.consistent_annealed_langevin, {"eta": 0.1}
    row = drawn(sampler, sigmas, samples=samples, **KNOWN, **how)
    row["computed"] = computed(sampler.plan(Pair(), sigmas, **how))
    yield {"sampler": "consistent_annealed_langevin", "holding": "replacement", **how} | row
    how = {"sigma": 0.01, "steps": steps, "step_size": 0.02}
    row = drawn(fastscore.langevin, samples=samples, **KNOWN, **how)
    row["computed"] = computed(fastscore.langevin.plan(Pair(), **how))
    del how["steps"]
    yield {"sampler": "langevin", "holding": "replacement", **how} | row


def flow(steps: int, samples: int) -> Iterator[Row]:
    """The probability flow, whose known element moves along one path."""
    for solver in SOLVERS:
        adaptive = solver == "rk45"
        if adaptive and steps != STEPS[0]:
            continue
        how: dict[str, Any] = {"solver": solver}
        options = {"rtol": 1e-5, "atol": 1e-5} if adaptive else {"steps": steps}
        process = PROCESSES["VE(0.01, 10)"]
        row = drawn(fastscore.probability_flow, process, samples=samples, **KNOWN, **how, **options)
        yield {"sampler": "probability_flow", "holding": "replacement", **how} | row


def limits(quick: bool) -> Iterator[Row]:
    """Replacement at ever more steps, computed."""
    for name, process in PROCESSES.items():
        for resamplings in (1, *RESAMPLINGS):
            for steps in (100, 1000) if quick else (100, 1000, 10_000, 100_000):
                if steps * resamplings > 200_000:
                    continue
                how = {"steps": steps, "resamplings": resamplings}
                plan = fastscore.reverse_sde.plan(
                    Pair(), process, None, conditioning="sigma", **how
                )
                yield {"process": name, **how} | computed(plan)


def table(results: dict[str, Any]) -> Iterable[str]:
    """A line for each row."""
    yield f"truth: mean {TRUTH['mean']:.3f}, variance {TRUTH['variance']:.3f}"
    measured = ("evaluations", "mean", "mean_error", "variance", "variance_error", "seconds")
    for row in results["rows"]:
        way = ", ".join(f"{k} {v}" for k, v in row.items() if k not in (*measured, "computed"))
        exact = row.get("computed")
        said = f"mean {row['mean']:.3f} +- {row['mean_error']:.3f}"
        said += f", variance {row['variance']:.3f} +- {row['variance_error']:.3f}"
        said += "" if exact is None else f" ({exact['mean']:.4f}, {exact['variance']:.4f} computed)"
        yield f"{way}: {said}, {row['evaluations']} calls"
    for row in results["limits"]:
        yield "limits: " + ", ".join(f"{k} {v}" for k, v in row.items())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    args = parser.parse_args()
    file = prepare_directory("known_values", args.out) / "known_values.json"
    samples, counts = (500, STEPS[:1]) if args.quick else (args.samples, STEPS)
    results: dict[str, Any] = {"date": date.today().isoformat(), "machine": info()}
    results |= {"quick": args.quick, "samples": samples, "truth": TRUTH, "rows": []}
    for part in (predictor_corrector, by_levels, flow):
        for steps in counts:
            results["rows"] += [{"steps": steps} | row for row in part(steps, samples)]
    results["limits"] = list(limits(args.quick))
    file.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(*table(results), sep="\n")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
