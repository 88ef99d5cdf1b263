"""The family ``sliced``: the terms of sliced score matching, and projections on their own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore import ops, random, reference
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size
from fastscore.apps.bench.peers import eager, in_jax, papers
from fastscore.apps.bench.peers.compiled import compiled

CHECKED = 8  # samples compared with the reference
Terms = tuple[Tensor, Tensor, Tensor]
Formula = Callable[[Tensor, Tensor, Tensor], Terms]

# How each side draws, what the numbers must look like, and the operations of one.
DRAWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Agreement], float]] = {
    "rademacher": (eager.rademacher_, checks.signs, limits.SIGN),
    "gaussian": (Tensor.normal_, checks.standard_normal, limits.NORMAL),
}


def build_terms(case: Case) -> Work:
    """v'Jv, (v's)^2/2 and |s|^2/2 with the projections drawn; s and Jv are given."""
    count, kind = case.params["projections"], case.params["distribution"]
    draw_, statistic, operations = DRAWS[kind]
    score, jvp = normal(case), normal(case, count)

    def same(got: Terms, v: Tensor, score: Tensor, jvp: Tensor) -> Agreement:
        exact = eager.sliced_terms(score.double(), jvp.double(), v.double())
        return checks.worst(*map(checks.same_formula, got, exact))

    def ours() -> Side:
        key = random.key(0, device=case.device)

        def check() -> Agreement:
            got = ops.sliced_terms(score, jvp, key, distribution=kind)
            s, j = score[:CHECKED], jvp[:, :CHECKED]
            plain = reference.sliced_terms(s, j, key, distribution=kind)
            exact = reference.sliced_terms(s.double(), j.double(), key, distribution=kind)
            first = [each[..., :CHECKED] for each in got]
            by = functools.partial(checks.against_reference, noise=True)
            return checks.worst(*map(by, first, plain, exact))

        return Side(lambda: ops.sliced_terms(score, jvp, key, distribution=kind), check)

    def by(formula: Formula) -> Callable[[], Side]:
        def make() -> Side:
            def check() -> Agreement:
                v = draw_(torch.empty_like(jvp))
                return checks.worst(
                    same(formula(score, jvp, v), v, score, jvp),
                    statistic(checks.gathered(lambda: draw_(torch.empty_like(jvp)))),
                )

            return Side(lambda: formula(score, jvp, draw_(torch.empty_like(jvp))), check)

        return make

    def in_compiled() -> Side:
        def whole(score: Tensor, jvp: Tensor) -> Terms:
            return eager.sliced_terms(score, jvp, draw_(torch.empty_like(jvp)))

        step = compiled(whole, score, jvp)

        def check() -> Agreement:
            """Its v can't be seen; v'Jv over |Jv| is about normal in many dimensions."""
            _, _, half_s2 = step(score, jvp)
            size = jvp.double().flatten(2).norm(dim=-1)
            return checks.worst(
                checks.same_formula(half_s2, score.double().square().flatten(1).sum(1) / 2),
                checks.standard_normal(checks.gathered(lambda: step(score, jvp)[0] / size)),
            )

        return Side(lambda: step(score, jvp), check)

    def in_jax_() -> Side:
        step, terms = in_jax.sliced_terms(score, jvp, kind)

        def check() -> Agreement:
            v = draw_(torch.empty_like(jvp[:, :CHECKED]))
            s, j = score[:CHECKED], jvp[:, :CHECKED]
            got = [in_jax.to_torch(each) for each in terms(*map(in_jax.to_jax, (s, j, v)))]
            return same((got[0], got[1], got[2]), v.cpu(), s.cpu(), j.cpu())

        return step.side(check)

    return Work(
        [
            library(ours),
            peer("eager", by(eager.sliced_terms)),
            peer("SSM loss", by(papers.sliced_terms)),
            peer("compile", in_compiled),
            peer("jax", in_jax_),
            limits.read(score, jvp),
        ],
        bytes=score.nbytes + jvp.nbytes,
        operations=((operations + 2) * count + 1) * case.elements,
    )


def build_projections(case: Case) -> Work:
    """M projection vectors for each sample."""
    count, kind = case.params["projections"], case.params["distribution"]
    draw_, statistic, operations = DRAWS[kind]
    like = normal(case, count)

    def ours() -> Side:
        key = random.key(0, device=case.device)

        def run() -> Tensor:
            return ops.projections(key, case.shape, count, distribution=kind, dtype=case.dtype)

        def check() -> Agreement:
            few = (min(CHECKED, case.shape[0]), *case.shape[1:])
            args = (key, few, count)
            exact = reference.projections(*args, distribution=kind, dtype=torch.float64)
            found = run()
            accuracy = checks.against_reference(
                found[:, :CHECKED], exact.to(case.dtype), exact, noise=True
            )
            return checks.worst(accuracy, statistic(checks.some(found)))

        return Side(run, check)

    def in_eager() -> Side:
        def run() -> Tensor:
            return draw_(torch.empty_like(like))

        return Side(run, lambda: statistic(checks.gathered(lambda: checks.some(run()))))

    return Work(
        [library(ours), peer("eager", in_eager), limits.fill(like), limits.read(like)],
        bytes=like.nbytes,
        operations=operations * count * case.elements,
    )


def cases(device: str, quick: bool) -> Iterator[Case]:
    """One and several projections of images, both distributions; one of points in a plane."""
    shape = (64, 784) if quick else (512, 3072)
    few = ("fastscore", "eager", "SSM loss", "jax", "read")
    whole = few if quick else None
    needs = size(torch.Size(shape).numel(), buffers=40)
    for kind, count, kept in (
        ("rademacher", 1, whole),
        ("rademacher", 4, few),
        ("gaussian", 1, few),
    ):
        if quick and kind == "gaussian":
            continue
        params = {"distribution": kind, "projections": count}
        yield Case(
            "sliced_terms", "sliced", build_terms, shape, device=device, params=params,
            providers=kept, **needs,
        )  # fmt: skip
    params = {"distribution": "rademacher", "projections": 1}
    # The second is in memory, not in a cache.
    for other in [] if quick else [(65536, 2), (4096, 4096)]:
        yield Case(
            "sliced_terms", "sliced", build_terms, other, device=device, params=params,
            providers=few, **size(math.prod(other)),
        )  # fmt: skip
    params = {"distribution": "rademacher", "projections": 4}
    yield Case(
        "projections", "sliced", build_projections, shape, device=device, params=params, **needs
    )
