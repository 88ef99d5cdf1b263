"""The kernels and the jobs at the sizes of a large GPU, against what they are to reach there.

    python benchmarks/gpu.py kernels OUT     single ops, against copies, eager and torch.compile
    python benchmarks/gpu.py jobs OUT        sampling under CUDA graphs and training steps
    ... --rehearse                           emulated, at sizes that show nothing but that it runs

Writes every row to ``OUT/gpu_kernels.json`` or ``OUT/gpu_jobs.json`` as soon as it is there, prints
them, and last a table of goals. The L2 cache is flushed before each call of a kernel; sides take
turns in one process; times are medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rehearsal import kernels as kernels_of
from torch import Tensor

import fastscore
from fastscore import random
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Candidate, Case, Side, Work, library, peer
from fastscore.apps.bench.cases import (
    dsm,
    dual,
    guided,
    langevin,
    multistep,
    networks,
    runge_kutta,
    sampling,
    sampling_in_time,
    sliced,
    training,
)
from fastscore.apps.bench.cases import random as fills
from fastscore.apps.bench.cases.common import normal, size
from fastscore.apps.bench.machine import prepare_process
from fastscore.apps.bench.measure import Effort, measure
from fastscore.apps.bench.report import LEGEND, lines, write_rows

Row = dict[str, Any]
Build = Callable[[Case], Work]

LIBRARY = ("fastscore",)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where the cases run, and how large they are."""

    device: str
    elements: int
    images: tuple[int, ...]
    hidden: int  # values of a network's layer
    batches: tuple[int, int, int]  # of the networks: points, images sampled, images trained on
    steps: int  # of a level
    effort: Effort


GPU = Scale("cuda", 2**28, (16_384, 3, 32, 32), 2**24, (1024, 64, 128), 5, Effort())
REHEARSAL = Scale("cpu", 2**12, (8, 3, 8, 8), 2**10, (16, 2, 2), 2, Effort(quick=True))


class Goal(NamedTuple):
    """That ``ratio`` of the library's row is at least ``least``.

    ``ratio`` names a pass over memory, whose rate the library's is a share of, or another side,
    than which the library is so many times faster.
    """

    case: str
    ratio: str
    least: float


# ---- cases -------------------------------------------------------------------------------------


def with_sides(build: Build, *more: Callable[[Case], Candidate]) -> Build:
    """The case with more sides."""

    def whole(case: Case) -> Work:
        work = build(case)
        there = {candidate.provider for candidate in work.candidates}
        added = [candidate for make in more if (candidate := make(case)).provider not in there]
        return dataclasses.replace(work, candidates=[*work.candidates, *added])

    return whole


def copy_side(case: Case) -> Candidate:
    return limits.copy(torch.empty(case.shape, dtype=case.dtype, device=case.device))


def build_sliced_backward(case: Case) -> Work:
    """The gradients of v'Jv and |s|^2/2: reads s, writes two tensors of its size."""
    score, key = normal(case), random.key(0, device=case.device)
    up = torch.randn(1, case.shape[0], device=case.device)
    backward = torch.ops.fastscore.sliced_terms_backward.default

    def run() -> tuple[Tensor, Tensor]:
        return backward(up, None, up[0], score, key, 0, 0)

    def check() -> Agreement:
        grad_score, grad_jvp = run()
        signs = grad_jvp[0] / up[0].reshape(-1, *[1] * (score.dim() - 1))
        exact = up[0].double().reshape(-1, *[1] * (score.dim() - 1)) * score.double()
        return checks.worst(checks.same_formula(grad_score, exact), checks.signs(signs.round()))

    return Work(
        [library(lambda: Side(run, check)), limits.copy(score), limits.triad(score)],
        bytes=3 * score.nbytes,
    )


def build_gradient_in_advance(case: Case) -> Work:
    """The DSM loss and its gradient in one pass: reads the output, writes a tensor of its size."""
    return _in_advance(case, mended=False)


def build_gradient_as_expected(case: Case) -> Work:
    """The same, and the check that finds the gradient right as it is: one more launch."""
    return _in_advance(case, mended=True)


def _in_advance(case: Case, *, mended: bool) -> Work:
    output, raw = normal(case), torch.ops.fastscore
    batch = case.shape[0]
    table = torch.tensor([[0.5, 1.0, 1.0]], dtype=torch.float64, device=case.device)
    labels = torch.zeros(batch, dtype=torch.int64, device=case.device)
    args = (output, table, labels, random.key(0, device=case.device), 0)
    up = torch.full((batch,), 1 / batch, device=case.device)

    def run() -> tuple[Tensor, Tensor]:
        loss, grad = raw.dsm_residual_with_grad(*args, 1 / batch)
        if mended:
            raw.dsm_residual_regrad_(grad, up, 1 / batch, *args)
        return loss, grad

    def check() -> Agreement:
        loss, grad = run()
        return checks.worst(
            checks.same_formula(loss, raw.dsm_residual(*args)),
            checks.same_formula(grad, raw.dsm_residual_backward(up, *args)),
        )

    return Work(
        [library(lambda: Side(run, check)), limits.copy(output), limits.triad(output)],
        bytes=2 * output.nbytes,
    )


def reduce_overhead(network: networks.Network) -> Callable[[Case], Candidate]:
    """Annealed Langevin dynamics whose whole step is compiled and replayed as a graph."""

    def candidate(case: Case) -> Candidate:
        def make() -> Side:
            model = network.make(case.device)
            steps, levels = case.params["steps"], case.params["levels"]
            sigmas = fastscore.geometric_sigmas(
                sampling.SIGMA_MAX, sampling.SIGMA_MIN, levels, device=case.device
            )
            start = sampling.SIGMA_MAX * torch.randn(case.shape, device=case.device)
            alphas = sampling.STEP_SIZE * (sigmas / sigmas[-1]).square()

            def step(x: Tensor, sigma: Tensor, b: Tensor, c: Tensor) -> Tensor:
                return x + b * model(x, sigma) + c * torch.randn_like(x)

            torch.compiler.reset()
            compiled = torch.compile(step, mode="reduce-overhead", dynamic=False)
            coefficients = [
                (sigma.expand(len(start)).clone(), alpha.clone(), (2 * alpha).sqrt())
                for sigma, alpha in zip(sigmas, alphas, strict=True)
            ]

            def run() -> Tensor:
                x = start.clone()
                with torch.no_grad():
                    for sigma, b, c in coefficients:
                        for _ in range(steps):
                            torch.compiler.cudagraph_mark_step_begin()
                            x.copy_(compiled(x, sigma, b, c))
                return x

            for _ in range(3):
                run()
            return Side(run)

        return peer("reduce-overhead", make)

    return candidate


def sampled(scale: Scale, network: networks.Network, levels: int, steps: int, *more: Any) -> Case:
    params = {"network": network.name, "levels": levels, "steps": steps}
    return Case(
        "sample_annealed_langevin",
        "jobs",
        with_sides(sampling.build(network), *more),
        (network.batch, *network.shape),
        device=scale.device,
        params=params,
        clock="host",
    )


def trained(scale: Scale, network: networks.Network) -> Case:
    return Case(
        "train_dsm_loss", "jobs", training.build_dsm(network), (network.batch, *network.shape),
        device=scale.device, params={"network": network.name}, clock="host",
    )  # fmt: skip


def in_time(
    scale: Scale, name: str, build: Callable[..., Any], network: networks.Network, **params: Any
) -> Case:
    return Case(
        name, "jobs", build(network), (network.batch, *network.shape), device=scale.device,
        params={"network": network.name, **params}, clock="host",
    )  # fmt: skip


def kernels(scale: Scale) -> Iterator[Case]:
    """The most telling first: the rest may run out of time."""
    device, elements, images = scale.device, scale.elements, scale.images
    step = with_sides(langevin.build_step, copy_side)
    plain = (*LIBRARY, "eager", "compile", "axpy", "triad", "copy")
    yield Case(
        "langevin_step_", "langevin", step, (elements,), device=device, providers=plain,
        **size(elements),
    )  # fmt: skip
    n = torch.Size(images).numel()
    rows = (images[0], n // images[0])
    yield Case(
        "dsm_loss", "dsm", dsm.build_part, images, device=device,
        providers=(*LIBRARY, "eager", "NCSN loss", "compile", "copy"), **size(n, buffers=20),
    )  # fmt: skip
    terms = {"distribution": "rademacher", "projections": 1}
    sliced_sides = (*LIBRARY, "eager", "SSM loss", "read", "copy")
    sliced_terms = with_sides(sliced.build_terms, copy_side)
    yield Case(
        "sliced_terms", "sliced", sliced_terms, rows, device=device, params=terms,
        providers=sliced_sides, **size(n, buffers=40),
    )  # fmt: skip
    yield Case(
        "langevin_step_", "langevin", step, (elements,), torch.bfloat16, device,
        providers=(*LIBRARY, "eager", "axpy", "triad", "copy"), **size(elements, 2),
    )  # fmt: skip
    for op, build in (("perturb", dsm.build_perturb), ("dsm_residual", dsm.build_residual)):
        yield Case(
            op, "dsm", with_sides(build, copy_side), images, device=device,
            providers=(*LIBRARY, "eager", "copy"), **size(n, buffers=20),
        )  # fmt: skip
    for name, build in (
        ("dsm_residual_with_grad", build_gradient_in_advance),
        ("dsm_residual_with_grad_as_expected", build_gradient_as_expected),
    ):
        yield Case(name, "dsm", build, images, device=device, **size(n))
    yield Case(
        "sliced_terms_backward", "sliced", build_sliced_backward, rows, device=device,
        params=terms, **size(n),
    )  # fmt: skip
    yield Case(
        "sliced_terms", "sliced", sliced_terms, rows, device=device,
        params={"distribution": "gaussian", "projections": 1},
        providers=(*LIBRARY, "eager", "copy"), **size(n, buffers=40),
    )  # fmt: skip
    yield Case(
        "langevin_step_", "langevin", with_sides(langevin.build_guided, copy_side), (elements,),
        device=device, params={"terms": 2}, providers=plain, **size(elements),
    )  # fmt: skip
    for solver in ("ode", "sde"):
        yield Case(
            "multistep_step_", "multistep", with_sides(multistep.build, copy_side), (elements,),
            device=device, params={"solver": solver},
            providers=(*LIBRARY, "eager", "axpy", "triad", "copy"), **size(elements, buffers=14),
        )  # fmt: skip
    for op, build in (
        ("rk_stage", runge_kutta.build_stage), ("rk_error", runge_kutta.build_error),
    ):  # fmt: skip
        yield Case(
            op, "runge_kutta", with_sides(build, copy_side), images, device=device,
            providers=(*LIBRARY, "eager", "copy"), **size(n, buffers=24),
        )  # fmt: skip
    yield Case(
        "dsm_residual", "dsm", with_sides(dsm.build_residual, copy_side), images, device=device,
        params={"prediction": "x0"}, providers=(*LIBRARY, "eager", "copy"), **size(n, buffers=24),
    )  # fmt: skip
    for op in ("normal_", "rademacher_"):
        yield Case(
            op, "random", with_sides(fills.build, copy_side), (elements,), device=device,
            providers=(*LIBRARY, "eager", "fill", "copy"), **size(elements),
        )  # fmt: skip
    yield Case(
        "dual", "dual", with_sides(dual.build, copy_side), (scale.hidden,), device=device,
        params={"activation": "silu", "tangents": 1},
        providers=(*LIBRARY, "eager", "compile", "copy"), **size(scale.hidden),
    )  # fmt: skip


def jobs(scale: Scale) -> Iterator[Case]:
    """Whole jobs, by the host's clock: launches and waiting count."""
    points, sampled_images, trained_images = scale.batches
    small = networks.mlp(points, 2, 128, 128)
    yield sampled(scale, small, 20, scale.steps, reduce_overhead(small))
    yield trained(scale, small)
    yield trained(scale, networks.conv(trained_images, 3, 32))
    images = networks.conv(sampled_images, 3, 32)
    # Steps enough for "auto" to capture.
    yield sampled(scale, images, 8, scale.steps + 3, reduce_overhead(images))
    yield in_time(scale, "sample_reverse_sde", sampling_in_time.build_reverse, images, steps=30)
    yield in_time(scale, "sample_heun", sampling_in_time.build_heun, images, steps=18)
    for name, network in (("none", None), ("conv", images)):
        for kind in ("classifier-free", "pigdm"):
            yield Case(
                "sample_guided", "jobs", guided.build(network, kind), (images.batch, *images.shape),
                device=scale.device, clock="host",
                params={"network": name, "kind": kind, "steps": 30},
            )  # fmt: skip
    adaptive = sampling_in_time.build_adaptive
    yield in_time(scale, "sample_rk45", adaptive, images, tolerance=1e-2)
    yield in_time(scale, "sample_rk45", adaptive, small, tolerance=1e-3)
    yield sampled(scale, networks.conv(sampled_images, 3, 32, width=128), 3, 2)


CASES = {"kernels": kernels, "jobs": jobs}
GOALS = [
    Goal("langevin_step_-268435456-float32-cuda", "copy", 0.85),
    Goal("langevin_step_-268435456-float32-cuda", "eager", 2.0),
    Goal("langevin_step_-268435456-float32-cuda", "compile", 1.2),
    Goal("dsm_loss-16384x3x32x32-float32-cuda", "eager", 4.0),
    Goal("dsm_loss-16384x3x32x32-float32-cuda", "compile", 1.3),
    Goal("sliced_terms-16384x3072-float32-cuda-distribution:rademacher", "copy", 0.85),
    Goal("sample_annealed_langevin-1024x2-float32-cuda", "NCSN loop", 5.0),
    Goal("sample_annealed_langevin-64x3x32x32-float32-cuda", "eager", 1.0),
    Goal("train_dsm_loss-1024x2-float32-cuda", "eager", 1.0),
    Goal("train_dsm_loss-128x3x32x32-float32-cuda", "eager", 1.0),
]


# ---- the run -----------------------------------------------------------------------------------


def goal_line(goal: Goal, results: dict[str, list[Row]]) -> str:
    """What came of a goal."""
    rows = next((rows for name, rows in results.items() if name.startswith(goal.case)), None)
    ours = rows[0] if rows else {}
    found = ours.get("share_of_limit", {}).get(goal.ratio)
    if found is None and goal.ratio in ours.get("ratios", {}):
        found = ours["ratios"][goal.ratio]["p50"]
    if found is None:
        return f"not measured  {goal.case}: {goal.ratio} (at least {goal.least})"
    verdict = "reached" if found >= goal.least else "missed"
    return f"{verdict:<12}  {goal.case}: {goal.ratio} {found:.3f} (at least {goal.least})"


def run(which: str, scale: Scale, out: Path, only: str) -> int:
    """Measures the cases whose names contain ``only``; returns how many failed."""
    where = prepare_process()
    print(LEGEND)
    results: dict[str, list[Row]] = {}
    failures = 0
    for case in CASES[which](scale):
        if only not in case.name:
            continue
        try:
            results[case.name] = measure(case, scale.effort, where)
        except Exception:
            failures += 1
            print(f"{case.name} failed:\n{traceback.format_exc()}", flush=True)
            continue
        finally:
            torch.cuda.empty_cache()
        print("\n".join(lines(results[case.name])), flush=True)
        # After each case: a run that is cut short keeps what it has.
        write_rows([row for rows in results.values() for row in rows], out / f"gpu_{which}.json")
    print(f"\n{where['gpu']}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    begun = {case.op for case in CASES[which](scale)}
    for goal in GOALS:
        if goal.case.partition("-")[0] in begun:
            print(goal_line(goal, results))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", choices=CASES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="emulated, at small sizes")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no CUDA device (--rehearse runs on the CPU)")
    scale = REHEARSAL if args.rehearse else GPU
    with kernels_of(args.rehearse):
        return 1 if run(args.cases, scale, args.out, args.only) else 0


if __name__ == "__main__":
    sys.exit(main())
