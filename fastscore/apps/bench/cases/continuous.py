"""The family ``continuous``: the steps of samplers in continuous time but for the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore import ops, random
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size, table
from fastscore.apps.bench.peers import eager, papers
from fastscore.apps.bench.peers.compiled import compiled

SIGMA, NEXT_SIGMA, SNR = 1.0, 0.97, 0.16


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
