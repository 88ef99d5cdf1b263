"""The family ``langevin``: one step, and chains of steps whose score costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import fastscore
from fastscore import ops, random, reference
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size, table
from fastscore.apps.bench.peers import eager, in_jax, papers, samplers
from fastscore.apps.bench.peers.compiled import compiled

B, C = 0.01, 0.01  # alike, so that the statistics see an error in either
CHECKED = 2**16
ALPHA = 0.05  # of the chains on N(0, I)
SIGMA_MAX, SIGMA_MIN, STEP_SIZE = 10.0, 0.1, 2e-3  # of the annealed chains


# ---- one step ----------------------------------------------------------------------------------


def build_step(case: Case) -> Work:
    """x <- x + b s + c z in place, always with the same score."""
    x, score = normal(case), normal(case)

    def noise(once: Callable[[Tensor], Tensor]) -> Agreement:
        """The noise that a step added, which all else must leave standard normal."""
        start = x * C
        part, s = checks.some(start).double(), checks.some(score).double()
        count = checks.repeats(len(part))
        after = [checks.some(once(start.clone())).double() for _ in range(count)]
        found = [(state.to(part.device) - part - B * s) / C for state in after]
        return checks.standard_normal(torch.cat(found), part.repeat(count), s.repeat(count))

    def ours() -> Side:
        state, key = x.clone(), random.key(0, device=case.device)
        rows = table((1.0, B, C, 0.0), device=case.device)

        def once(start: Tensor) -> Tensor:
            key[1] += 1
            return ops.langevin_step_(start, score, rows, key)

        def check() -> Agreement:
            got = ops.langevin_step(x, score, rows, key).flatten()[:CHECKED]
            part, s = x.flatten()[:CHECKED], score.flatten()[:CHECKED]
            plain = reference.langevin_step(part, s, rows, key)
            exact = reference.langevin_step(part.double(), s.double(), rows, key)
            return checks.worst(
                checks.against_reference(got, plain, exact, noise=True), noise(once)
            )

        return Side(lambda: ops.langevin_step_(state, score, rows, key), check)

    def in_eager() -> Side:
        state = x.clone()

        def check() -> Agreement:
            return noise(lambda start: eager.langevin_step_(start, score, B, C))

        return Side(lambda: eager.langevin_step_(state, score, B, C), check)

    def in_compiled() -> Side:
        state = x.clone()
        step = compiled(eager.langevin_step_, state, score, B, C)

        def check() -> Agreement:
            return noise(lambda start: step(start, score, B, C))

        return Side(lambda: step(state, score, B, C), check)

    def in_jax_() -> Side:
        step = in_jax.langevin_step(x, score, B, C)

        def once(start: Tensor) -> Tensor:
            step.carried[0] = in_jax.to_jax(start)
            step()
            return in_jax.to_torch(step.carried[0])

        return step.side(lambda: noise(once))

    return Work(
        [
            library(ours),
            peer("eager", in_eager),
            peer("compile", in_compiled),
            peer("jax", in_jax_),
            limits.triad(x),
            limits.axpy(x),
        ],
        bytes=3 * x.nbytes,
        operations=(limits.NORMAL + 3) * case.elements,
    )


def build_guided(case: Case) -> Work:
    """x <- x + b (w0 s + w1 t) + c z in place: classifier-free guidance, both terms given."""
    x, score, second = normal(case), normal(case), normal(case)
    pair = (1.5, -0.5)
    weights = torch.tensor(pair, dtype=torch.float64, device=case.device)

    def noise(once: Callable[[Tensor], Tensor]) -> Agreement:
        start = x * C
        count = checks.repeats(x.numel())
        drift = B * (pair[0] * score.double() + pair[1] * second.double())
        found = [(once(start.clone()).double() - start.double() - drift) / C for _ in range(count)]
        unrelated = (t.double().repeat(count, *[1] * (x.dim() - 1)) for t in (score, second))
        return checks.standard_normal(torch.cat(found), *(t.flatten() for t in unrelated))

    def ours() -> Side:
        state, key = x.clone(), random.key(0, device=case.device)
        rows = table((1.0, B, C, 0.0), device=case.device)

        def step(x: Tensor) -> Tensor:
            return ops.langevin_step_(x, score, rows, key, second=second, weights=weights)

        def once(start: Tensor) -> Tensor:
            key[1] += 1
            return step(start)

        return Side(lambda: step(state), lambda: noise(once))

    def by(step: Callable[..., Tensor]) -> Side:
        state = x.clone()

        def run() -> Tensor:
            return step(state, score, second, pair, B, C)

        return Side(run, lambda: noise(lambda start: step(start, score, second, pair, B, C)))

    def in_compiled() -> Side:
        return by(compiled(eager.guided_step_, x.clone(), score, second, pair, B, C))

    return Work(
        [
            library(ours),
            peer("eager", lambda: by(eager.guided_step_)),
            peer("compile", in_compiled),
            limits.triad(x),
            limits.axpy(x),
        ],
        bytes=4 * x.nbytes,
        operations=(limits.NORMAL + 5) * case.elements,
    )


# ---- chains ------------------------------------------------------------------------------------


def negative(x: Tensor) -> Tensor:
    """The score of N(0, I)."""
    return -x


def build_chain(case: Case) -> Work:
    """``steps`` Langevin steps on N(0, I), from a given state to the last."""
    steps, x = case.params["steps"], normal(case)
    decay = (1 - ALPHA) ** steps
    variance = 2 * ALPHA * (1 - decay**2) / (1 - (1 - ALPHA) ** 2)

    def side(run: Callable[[], Tensor]) -> Side:
        def check() -> Agreement:
            ends = checks.gathered(run)
            starts = x.flatten().repeat(len(ends) // x.numel())
            return checks.normal_about(ends, decay * starts, variance)

        return Side(run, check)

    def ours() -> Side:
        return side(
            lambda: fastscore.langevin(negative, x, steps=steps, step_size=ALPHA, convention="full")
        )

    def in_compiled() -> Side:
        def step(x: Tensor) -> Tensor:
            return eager.langevin_step_(x, -x, ALPHA, (2 * ALPHA) ** 0.5)

        step = compiled(step, x.clone())

        def run() -> Tensor:
            state = x.clone()
            for _ in range(steps):
                step(state)
            return state

        return side(run)

    def from_jax(chain: in_jax.Compiled) -> Side:
        def run() -> Tensor:
            chain()
            return in_jax.to_torch(chain.out)

        return chain.side(side(run).check)

    return Work(
        [
            library(ours),
            peer("eager", lambda: side(lambda: eager.langevin(negative, x, steps, ALPHA))),
            peer("compile", in_compiled),
            peer("jax", lambda: from_jax(in_jax.langevin(x, steps, ALPHA))),
            peer("torchebm", lambda: side(samplers.torchebm_langevin(x, steps, ALPHA))),
            peer("blackjax", lambda: from_jax(samplers.blackjax_langevin(x, steps, ALPHA))),
        ]
    )


def build_annealed(case: Case) -> Work:
    """Annealed Langevin dynamics on noise about one data point, 0, whose score is -x/sigma^2."""
    steps, levels = case.params["steps"], case.params["levels"]
    sigmas = fastscore.geometric_sigmas(SIGMA_MAX, SIGMA_MIN, levels).tolist()
    x = normal(case) * SIGMA_MAX
    mean, variance = 1.0, 0.0  # of the end, about the start
    for sigma in sigmas:
        alpha = STEP_SIZE * (sigma / sigmas[-1]) ** 2
        for _ in range(steps):
            mean, variance = (1 - alpha / sigma**2) * mean, (1 - alpha / sigma**2) ** 2 * variance
            variance += 2 * alpha

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return x / -sigma.square().reshape(-1, *[1] * (x.dim() - 1))

    def side(run: Callable[[], Tensor]) -> Side:
        def check() -> Agreement:
            ends = checks.gathered(run)
            starts = x.flatten().repeat(len(ends) // x.numel())
            return checks.normal_about(ends, mean * starts, variance)

        return Side(run, check)

    def ours() -> Tensor:
        return fastscore.annealed_langevin(
            score,
            sigmas,
            x,
            steps_per_sigma=steps,
            step_size=STEP_SIZE,
            convention="full",
            denoise=False,
            conditioning="sigma",
        )

    def in_jax_() -> Side:
        chain = in_jax.annealed_langevin(
            lambda x, sigma: -x / sigma**2, sigmas, x, steps, STEP_SIZE
        )

        def run() -> Tensor:
            chain()
            return in_jax.to_torch(chain.out)

        return chain.side(side(run).check)

    def loop(annealed: Callable[..., tuple[Tensor, object]]) -> Callable[[], Side]:
        return lambda: side(lambda: annealed(score, sigmas, x, steps, STEP_SIZE)[0])

    def plain() -> Tensor:
        return eager.annealed_langevin(score, sigmas, x, steps, STEP_SIZE)

    return Work(
        [
            library(lambda: side(ours)),
            peer("eager", lambda: side(plain)),
            peer("NCSN loop", loop(papers.ncsn_annealed_langevin)),
            peer("NCSNv2 loop", loop(papers.ncsnv2_annealed_langevin)),
            peer("jax", in_jax_),
        ]
    )


def cases(device: str, quick: bool) -> Iterator[Case]:
    """One step at three sizes and in three dtypes, then chains."""
    family = "langevin"
    step = "langevin_step_"
    if quick:
        few = ("fastscore", "eager", "jax", "triad", "axpy")
        for shape in ((2**18,), (128, 2)):
            yield Case(step, family, build_step, shape, device=device, providers=few)
        chain = {"steps": 20}
        few = ("fastscore", "eager", "jax", "torchebm", "blackjax")
        yield Case(
            "langevin", family, build_chain, (256, 16), device=device, params=chain,
            clock="host", providers=few,
        )  # fmt: skip
        anneal = {"levels": 5, "steps": 2}
        yield Case(
            "annealed_langevin", family, build_annealed, (16, 1, 16, 16), device=device,
            params=anneal, clock="host",
        )  # fmt: skip
        return
    for shape in ((2**24,), (2**16,), (128, 2)):
        n = torch.Size(shape).numel()
        yield Case(step, family, build_step, shape, device=device, **size(n))
    for n in (2**24, 2**16):
        yield Case(step, family, build_guided, (n,), device=device, params={"terms": 2}, **size(n))
    uncompiled = ("fastscore", "eager", "jax", "triad", "axpy")
    for dtype, n in ((torch.bfloat16, 2**24), (torch.float16, 2**22), (torch.float64, 2**22)):
        yield Case(
            step, family, build_step, (n,), dtype, device, providers=uncompiled, **size(n, 8)
        )
    for shape, steps in (((128, 2), 1000), ((1024, 16), 300), ((1024, 1024), 20)):
        yield Case(
            "langevin", family, build_chain, shape, device=device, params={"steps": steps},
            clock="host",
        )  # fmt: skip
    for images in ((128, 1, 8, 8), (64, 3, 32, 32)):
        yield Case(
            "annealed_langevin", family, build_annealed, images, device=device,
            params={"levels": 10, "steps": 5}, clock="host",
        )  # fmt: skip
