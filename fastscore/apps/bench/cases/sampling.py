"""Whole jobs of the family ``jobs``: annealed Langevin dynamics over a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import fastscore
from fastscore import random, reference
from fastscore.apps.bench import checks
from fastscore.apps.bench.case import Agreement, Candidate, Case, Side, Work, library, peer
from fastscore.apps.bench.cases import networks
from fastscore.apps.bench.peers import eager, in_jax, papers
from fastscore.samplers.annealed import annealed_table

SIGMA_MAX, SIGMA_MIN, STEP_SIZE = 1.0, 0.1, 2e-3
SEED = 0
FEWEST_SAMPLES = 64  # whose mean squares are compared


def build(network: networks.Network) -> Callable[[Case], Work]:
    """``levels`` times ``steps`` steps from a given state, without the last denoising."""

    def work(case: Case) -> Work:
        steps, levels = case.params["steps"], case.params["levels"]
        model = network.make(case.device)
        exact_sigmas = fastscore.geometric_sigmas(SIGMA_MAX, SIGMA_MIN, levels, dtype=torch.float64)
        sigmas = exact_sigmas.tolist()
        x = SIGMA_MAX * torch.randn(case.shape, device=case.device)

        def by_reference(seed: int) -> Tensor:
            """The chain in plain PyTorch, with the noise that the library draws."""
            state, key = x.clone(), random.key(seed, device=case.device)
            rows = annealed_table(exact_sigmas, steps, STEP_SIZE, "full", denoise=False)
            rows = rows.to(case.device)
            with torch.no_grad():
                for step in range(len(rows)):
                    sigma = x.new_full((len(x),), sigmas[step // steps])
                    reference.langevin_step_(state, model(state, sigma), rows, key)
                    key[1] += 1
            return state

        def sizes(run: Callable[[int], Tensor]) -> Tensor:
            """Mean squares of enough samples."""
            repeats = -(-FEWEST_SAMPLES // len(x))
            return torch.cat([run(i).flatten(1).square().mean(1).cpu() for i in range(repeats)])

        @functools.cache
        def expected() -> Tensor:
            return sizes(by_reference)

        def alike(run: Callable[[], Tensor]) -> Agreement:
            return checks.same_mean(sizes(lambda _: run()), expected())

        def ours(seed: int | None = None) -> Tensor:
            return fastscore.annealed_langevin(
                model,
                sigmas,
                x,
                steps_per_sigma=steps,
                step_size=STEP_SIZE,
                convention="full",
                denoise=False,
                seed=seed,
                cuda_graph="auto",
            )

        def check_ours() -> Agreement:
            return checks.same_formula(ours(SEED), by_reference(SEED))

        def side(loop: Callable[..., Tensor]) -> Callable[[], Side]:
            def run() -> Tensor:
                with torch.no_grad():
                    return loop(model, sigmas, x, steps, STEP_SIZE)

            return lambda: Side(run, lambda: alike(run))

        def in_jax_() -> Side:
            layers, score = in_jax.weights(model), in_jax.score_mlp(model.data_std)

            def score_of(x: in_jax.Array, sigma: in_jax.Array) -> in_jax.Array:
                return score(layers, x, sigma)

            chain = in_jax.annealed_langevin(score_of, sigmas, x, steps, STEP_SIZE)

            def run() -> Tensor:
                chain()
                return in_jax.to_torch(chain.out)

            return chain.side(lambda: alike(run))

        def network_alone() -> None:
            with torch.no_grad():
                for level in sigmas:
                    sigma = x.new_full((len(x),), level)
                    for _ in range(steps):
                        model(x, sigma)

        candidates = [
            library(lambda: Side(ours, check_ours)),
            peer("eager", side(eager.annealed_langevin)),
            peer("NCSN loop", side(lambda *args: papers.ncsn_annealed_langevin(*args)[0])),
            peer("NCSNv2 loop", side(lambda *args: papers.ncsnv2_annealed_langevin(*args)[0])),
        ]
        if network.name == "mlp":
            candidates.append(peer("jax", in_jax_))
        candidates.append(Candidate("network", "network", lambda: Side(network_alone)))
        return Work(candidates)

    return work


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Over each network, at three sizes."""
    for network in networks.QUICK if quick else networks.SAMPLED:
        small = network.name == "mlp" and network.shape[0] < 100 and not quick
        levels, steps = (20, 5) if small else (5, 2)
        params = {"network": network.name, "levels": levels, "steps": steps}
        yield Case(
            "sample_annealed_langevin", "jobs", build(network), (network.batch, *network.shape),
            device=device, params=params, clock="host",
        )  # fmt: skip
