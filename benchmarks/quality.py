"""Quality against evaluations of the network, for every sampler of the library.

Three problems, a panel of the figure each:

- digits: the demo's network, trained as the demo trains it; Frechet distance to held-out digits;
- plane: eight Gaussians of unequal weights on a circle off the origin, with their exact score;
- mixture: ten Gaussians in 64 dimensions at the means of the ten digits, with their exact score.

The exact ones are judged by the sliced Wasserstein and the energy distance to true samples; the
same of other true samples is the floor. States are drawn about the mean of the data (``init_mean``)
but in the runs called "from zero", which start from noise alone.

Run: python benchmarks/quality.py [--out benchmarks/results] [--problem P] [--jobs 2]
     [--minutes M] [--quick]
Writes quality.json, a row for each run, and quality.png. Each run is in the file once it is made,
and is not made again: a run of this script that was stopped, or whose minutes were over, goes on
where it was. All of it takes about half an hour on two cores; scikit-learn is needed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore._support.extras import require
from fastscore._support.files import prepare_directory, whole_file
from fastscore.apps.bench.machine import machine
from fastscore.apps.demo.data import load_digits
from fastscore.apps.demo.run import SIGMA_MIN, train
from fastscore.evaluation.distances import energy_distance, frechet_distance, sliced_wasserstein

SAMPLES = 5_000
SEEDS = 5
REFERENCE = 20_000  # true samples that sliced Wasserstein distances are to
FOR_ENERGY = 2_000  # of either side: its time grows with their product
PROJECTIONS = 200
BATCH = 500
TRAINING = 3_000
FEW = 8  # evaluations up to which a ladder of the digits ends higher
Row = dict[str, Any]

# ---- samplers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One sampler at several numbers of evaluations: keyword arguments of each run."""

    name: str
    family: str
    marker: str
    runs: tuple[Row, ...]
    dashes: str = "-"
    from_zero: bool = False


def flow(counts: Iterable[int], calls: int = 1, last: int = 1, **options: Any) -> tuple[Row, ...]:
    """Runs of ``probability_flow`` of so many steps, ``calls`` in each but the last."""
    return tuple(
        {"function": "probability_flow", "steps": n, "evaluations": calls * (n - 1) + last}
        | {"grid": "karras"}
        | {name: value(n) if callable(value) else value for name, value in options.items()}
        for n in counts
    )


def sde(counts: Iterable[int], **options: Any) -> tuple[Row, ...]:
    """Runs of ``reverse_sde`` of so many steps, and the denoising one."""
    calls = 2 if "corrector" in options else 1
    return tuple(
        {"function": "reverse_sde", "steps": n, "evaluations": calls * n + 1, "grid": "karras"}
        | options
        for n in counts
    )


def langevin(*counts: tuple[int, int]) -> tuple[Row, ...]:
    """Annealed Langevin dynamics of so many levels with so many steps at each."""
    return tuple(
        {"function": "annealed_langevin", "levels": levels, "steps_per_sigma": steps}
        | {"evaluations": levels * steps + 1}
        for levels, steps in counts
    )


def consistent(*counts: int) -> tuple[Row, ...]:
    """Consistent annealed sampling; its noise is 0.44 of what would be new in every step."""
    return tuple(
        {"function": "consistent_annealed_langevin", "levels": n, "old_noise": 0.9}
        | {"evaluations": n}
        for n in counts
    )


def adaptive(*tolerances: float) -> tuple[Row, ...]:
    return tuple(
        {"function": "probability_flow", "solver": "rk45", "rtol": tol, "atol": tol}
        | {"denoise": True, "evaluations": None}
        for tol in tolerances
    )


def churn(steps: int) -> float:
    """Noise of 0.4 of the level in every step, nearly the most that there may be."""
    return 0.4 * steps


PREDICTORS = {"euler_maruyama": "o", "reverse_diffusion": "s", "ancestral": "^"}
FAMILIES = {  # colours of Okabe and Ito, and of Tol, that the colour-blind can tell apart
    "Langevin": "#0072B2",
    "predictor": "#E69F00",
    "predictor and corrector": "#009E73",
    "flow": "#D55E00",
    "flow with noise": "#882255",
    "started from zero": "#888888",
}
LINES = (
    Line("annealed_langevin", "Langevin", "o", langevin((6, 3), (13, 3), (35, 3), (35, 5))),
    Line("consistent_annealed_langevin", "Langevin", "s", consistent(12, 20, 40)),
    *(
        Line(name, "predictor", marker, sde((11, 19, 39), predictor=name))
        for name, marker in PREDICTORS.items()
    ),
    *(
        Line(
            f"{name}, {corrector}",
            "predictor and corrector",
            marker,
            sde((5, 9, 19), predictor=name, corrector=corrector),
            dashes,
        )
        for corrector, dashes in (("annealed", "-"), ("langevin", "--"))
        for name, marker in PREDICTORS.items()
    ),
    Line("euler", "flow", "o", flow((8, 12, 20, 40), solver="euler")),
    Line("heun", "flow", "s", flow((4, 6, 10, 20), 2, solver="heun")),
    Line("rk4", "flow", "^", flow((3, 5, 10), 4, solver="rk4")),
    Line("dpmpp_2m", "flow", "D", flow((5, 8, 12, 20, 40), solver="dpmpp_2m")),
    Line("rk45", "flow", "v", adaptive(0.3, 0.1, 0.03, 0.01, 0.001), "--"),
    Line("heun, churn", "flow with noise", "s", flow((6, 10, 20), 2, solver="heun", churn=churn)),
    Line(
        "dpmpp_2m_sde", "flow with noise", "D", flow((5, 8, 12, 20, 40), solver="dpmpp_2m_sde")
    ),
    Line("heun from zero", "started from zero", "s", flow((10,), 2, solver="heun"), ":", True),
    Line(
        "dpmpp_2m from zero", "started from zero", "D", flow((12, 20), solver="dpmpp_2m"), ":", True
    ),
    Line(
        "dpmpp_2m_sde from zero",
        "started from zero",
        "o",
        flow((5, 8, 12, 20, 40), solver="dpmpp_2m_sde"),
        ":",
        True,
    ),
)  # fmt: skip


# ---- problems ------------------------------------------------------------------------------------


@dataclass
class Problem:
    """What is sampled, over which noise levels, and how samples are judged."""

    name: str
    title: str
    model: torch.nn.Module
    shape: tuple[int, ...]
    mean: Tensor
    high: float
    low: float
    measures: tuple[str, ...]  # the first of them is drawn

    def lowest(self, run: Row) -> float:
        """Where the ladder of a run ends; that of few evaluations of a network higher up."""
        if self.name != "digits":
            return self.low
        if "levels" in run:
            return SIGMA_MIN  # the demo's own
        few = run["evaluations"] is not None and run["evaluations"] <= FEW
        return 2.5 * self.low if few else self.low

    def judge(self, samples: Tensor) -> Row:
        if self.name == "digits":
            clean = samples.clamp(0, 1)
            data, held_out = load_digits()
            return {
                "frechet": frechet_distance(clean, held_out),
                "frechet_to_training": frechet_distance(clean, data),
            }
        reference = self.reference()
        some = reference[:FOR_ENERGY]
        return {
            "sliced_wasserstein": sliced_wasserstein(
                samples, reference, projections=PROJECTIONS, seed=0
            ),
            "energy": energy_distance(samples[:FOR_ENERGY], some),
        }

    def reference(self) -> Tensor:
        return self.true(REFERENCE, 1_000)

    def true(self, count: int, seed: int) -> Tensor:
        """Samples of the distribution itself; of the digits, the training ones."""
        if self.name == "digits":
            return load_digits()[0][:count]
        return self.model.sample(count, seed=seed)


@functools.cache
def problem(name: str, network: str | None) -> Problem:
    """``network`` is the file that has the digits' one."""
    measures: tuple[str, ...] = ("sliced_wasserstein", "energy")
    if name == "digits":
        data, _ = load_digits()
        model = fastscore.nn.ScoreConvNet(channels=1, image_size=8)
        if network is not None:
            model.load_state_dict(torch.load(network))
        model = model.to(memory_format=torch.channels_last).eval()
        high = fastscore.sigma_max_from_data(data)
        mean, measures = data.mean(0), ("frechet", "frechet_to_training")
        title = "digits 8 x 8, the demo's network: Frechet distance to held-out digits"
        return Problem(name, title, model, (1, 8, 8), mean, high, 0.02, measures)
    if name == "plane":
        angle = torch.arange(8) * (torch.pi / 4)
        centres = torch.stack([1.5 + angle.cos(), angle.sin()], 1)
        weights, std = torch.arange(1.0, 9), 0.05
        title = "8 Gaussians of unequal weights in the plane, exact score: sliced Wasserstein"
    else:
        digits = require("quality", "sklearn.datasets", "scikit-learn").load_digits()
        images = torch.from_numpy(digits.images).float().flatten(1) / 16
        target = torch.from_numpy(digits.target)
        centres = torch.stack([images[target == k].mean(0) for k in range(10)])
        weights, std = torch.ones(10), 0.1
        title = "10 Gaussians in 64 dimensions, exact score: sliced Wasserstein"
    model = fastscore.scores.GaussianMixture(weights, centres, std**2)
    mean = (weights / weights.sum()) @ centres
    high = fastscore.sigma_max_from_data(model.sample(REFERENCE, seed=1_000))
    shape = tuple(centres.shape[1:])
    return Problem(name, title, model, shape, mean, high, std / 10, measures)


PROBLEMS = ("plane", "mixture", "digits")

# ---- runs ----------------------------------------------------------------------------------------


def draw(p: Problem, run: Row, *, from_zero: bool, samples: int, seed: int) -> tuple[Tensor, Row]:
    """Samples, and how many evaluations each took: in the mean and at most."""
    options = {name: value for name, value in run.items() if name != "evaluations"}
    sampler = getattr(fastscore, options.pop("function"))
    low = p.lowest(run)
    options |= {"shape": (samples, *p.shape), "seed": seed}
    if p.name == "digits":
        options["batch_size"] = min(BATCH, samples)
    if "levels" in run:
        sigmas = fastscore.geometric_sigmas(p.high, low, options.pop("levels"))
        if "old_noise" in run:
            options["eta"] = 1 - float(sigmas[1] / sigmas[0]) * options.pop("old_noise")
        return sampler(p.model, sigmas, **options), {"mean": run["evaluations"]}
    options["init_mean"] = None if from_zero else p.mean
    state = sampler(p.model, fastscore.sde.VE(low, p.high), return_state=True, **options)
    calls = torch.as_tensor(state.evaluations).double()
    if run["evaluations"] is not None and int(calls) != run["evaluations"]:
        raise AssertionError(f"{run} took {state.evaluations} evaluations")
    return state.x, {"mean": float(calls.mean()), "most": int(calls.max())}


def make(job: Row, network: str | None) -> Row:
    """A row of the file: what was run, how, and what came out."""
    torch.set_num_threads(1)
    p = problem(job["problem"], network)
    start = time.perf_counter()
    if job["sampler"] == "true":
        return {**job, "values": p.judge(p.true(job["samples"], job["seed"])), "evaluations": None}
    sizes = {"samples": job["samples"], "seed": job["seed"]}
    x, evaluations = draw(p, job["run"], from_zero=job["from_zero"], **sizes)
    seconds = time.perf_counter() - start
    levels = {"high": p.high, "low": p.lowest(job["run"])}
    values = p.judge(x)
    return {**job, **levels, "evaluations": evaluations, "seconds": seconds, "values": values}


def trained(iterations: int, file: str) -> str:
    """Train the demo's network into ``file``; what tells it from others."""
    torch.set_num_threads(1)
    data, _ = load_digits()
    sigmas = fastscore.noise_scales(data, sigma_min=SIGMA_MIN)
    model, _ = train(data, sigmas, iterations=iterations, seed=0, progress=False)
    torch.save(model.state_dict(), file)
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def jobs_of(name: str, quick: bool) -> list[Row]:
    """All runs of a problem, those first that the others are to be compared with."""
    samples, seeds = (200, 1) if quick else (SAMPLES, SEEDS)
    base = {"problem": name, "samples": samples}
    jobs = []
    for seed in range(1 if name == "digits" else seeds):
        jobs.append({**base, "sampler": "true", "run": {}, "from_zero": False, "seed": seed})
    for line in LINES:
        for run in line.runs[:1] if quick else line.runs:
            for seed in range(seeds):
                named = {"sampler": line.name, "run": run, "from_zero": line.from_zero}
                jobs.append({**base, **named, "seed": seed})
    return sorted(jobs, key=rank)


def rank(job: Row) -> tuple[int, int]:
    """Short runs of all seeds before a second seed of long ones."""
    evaluations = job["run"].get("evaluations") or (40 if job["run"] else 0)
    weight = 1 if evaluations <= 12 else 2 if evaluations <= 20 else 4 if evaluations <= 41 else 6
    return (0 if job["seed"] == 0 else job["seed"] * weight, evaluations)


def key(row: Row) -> str:
    """Equal for a job and for the row that came of it."""
    parts = ("problem", "samples", "sampler", "run", "from_zero", "seed")
    return json.dumps([row[part] for part in parts])


def made(
    pool: ProcessPoolExecutor, jobs: list[Row], network: str | None, until: float, width: int
) -> Iterator[Row]:
    """The rows as they are made, no run begun after ``until``."""
    left, running = iter(jobs), set[Future[Row]]()
    while True:
        while len(running) < width and time.monotonic() < until:
            if (job := next(left, None)) is None:
                break
            running.add(pool.submit(make, job, network))
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


# ---- what comes of them --------------------------------------------------------------------------


def summary(rows: list[Row]) -> list[Row]:
    """Mean and standard deviation over the seeds of each run."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key({**row, "seed": None}), []).append(row)
    found = []
    for group in groups.values():
        first = group[0]
        values = {}
        for name in first["values"]:
            each = [row["values"][name] for row in group]
            spread = statistics.stdev(each) if len(each) > 1 else None
            values[name] = {"mean": statistics.fmean(each), "sd": spread}
        calls = [row["evaluations"]["mean"] for row in group if row["evaluations"]]
        found.append(
            {part: first[part] for part in ("problem", "sampler", "run", "from_zero", "samples")}
            | {"evaluations": statistics.fmean(calls) if calls else None}
            | {"seeds": len(group), "values": values}
        )
    return found


def figure(results: Row, path: Path) -> None:
    """A panel for each problem, from the JSON alone."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    matplotlib.rcParams["font.size"] = 8
    present = [name for name in PROBLEMS if any(r["problem"] == name for r in results["summary"])]
    sheet = Figure(figsize=(5.2 * len(present), 6.4))
    panels = sheet.subplots(1, len(present), squeeze=False)[0]
    for ax, name in zip(panels, reversed(present), strict=True):
        rows = [row for row in results["summary"] if row["problem"] == name]
        measure = results["problems"][name]["measures"][0]
        for line in LINES:
            points = sorted(
                (row["evaluations"], row["values"][measure]["mean"], row["values"][measure]["sd"])
                for row in rows
                if row["sampler"] == line.name
            )
            if not points:
                continue
            x, y, spread = zip(*points, strict=True)
            style = {"color": FAMILIES[line.family], "marker": line.marker, "ls": line.dashes}
            ax.plot(x, y, ms=4, lw=1, **style)
            ax.errorbar(x, y, [s or 0 for s in spread], fmt="none", lw=0.7, color=style["color"])
        floor = [row["values"][measure]["mean"] for row in rows if row["sampler"] == "true"]
        if floor:
            ax.axhline(floor[0], color="#333333", lw=0.8, ls="--")
            text = "training digits" if name == "digits" else "true samples"
            ax.text(0.99, floor[0], text, transform=ax.get_yaxis_transform(), ha="right", va="top")
        ax.set(xscale="log", yscale="log", xlabel="evaluations of the network")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        ax.set_xticks([5, 8, 12, 20, 40, 100, 200])
        ax.set_title(results["problems"][name]["title"], fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, which="both", lw=0.5)
    handles = [
        Line2D([], [], color=FAMILIES[a.family], marker=a.marker, ls=a.dashes, ms=4, label=a.name)
        for a in LINES
    ]
    sheet.legend(handles=handles, loc="lower center", ncols=7, frameon=False, fontsize=7)
    where = results["machine"]
    small = f"{results['samples']} samples, means and standard deviations over up to "
    small += f"{results['seeds']} seeds; {where['cpu']}, torch {where['versions']['torch']}"
    sheet.text(0.01, 0.005, small, fontsize=6, color="#666666")
    sheet.tight_layout(rect=(0, 0.14, 1, 1))
    sheet.savefig(path, dpi=130)


def described(name: str) -> Row:
    """What the file says of a problem."""
    p = problem(name, None)
    told: Row = {"title": p.title, "high": p.high, "low": p.low, "measures": p.measures}
    if name != "digits":
        told |= {"weights": p.model.weights.tolist(), "means": p.model.means.tolist()}
        told |= {"variances": p.model.variances.tolist()}
    return told | {"mean_norm": float(p.mean.norm())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="this one alone")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of a thread each")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    file = prepare_directory("quality", args.out) / "quality.json"
    old: Row = json.loads(file.read_text()) if file.is_file() else {}
    if old.get("quick") != args.quick:
        old = {}
    iterations = 5 if args.quick else TRAINING
    results: Row = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "quick": args.quick,
        "samples": 200 if args.quick else SAMPLES,
        "seeds": 1 if args.quick else SEEDS,
        "settings": {"projections": PROJECTIONS, "reference": REFERENCE, "energy": FOR_ENERGY}
        | {"batch_size": BATCH, "training_steps": iterations, "jobs": args.jobs},
        "problems": old.get("problems", {}),
        "network": old.get("network"),
        "summary": [],
        "rows": old.get("rows", []),
    }
    asked = args.problem or PROBLEMS
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.jobs) as pool:
        network = str(Path(folder) / "network.pt")
        training = pool.submit(trained, iterations, network) if "digits" in asked else None
        for name in sorted(asked, key=PROBLEMS.index):
            results["problems"][name] = described(name)
            # One process trains meanwhile.
            width = max(1, args.jobs - (training is not None and not training.done()))
            if name == "digits" and training is not None:
                if (digest := training.result()) != results["network"]:
                    results["rows"] = [r for r in results["rows"] if r["problem"] != name]
                results["network"], width = digest, args.jobs
            there = {key(row) for row in results["rows"]}
            jobs = [job for job in jobs_of(name, args.quick) if key(job) not in there]
            for row in made(pool, jobs, network, until, width):
                results["rows"].append(row)
                results["summary"] = summary(results["rows"])
                with whole_file(file) as part:
                    part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
                calls = row["evaluations"] or {"mean": 0}
                values = "  ".join(f"{n} {v:.5f}" for n, v in row["values"].items())
                said = f"{name:8s} {row['sampler']:30s} {calls['mean']:6.1f} seed {row['seed']}"
                print(f"{said}  {values}", flush=True)
    figure(json.loads(file.read_text()), file.with_suffix(".png"))
    print(f"wrote {file} and {file.with_suffix('.png')}")


if __name__ == "__main__":
    main()
