"""The family ``dual``: an activation's value and tangents in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastscore import ops, reference
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size
from fastscore.apps.bench.peers import eager, in_jax
from fastscore.apps.bench.peers.compiled import compiled

CHECKED = 64  # rows compared with the reference
Pair = tuple[Tensor, Tensor]


def build(case: Case) -> Work:
    """phi(h) and phi'(h) hdot for M tangents."""
    name, count = case.params["activation"], case.params["tangents"]
    h, hdot = normal(case), normal(case, count)
    formula = eager.DUALS[name]

    def exact() -> Pair:
        return reference.dual(h[:CHECKED].double(), hdot[:, :CHECKED].double(), name)

    def same(got: Pair) -> Agreement:
        first = got[0][:CHECKED], got[1][:, :CHECKED]
        return checks.worst(*map(checks.same_formula, first, exact()))

    def ours() -> Side:
        def run() -> Pair:
            return ops.dual(h, hdot, name)

        def check() -> Agreement:
            got = run()
            first = got[0][:CHECKED], got[1][:, :CHECKED]
            plain = reference.dual(h[:CHECKED], hdot[:, :CHECKED], name)
            return checks.worst(*map(checks.against_reference, first, plain, exact()))

        return Side(run, check)

    def by(run: Callable[[], Pair]) -> Side:
        return Side(run, lambda: same(run()))

    def in_compiled() -> Side:
        step = compiled(formula, h, hdot)
        return by(lambda: step(h, hdot))

    def in_jax_() -> Side:
        step = in_jax.dual(name, h, hdot)

        def check() -> Agreement:
            step()
            value, tangents = (in_jax.to_torch(each).to(h.device) for each in step.out)
            return same((value, tangents))

        return step.side(check)

    return Work(
        [
            library(ours),
            peer("eager", lambda: by(lambda: formula(h, hdot))),
            peer("compile", in_compiled),
            peer("jax", in_jax_),
            limits.copy(hdot),
        ],
        bytes=2 * (h.nbytes + hdot.nbytes),
    )


def build_training(case: Case) -> Work:
    """The same with its backward: gradients of a weighted sum for h and hdot."""
    name, count = case.params["activation"], case.params["tangents"]
    h, hdot = normal(case).requires_grad_(True), normal(case, count).requires_grad_(True)
    weights = torch.randn_like(h), torch.randn_like(hdot)
    formula = eager.DUALS[name]

    def gradients(dual: Callable[[Tensor, Tensor], Pair], h: Tensor, hdot: Tensor) -> Pair:
        outputs = dual(h, hdot)
        wanted = [w.to(h.dtype)[..., : len(h), :] for w in weights]
        to_h, to_hdot = torch.autograd.grad(outputs, (h, hdot), wanted)
        return to_h, to_hdot

    def first() -> Pair:
        return h[:CHECKED].detach(), hdot[:, :CHECKED].detach()

    def exact() -> Pair:
        inputs = [each.double().requires_grad_(True) for each in first()]
        return gradients(lambda h, hdot: reference.dual(h, hdot, name), *inputs)

    def same(got: Pair) -> Agreement:
        return checks.worst(
            *map(checks.same_formula, (got[0][:CHECKED], got[1][:, :CHECKED]), exact())
        )

    def by(dual: Callable[[Tensor, Tensor], Pair]) -> Side:
        def run() -> Pair:
            return gradients(dual, h, hdot)

        return Side(run, lambda: same(run()))

    def ours() -> Side:
        side = by(lambda h, hdot: ops.dual(h, hdot, name))

        def check() -> Agreement:
            got = side.run()
            inputs = [each.requires_grad_(True) for each in first()]
            plain = gradients(lambda h, hdot: reference.dual(h, hdot, name), *inputs)
            got = got[0][:CHECKED], got[1][:, :CHECKED]
            return checks.worst(*map(checks.against_reference, got, plain, exact()))

        return Side(side.run, check)

    return Work(
        [
            library(ours),
            peer("eager", lambda: by(formula)),
            peer("compile", lambda: by(compiled(formula, h, hdot))),
            limits.copy(hdot),
        ],
        bytes=5 * (h.nbytes + hdot.nbytes),  # forward 2; backward reads 2, writes 1
    )


def cases(device: str, quick: bool) -> Iterator[Case]:
    """The hidden layer of a network on a batch of 512."""
    shape = (128, 128) if quick else (512, 512)
    needs = size(torch.Size(shape).numel(), buffers=60)
    few = ("fastscore", "eager", "jax", "copy")
    names = ("silu",) if quick else ("silu", "softplus", "tanh", "gelu")
    for name in names:
        params = {"activation": name, "tangents": 1}
        kept = None if name == "silu" and not quick else few
        yield Case(
            "dual", "dual", build, shape, device=device, params=params, providers=kept, **needs
        )
    params = {"activation": "silu", "tangents": 8}
    if not quick:
        yield Case(
            "dual", "dual", build, shape, device=device, params=params, providers=few, **needs
        )
    params = {"activation": "silu", "tangents": 1}
    kept = few if quick else None
    yield Case(
        "dual_with_grad", "dual", build_training, shape, device=device, params=params,
        providers=kept, **needs,
    )  # fmt: skip
