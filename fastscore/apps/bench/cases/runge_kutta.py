"""The family ``runge_kutta``: what an adaptive solver does beside the network, whole and in parts.

The network's slopes are given. Each sample has a step of its own, but torchdiffeq's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastscore import ops, reference
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size
from fastscore.apps.bench.peers import odes
from fastscore.apps.bench.peers.compiled import compiled

STEP, ATOL, RTOL = 1e-3, 1e-3, 1e-3
CHECKED = 8  # samples


class Solver:
    """A case's inputs, and the coefficients of its step."""

    def __init__(self, case: Case, *, one_step: bool = False) -> None:
        self.x = normal(case)
        self.slopes = [normal(case) for _ in range(7)]
        batch = case.shape[0]
        spread = torch.zeros(batch) if one_step else torch.linspace(0.0, 1.0, batch)
        self.h = (STEP * (1 + spread)).double().to(case.device)
        self.rows = [self.row(1.0, stage) for stage in odes.STAGES]
        self.error_row = self.row(0.0, odes.ERROR)
        self.tolerances = torch.tensor([ATOL, RTOL], dtype=torch.float64, device=case.device)
        self.accepted = torch.ones(batch, dtype=torch.bool, device=case.device)

    def row(self, first: float, stage: Sequence[float]) -> Tensor:
        """Coefficients of each sample, (batch, n + 1)."""
        scaled = torch.outer(self.h, self.h.new_tensor(stage))
        return torch.cat([torch.full_like(self.h, first)[:, None], scaled], dim=1)

    def terms(self, stage: Sequence[float], slopes: Sequence[Tensor]) -> odes.Terms:
        return odes.terms(self.h, stage, slopes[: len(stage)])

    def after(self, steps: int) -> Tensor:
        """The state of the first samples after some steps, in float64."""
        x, ks = self.x[:CHECKED].double(), [k[:CHECKED].double() for k in self.slopes]
        for _ in range(steps):
            x = reference.rk_stage(x, ks[:6], self.rows[-1][:CHECKED])
            ks[0] = ks[6]
        return x


def follows(got: Tensor, exact: Tensor) -> Agreement:
    return checks.same_formula(got[:CHECKED], exact)


# ---- a stage, and the error ----------------------------------------------------------------------


def build_stage(case: Case) -> Work:
    """The last stage: the new state, from five of six slopes."""
    s, stage = Solver(case), odes.STAGES[-1]
    ks, parts = s.slopes[:6], s.terms(stage, s.slopes)
    exact = s.after(1)

    def ours() -> Side:
        out = torch.empty_like(s.x)

        def check() -> Agreement:
            got = ops.rk_stage(s.x, ks, s.rows[-1])[:CHECKED]
            some = [k[:CHECKED] for k in ks]
            plain = reference.rk_stage(s.x[:CHECKED], some, s.rows[-1][:CHECKED])
            return checks.against_reference(got, plain, exact)

        return Side(lambda: ops.rk_stage(s.x, ks, s.rows[-1], out=out), check)

    def in_eager() -> Side:
        out = torch.empty_like(s.x)
        run = lambda: odes.stage(s.x, parts, out)  # noqa: E731
        return Side(run, lambda: follows(run(), exact))

    def in_compiled() -> Side:
        step = compiled(odes.combined, s.x, parts)
        return Side(lambda: step(s.x, parts), lambda: follows(step(s.x, parts), exact))

    return Work(
        [library(ours), peer("eager", in_eager), peer("compile", in_compiled), limits.triad(s.x)],
        bytes=7 * s.x.nbytes,
    )


def build_error(case: Case) -> Work:
    """The norm of each sample's error, from six of seven slopes."""
    s = Solver(case)
    new, parts = normal(case), s.terms(odes.ERROR, s.slopes)
    args = (s.x, new, s.slopes, s.error_row, s.tolerances)
    few = [k[:CHECKED].double() for k in s.slopes]
    exact = reference.rk_error(
        s.x[:CHECKED].double(), new[:CHECKED].double(), few, s.error_row[:CHECKED], s.tolerances
    )

    def side(run: Callable[[], Tensor]) -> Side:
        return Side(run, lambda: follows(run().to(case.dtype), exact))

    def in_compiled() -> Side:
        step = compiled(odes.error_norms, s.x, new, parts, ATOL, RTOL)
        return side(lambda: step(s.x, new, parts, ATOL, RTOL))

    def in_eager() -> Side:
        errors = odes.Errors(s.x, ATOL, RTOL)
        return side(lambda: errors(s.x, new, parts))

    return Work(
        [
            library(lambda: side(lambda: ops.rk_error(*args))),
            peer("eager", in_eager),
            peer("compile", in_compiled),
            limits.read(s.x),
        ],
        bytes=8 * s.x.nbytes,
    )


# ---- whole steps ---------------------------------------------------------------------------------


def build_steps(case: Case) -> Work:
    """``steps`` steps of Dormand and Prince: stages, error, and on to the next state."""
    steps = case.params["steps"]
    s = Solver(case, one_step=case.params.get("h") == 1)
    exact = s.after(steps)

    def side(run: Callable[[], Tensor]) -> Side:
        return Side(run, lambda: follows(run(), exact))

    def ours() -> Side:
        x, first, stage, new = (torch.empty_like(s.x) for _ in range(4))
        ks = [first, *s.slopes[1:]]

        def run() -> Tensor:
            x.copy_(s.x)
            first.copy_(s.slopes[0])
            ops.rk_stage(x, ks[:1], s.rows[0], out=stage)
            for _ in range(steps):
                for i in range(1, 5):
                    ops.rk_stage(x, ks[: i + 1], s.rows[i], out=stage)
                ops.rk_stage(x, ks[:6], s.rows[5], out=new)
                ops.rk_error(x, new, ks, s.error_row, s.tolerances)
                ops.rk_advance_(x, first, new, ks[6], s.accepted, out=stage, coefficients=s.rows[0])
            return x

        return side(run)

    def in_eager() -> Side:
        x, first, stage, new = (torch.empty_like(s.x) for _ in range(4))
        ks = [first, *s.slopes[1:]]
        rows = [s.terms(row, ks) for row in odes.STAGES]
        errors, error_terms = odes.Errors(x, ATOL, RTOL), s.terms(odes.ERROR, ks)
        accepted = s.accepted.reshape(-1, *[1] * (x.dim() - 1))

        def run() -> Tensor:
            x.copy_(s.x)
            first.copy_(s.slopes[0])
            for _ in range(steps):
                for row in rows[:5]:
                    odes.stage(x, row, stage)
                odes.stage(x, rows[5], new)
                errors(x, new, error_terms)
                torch.where(accepted, new, x, out=x)
                torch.where(accepted, ks[6], first, out=first)
            return x

        return side(run)

    def in_torchdiffeq() -> Side:
        return side(odes.torchdiffeq_dopri5(s.x, s.slopes, STEP, steps))

    candidates = [library(ours), peer("eager", in_eager)]
    if case.params.get("h") == 1:  # it has one for all samples
        candidates.append(peer("torchdiffeq", in_torchdiffeq))
    return Work([*candidates, limits.triad(s.x)], bytes=44 * steps * s.x.nbytes)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Images in a cache, an array in memory, and points in a plane."""
    family = "runge_kutta"
    shape: tuple[int, ...]
    if quick:
        few = ("fastscore", "eager", "torchdiffeq", "triad", "read")
        shape = (16, 3, 16, 16)
        for op, build in (("rk_stage", build_stage), ("rk_error", build_error)):
            yield Case(op, family, build, shape, device=device, providers=few)
        yield Case(
            "rk45_step", family, build_steps, shape, device=device, params={"steps": 2, "h": 1},
            clock="host", providers=few,
        )  # fmt: skip
        return
    images, large, points = (64, 3, 32, 32), (1024, 16384), (128, 2)
    for op, build in (("rk_stage", build_stage), ("rk_error", build_error)):
        yield Case(op, family, build, images, device=device)
        needs = size(torch.Size(large).numel(), buffers=24)
        yield Case(op, family, build, large, device=device, **needs)
    step, ten = ("rk45_step", family, build_steps), {"steps": 10}
    yield Case(*step, images, device=device, params=ten, clock="host")
    for shape in (images, points):
        yield Case(*step, shape, device=device, params=ten | {"h": 1}, clock="host")
