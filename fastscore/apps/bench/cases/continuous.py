"""The family ``continuous``: the steps of samplers in continuous time but for the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore import ops, random
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size, table
from fastscore.apps.bench.peers import continuous, eager, papers
from fastscore.apps.bench.peers.compiled import compiled

SIGMA, NEXT_SIGMA, SNR = 1.0, 0.97, 0.16
H, RTOL, ATOL = 1e-3, 1e-3, 1e-3
# Passes over an array in a step of Dormand and Prince's pair: five stages that read the state and
# two to six slopes, one of them left unread in the last, and write one; the error, which reads two
# states and six slopes; the advance, which reads two arrays and writes three.
PASSES = sum(2 + slopes for slopes in (2, 3, 4, 5, 5)) + 8 + 5


# ---- predictor and corrector -------------------------------------------------------------------


def build_predictor_corrector(case: Case) -> Work:
    """Reverse diffusion, then the annealed corrector, of a VE process, both scores given."""
    x, at, below = normal(case), normal(case), normal(case)
    d, e = SIGMA**2 - NEXT_SIGMA**2, 2 * (SNR * NEXT_SIGMA) ** 2
    upper, lower = (x.new_full((len(x),), sigma) for sigma in (SIGMA, NEXT_SIGMA))

    def side(run: Callable[[], Tensor], once: Callable[[Tensor], Tensor]) -> Side:
        """``once`` makes a step from a state that it may write to."""

        def check() -> Agreement:
            count = checks.repeats(x.numel())
            states = torch.stack([once(x.clone()) for _ in range(count)]).double()
            left = states - x.double() - d * at.double() - e * below.double()
            z = left / (d + 2 * e) ** 0.5
            return checks.standard_normal(z, *(t.double().expand_as(z) for t in (x, at, below)))

        return Side(run, check)

    def ours() -> Side:
        state, key = x.clone(), random.key(0, device=case.device)
        predict = table((1.0, d, d**0.5, 0.0), device=case.device)
        correct = table((1.0, e, (2 * e) ** 0.5, 0.0), device=case.device)

        def step(state: Tensor) -> Tensor:
            return ops.langevin_step_(
                ops.langevin_step_(state, at, predict, key), below, correct, key
            )

        def once(start: Tensor) -> Tensor:
            key[1] += 1
            ops.langevin_step_(start, at, predict, key)
            key[1] += 1
            return ops.langevin_step_(start, below, correct, key)

        return side(lambda: step(state), once)

    def in_place(state: Tensor) -> Tensor:
        return eager.predictor_corrector_(state, at, below, SIGMA, NEXT_SIGMA, SNR)

    def in_eager() -> Side:
        state = x.clone()
        return side(lambda: in_place(state), in_place)

    def in_compiled() -> Side:
        state = x.clone()
        args = (at, below, SIGMA, NEXT_SIGMA, SNR)
        step = compiled(eager.predictor_corrector_, state, *args)
        return side(lambda: step(state, *args), lambda start: step(start, *args))

    def as_published() -> Side:
        def step(state: Tensor) -> Tensor:
            return papers.predictor_corrector(state, at, below, upper, lower, SNR)

        return side(lambda: step(x), step)

    return Work(
        [
            library(ours),
            peer("eager", in_eager),
            peer("compile", in_compiled),
            peer("score_sde step", as_published),
            limits.axpy(x),
        ],
        bytes=6 * x.nbytes,
        operations=2 * (limits.NORMAL + 3) * case.elements,
    )


# ---- Runge-Kutta -------------------------------------------------------------------------------


def build_rk45(case: Case) -> Work:
    """``steps`` steps of Dormand and Prince's pair: stages, errors, the choice of what stays.

    The slopes are alike but in memory of their own, so that a step is x + h slope.
    """
    x, slope, steps = normal(case), normal(case), case.params["steps"]
    batch = (len(x), *[1] * (x.dim() - 1))

    def side(run: Callable[[], Tensor]) -> Side:
        def check() -> Agreement:
            expected = x.double() + steps * H * slope.double()
            return checks.same_formula(run().reshape(x.shape), expected)

        return Side(run, check)

    def repeated(step: Callable[[], Tensor]) -> Side:
        def run() -> Tensor:
            for _ in range(steps - 1):
                step()
            return step()

        return side(run)

    def ours() -> Side:
        state, first = x.clone(), slope.clone()
        stage = x + H * eager.DOPRI5[0][0] * slope
        new, slopes = torch.empty_like(x), [slope.clone() for _ in eager.DOPRI5]
        tolerances = torch.tensor([ATOL, RTOL], dtype=torch.float64, device=case.device)

        def row(start: float, *weights: float) -> Tensor:
            """Coefficients of each sample's own, as each sample has its own step."""
            numbers = [start, *(H * weight for weight in weights)]
            return table(*[tuple(numbers)] * len(x), device=case.device)

        rows = [row(1.0, *weights) for weights in eager.DOPRI5]
        error_row = row(0.0, *eager.DOPRI5_ERROR)

        def step() -> Tensor:
            """The first stage is there, made by the step before."""
            known = [first]
            for i, coefficients in enumerate(rows[1:], 1):
                known.append(slopes[i - 1])
                ops.rk_stage(state, known, coefficients, out=new if i == 5 else stage)
            known.append(slopes[5])
            error = ops.rk_error(state, new, known, error_row, tolerances)
            return ops.rk_advance_(
                state, first, new, slopes[5], error <= 1, out=stage, coefficients=rows[0]
            )

        return repeated(step)

    def in_eager() -> Side:
        """One step size for all, which spares the multiplication by a tensor."""
        state, first, out = x.clone(), slope.clone(), torch.empty_like(x)
        slopes = [slope.clone() for _ in eager.DOPRI5]

        def step() -> Tensor:
            turn = iter(slopes)
            new, known = eager.dopri5_step(lambda _: next(turn), state, first, H, out)
            accepted = eager.dopri5_error(state, new, known, H, RTOL, ATOL).le(1).reshape(batch)
            torch.where(accepted, known[-1], first, out=first)
            return torch.where(accepted, new, state, out=state)

        return repeated(step)

    def of_others(provider: str) -> Callable[[], Side]:
        return lambda: side(continuous.dopri5_steps(provider, slope, x, steps, H, RTOL, ATOL))

    return Work(
        [
            library(ours),
            peer("eager", in_eager),
            peer("torchdiffeq", of_others("torchdiffeq")),
            peer("torchode", of_others("torchode")),
            limits.axpy(x),
        ],
        bytes=steps * PASSES * x.nbytes,
    )


def cases(device: str, quick: bool) -> Iterator[Case]:
    """At the size of a batch of images."""
    family = "continuous"
    shape = (16, 1, 8, 8) if quick else (64, 3, 32, 32)
    n = torch.Size(shape).numel()
    quickest: tuple[str, ...] = ("fastscore", "eager", "score_sde step", "axpy")
    few = quickest if quick else None
    yield Case(
        "predictor_corrector_step", family, build_predictor_corrector, shape, device=device,
        providers=few, **size(n),
    )  # fmt: skip
    yield Case(
        "rk45_step", family, build_rk45, shape, device=device, params={"steps": 2 if quick else 10},
        providers=few, **size(n, buffers=48),
    )  # fmt: skip
