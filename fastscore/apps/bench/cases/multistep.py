"""The family ``multistep``: one step of DPM-Solver++(2M) and of its stochastic form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore import ops, random, reference
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size, table
from fastscore.apps.bench.peers import eager
from fastscore.apps.bench.peers.compiled import compiled

RATIO, NOW, BEFORE = 0.2, 0.9, -0.2  # of the state, of this mean and of the one before
SQUARE = 0.01  # s^2: the mean is x + s^2 score
NOISE = 0.01  # of the stochastic form
CHECKED = 2**16

Pair = tuple[Tensor, Tensor]  # the state, and the mean that is the next step's history


def build(case: Case) -> Work:
    """D = x + s^2 score, x <- ratio x + now D + before H (+ noise), H <- D; always one score."""
    x, history, score = normal(case), normal(case), normal(case)
    noise = NOISE if case.params["solver"] == "sde" else 0.0
    first = slice(None, CHECKED)
    row = (RATIO + NOW, NOW * SQUARE, noise, 0.0, 1.0, 1.0, BEFORE, 1.0, SQUARE, 0.0)
    coefficients = (SQUARE, RATIO, NOW, BEFORE, noise)

    def exact(dtype: torch.dtype) -> Pair:
        """Without noise, of some elements."""
        part, past, s = (t.flatten()[first].to(dtype, copy=True) for t in (x, history, score))
        key = random.key(0, device=case.device)
        still = (*row[:2], 0.0, *row[3:])
        reference.multistep_step_(part, past, s, table(still, device=case.device), key)
        return part, past

    def same(once: Callable[[], Pair]) -> Agreement:
        """Another implementation's: its mean to rounding, and its noise by statistics."""
        state, mean = once()
        want, past = exact(torch.float64)
        found = [checks.same_formula(mean.flatten()[first], past)]
        added = state.flatten()[first].double() - want
        if noise:
            draws = [added]
            for _ in range(checks.repeats(len(added)) - 1):
                draws.append(once()[0].flatten()[first].double() - want)
            found.append(checks.standard_normal(torch.cat(draws) / noise))
        else:
            found.append(checks.same_formula(state.flatten()[first], want))
        return checks.worst(*found)

    def ours() -> Side:
        state, past = x.clone(), history.clone()
        rows, key = table(row, device=case.device), random.key(0, device=case.device)

        def once() -> Pair:
            after, mean = x.clone(), history.clone()
            key[1] += 1
            ops.multistep_step_(after, mean, score, rows, key)
            return after, mean

        def check() -> Agreement:
            got = once()[1].flatten()[first]
            found = checks.against_reference(got, exact(case.dtype)[1], exact(torch.float64)[1])
            return checks.worst(found, same(once))

        return Side(lambda: ops.multistep_step_(state, past, score, rows, key), check)

    def by(step: Callable[..., Tensor]) -> Side:
        # What the next step takes is the mean itself: nobody copies it.
        state, past = x.clone(), history.clone()
        carried = [past]

        def run() -> Tensor:
            carried[0] = step(state, carried[0], score, *coefficients)
            return state

        def once() -> Pair:
            after = x.clone()
            return after, step(after, history, score, *coefficients)

        return Side(run, lambda: same(once))

    def in_compiled() -> Side:
        given = (x.clone(), history, score, *coefficients)
        return by(compiled(eager.multistep_step_, *given))

    return Work(
        [
            library(ours),
            peer("eager", lambda: by(eager.multistep_step_)),
            peer("compile", in_compiled),
            limits.triad(x),
            limits.axpy(x),
        ],
        bytes=5 * x.nbytes,
        operations=((limits.NORMAL if noise else 0) + 7) * case.elements,
    )


def cases(device: str, quick: bool) -> Iterator[Case]:
    """The step without noise and with it, at three sizes; and in half precision."""
    family, op = "multistep", "multistep_step_"
    if quick:
        few = ("fastscore", "eager", "triad", "axpy")
        for solver in ("ode", "sde"):
            yield Case(
                op, family, build, (2**16,), device=device, params={"solver": solver},
                providers=few,
            )  # fmt: skip
        return
    for shape in ((2**24,), (2**16,), (128, 2)):
        for solver in ("ode", "sde"):
            n = torch.Size(shape).numel()
            yield Case(
                op, family, build, shape, device=device, params={"solver": solver}, **size(n)
            )
    uncompiled = ("fastscore", "eager", "triad", "axpy")
    yield Case(
        op, family, build, (2**24,), torch.bfloat16, device, params={"solver": "ode"},
        providers=uncompiled, **size(2**24, 8),
    )  # fmt: skip
