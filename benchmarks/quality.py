"""Quality against evaluations of the network, for every sampler of the library.

Three problems, a panel of the figure each:

- digits: the demo's network, on digits as they are (the demo's own learns them dequantised, and its
  file is no network of these); Frechet distance to held-out digits;
- plane: eight Gaussians of unequal weights on a circle off the origin, with their exact score;
- mixture: ten Gaussians in 64 dimensions at the means of the ten digits, with their exact score.

The exact ones are judged by the sliced Wasserstein and the energy distance to true samples; the
same of other true samples is the floor. States are drawn about the mean of the data (``init_mean``)
but in the runs called "from zero", which start from noise alone.

Run: python benchmarks/quality.py [--out benchmarks/results] [--problem P] [--jobs 2]
     [--minutes M] [--quick]
Writes quality.json, a row for each run, and quality.png. Each run is in the file once it is made,
and is not made again: a run of this script that was stopped, or whose minutes were over, goes on
where it was (with --minutes 0 it draws what is there). All of it takes about half an hour on two
cores; scikit-learn is needed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from quality_lines import FAMILIES, LINES, Row
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
QUICK_SAMPLES = 50
REFERENCE = 4  # times as many true samples are what sliced Wasserstein distances are to
REFERENCE_SEED, START_SEED = 1_000, 2_000
FOR_ENERGY = 2_000  # of either side: its time grows with their product
PROJECTIONS = 100
BATCH = 500
TRAINING = 3_000
COMPARED = ("dpmpp_2m_sde", "dpmpp_2m", "heun, churn", "annealed_langevin")  # run first
SHORT, LONG = 20, 100  # evaluations
FEW = 8  # evaluations up to which a ladder of the digits ends higher
LEGEND_ROWS = 3
TOP = 15  # where the panels end, in floors; what lies above is in the file alone

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
        reference = self.true(REFERENCE * len(samples), REFERENCE_SEED)
        some = reference[:FOR_ENERGY]
        return {
            "sliced_wasserstein": sliced_wasserstein(
                samples, reference, projections=PROJECTIONS, seed=0
            ),
            "energy": energy_distance(samples[:FOR_ENERGY], some),
        }

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
    high = fastscore.sigma_max_from_data(model.sample(REFERENCE * SAMPLES, seed=REFERENCE_SEED))
    shape = tuple(centres.shape[1:])
    return Problem(name, title, model, shape, mean, high, std / 10, measures)


PROBLEMS = ("digits", "mixture", "plane")

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
        # A seed of its own, lest the steps' noise be the same.
        noise = fastscore.random.normal(options.pop("shape"), seed=START_SEED + seed)
        samples = sampler(p.model, sigmas, p.mean + p.high * noise, **options)
        return samples, {"mean": run["evaluations"]}
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
    """Train the digits' network and write it to ``file``; what tells it from others."""
    torch.set_num_threads(1)
    data, _ = load_digits()
    sigmas = fastscore.noise_scales(data, sigma_min=SIGMA_MIN)
    model, _ = train(data, sigmas, iterations=iterations, seed=0, progress=False)
    state = model.state_dict()
    torch.save(state, file)
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def jobs_of(name: str, quick: bool) -> list[Row]:
    """All runs of a problem, those first that the others are to be compared with."""
    samples, seeds = (QUICK_SAMPLES, 1) if quick else (SAMPLES, SEEDS)
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
    """What the targets are about, one seed of short runs, more seeds of those, all, the rest."""
    calls = job["run"].get("evaluations") or (30 if job["run"] else 0)
    compared = job["sampler"] in COMPARED
    if job["seed"]:
        return (3 if compared and calls <= SHORT else 5 + job["seed"]), calls
    if compared:
        return (0 if calls < LONG else 1), calls
    return (2 if calls <= SHORT else 4), calls


def key(row: Row) -> str:
    """Equal for a job and for the row that came of it."""
    parts = ("problem", "samples", "sampler", "run", "from_zero", "seed")
    return json.dumps([row[part] for part in parts])


def made(
    pool: ProcessPoolExecutor,
    jobs: dict[str, deque[Row]],
    training: Future[str] | None,
    network: str,
    until: float,
    width: int,
) -> Iterator[Row]:
    """The rows as they are made, the digits' once there is a network; none begun after ``until``.

    Of all problems the job that ranks first; one process is left to the training.
    """
    running: set[Future[Row]] = set()
    while True:
        busy = training is not None and not training.done()
        while time.monotonic() < until and len(running) < max(1, width - busy):
            ready = [name for name in jobs if jobs[name] and not (busy and name == "digits")]
            if not ready:
                break
            name = min(ready, key=lambda name: rank(jobs[name][0]))
            file = network if name == "digits" else None
            running.add(pool.submit(make, jobs[name].popleft(), file))
        if not running and not (busy and jobs.get("digits") and time.monotonic() < until):
            return
        done, waiting = wait(running | ({training} if busy else set()), return_when=FIRST_COMPLETED)
        running = waiting - {training}
        for future in done - {training}:
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
    rows = results["summary"]
    present = [name for name in PROBLEMS if any(row["problem"] == name for row in rows)]
    sheet = Figure(figsize=(5.2 * len(present), 6.6))
    for ax, name in zip(sheet.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        own = [row for row in rows if row["problem"] == name]
        panel(ax, results["problems"][name], own)
    handles: list[Line2D] = []
    for family, colour in FAMILIES.items():  # each begins a column of the legend
        handles += [Line2D([], [], ls="", label=" ")] * (-len(handles) % LEGEND_ROWS)
        handles += [
            Line2D([], [], color=colour, marker=a.marker, ls=a.dashes, ms=4, lw=1, label=a.name)
            for a in LINES
            if a.family == family
        ]
    columns = -(-len(handles) // LEGEND_ROWS)
    small = {"frameon": False, "fontsize": 7, "handlelength": 3}
    sheet.legend(handles=handles, loc="lower center", ncols=columns, **small)
    where = results["machine"]
    words = f"{results['samples']} samples, means and standard deviations over up to "
    words += f"{results['seeds']} seeds; {where['cpu']}, torch {where['versions']['torch']}"
    sheet.text(0.01, 0.005, words, fontsize=6, color="#666666")
    sheet.tight_layout(rect=(0, 0.13, 1, 1))
    sheet.savefig(path, dpi=130)


def panel(ax: Axes, told: Row, rows: list[Row]) -> None:
    """The lines of one problem, up to TOP times the floor."""
    measure = told["measures"][0]

    def value(row: Row) -> tuple[float, float, float]:
        found = row["values"][measure]
        return row["evaluations"] or 0.0, found["mean"], found["sd"] or 0.0

    for line in LINES:
        points = sorted(value(row) for row in rows if row["sampler"] == line.name)
        if points:
            x, y, spread = zip(*points, strict=True)
            colour = FAMILIES[line.family]
            ax.plot(x, y, color=colour, marker=line.marker, ls=line.dashes, ms=4, lw=1)
            ax.errorbar(x, y, spread, fmt="none", lw=0.7, color=colour)
    ax.set(xscale="log", yscale="log", xlabel="evaluations of the network")
    for row in rows:
        if row["sampler"] == "true":
            floor, place = value(row)[1], ax.get_yaxis_transform()
            ax.axhline(floor, color="#333333", lw=0.8, ls="--")
            ax.text(1, floor, told["floor"], transform=place, ha="right", va="top")
            ax.set_ylim(0.8 * floor, min(ax.get_ylim()[1], TOP * floor))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xticks([5, 8, 12, 20, 40, 100, 200])
    ax.set_title(told["title"], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, lw=0.5)


def described(name: str) -> Row:
    """What the file says of a problem."""
    p = problem(name, None)
    told: Row = {"title": p.title, "high": p.high, "low": p.low, "measures": p.measures}
    told["floor"] = "training digits" if name == "digits" else "true samples"
    if name != "digits":
        told |= {"weights": p.model.weights.tolist(), "means": p.model.means.tolist()}
        told |= {"variances": p.model.variances.tolist()}
    return told | {"mean_norm": float(p.mean.norm())}


def table(results: Row) -> Iterator[str]:
    """A line for each sampler of each problem: evaluations, the mean, (seeds) where not all."""
    for name, told in results["problems"].items():
        measure = told["measures"][0]
        yield f"{name}: {told['title']}"
        own = [row for row in results["summary"] if row["problem"] == name]
        for sampler in dict.fromkeys(["true", *(line.name for line in LINES)]):
            rows = [row for row in own if row["sampler"] == sampler]
            cells = []
            for row in sorted(rows, key=lambda row: row["evaluations"] or 0):
                found = row["values"][measure]
                spread = "" if found["sd"] is None else f" +- {found['sd']:.2g}"
                short = "" if row["seeds"] == results["seeds"] else f" ({row['seeds']})"
                cells.append(f"{row['evaluations'] or 0:.4g}: {found['mean']:.4g}{spread}{short}")
            yield f"    {sampler:30s} {'  '.join(cells)}"


def write(results: Row, file: Path) -> None:
    """The file, whole at any moment, with the summary of its rows."""
    results["summary"] = summary(results["rows"])
    with whole_file(file) as part:
        part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def said(row: Row) -> str:
    calls = row["evaluations"] or {"mean": 0}
    values = "  ".join(f"{name} {value:.5f}" for name, value in row["values"].items())
    name = f"{row['problem']:8s} {row['sampler']:30s} {calls['mean']:6.1f} seed {row['seed']}"
    return f"{name}  {values}"


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
        "date": old.get("date"),
        "machine": old.get("machine"),
        "quick": args.quick,
        "samples": QUICK_SAMPLES if args.quick else SAMPLES,
        "seeds": 1 if args.quick else SEEDS,
        "settings": {
            "projections": PROJECTIONS,
            "reference": REFERENCE * SAMPLES,
            "energy_samples": FOR_ENERGY,
            "batch_size": BATCH,
            "training_steps": iterations,
        },
        "problems": old.get("problems", {}),
        "network": old.get("network"),
        "summary": [],
        "rows": old.get("rows", []),
    }
    now = {"date": date.today().isoformat(), "machine": machine() | {"jobs": args.jobs}}
    asked = args.problem or PROBLEMS
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.jobs) as pool:
        network = str(Path(folder) / "network.pt")
        results["problems"] |= {name: described(name) for name in asked}
        there = {key(row): row for row in results["rows"]}
        jobs = {
            name: deque(job for job in jobs_of(name, args.quick) if key(job) not in there)
            for name in asked
        }
        training = None
        if jobs.get("digits") and time.monotonic() < until:
            training = pool.submit(trained, iterations, network)
        for row in made(pool, jobs, training, network, until, args.jobs):
            if row["problem"] == "digits" and training is not None:
                own = training.result()
                if results["network"] not in (None, own):
                    raise SystemExit(f"{file} has runs of another network: remove it to begin anew")
                results["network"] = own
            results["rows"].append(row)
            results |= now
            write(results, file)
            print(said(row), flush=True)
    write(results, file)
    print("\n".join(table(results)))
    matplotlib.rcParams["font.size"] = 8
    figure(json.loads(file.read_text()), file.with_suffix(".png"))
    print(f"wrote {file} and {file.with_suffix('.png')}")


if __name__ == "__main__":
    main()
