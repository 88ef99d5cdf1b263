"""The family ``random``: filling a tensor with noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore import ops, random, reference
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import empty, size
from fastscore.apps.bench.peers import eager, in_jax
from fastscore.apps.bench.peers.compiled import compiled

CHECKED = 2**16  # elements compared with the reference, at the start

Statistic = Callable[[Tensor], Agreement]
FILLS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor], Statistic, float]] = {
    "normal_": (ops.normal_, Tensor.normal_, checks.standard_normal, limits.NORMAL),
    "uniform_": (ops.uniform_, Tensor.uniform_, checks.uniform, limits.UNIFORM),
    "rademacher_": (ops.rademacher_, eager.rademacher_, checks.signs, limits.SIGN),
}


def build(case: Case) -> Work:
    """``op`` is the name of one of the fills."""
    fused, plain, statistic, operations = FILLS[case.op]
    out = empty(case)

    def filling(run: Callable[[], Tensor]) -> Side:
        return Side(run, lambda: statistic(checks.gathered(lambda: checks.some(run()))))

    def ours() -> Side:
        key = random.key(0, device=case.device)

        def check() -> Agreement:
            fused(out, key)
            part = out.flatten()[:CHECKED]
            short = torch.empty(part.shape, device=case.device, dtype=torch.float64)
            exact = getattr(reference, case.op)(short, key)
            rounded = exact.to(out.dtype)
            return checks.worst(
                checks.against_reference(part, rounded, exact, noise=True),
                statistic(checks.gathered(fresh)),
            )

        def fresh() -> Tensor:
            key[1] += 1
            return checks.some(fused(out, key))

        return Side(lambda: fused(out, key), check)

    def in_eager() -> Side:
        return filling(lambda: plain(out))

    def in_compiled() -> Side:
        fill = compiled(plain, out)
        return filling(lambda: fill(out))

    def in_jax_() -> Side:
        step = in_jax.fill(case.op.rstrip("_"), out)

        def fresh() -> Tensor:
            step()
            return checks.some(in_jax.to_torch(step.out))

        return step.side(lambda: statistic(checks.gathered(fresh)))

    return Work(
        [
            library(ours),
            peer("eager", in_eager),
            peer("compile", in_compiled),
            peer("jax", in_jax_),
            limits.fill(out),
            limits.read(out),
        ],
        bytes=out.nbytes,
        operations=operations * case.elements,
    )


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Large and in the cache; in bfloat16 too."""
    for op in FILLS:
        for n in (2**18,) if quick else (2**16, 2**24):
            providers = None
            if quick or n < 2**24:
                providers = ("fastscore", "eager", "jax", "fill", "read")
            yield Case(op, "random", build, (n,), device=device, providers=providers, **size(n))
    if not quick:
        keep = ("fastscore", "eager", "jax", "fill", "read")
        n = 2**24
        for op in ("normal_", "rademacher_"):
            dtype = torch.bfloat16
            yield Case(op, "random", build, (n,), dtype, device, providers=keep, **size(n, 2))
