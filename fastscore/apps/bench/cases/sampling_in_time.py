"""Whole jobs in continuous time over a network: the reverse SDE, and the probability flow."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore.apps.bench import checks
from fastscore.apps.bench.case import Agreement, Candidate, Case, Side, Work, library, peer
from fastscore.apps.bench.cases import networks
from fastscore.apps.bench.peers import eager, papers
from fastscore.sde import VE

PROCESS = VE(0.02, 20.0)
SNR = 0.16


def network_alone(model: Any, x: Tensor, evaluations: int) -> Candidate:
    """The network at one level, as often as the job asks it."""

    def run() -> None:
        with torch.no_grad():
            level = x.new_ones(len(x))
            for _ in range(evaluations):
                model(x, level)

    return Candidate("network", "network", lambda: Side(run))


def build_reverse(network: networks.Network) -> Callable[[Case], Work]:
    """``steps`` intervals of the reverse SDE with the annealed corrector: two evaluations each."""

    def work(case: Case) -> Work:
        steps, model = case.params["steps"], network.make(case.device)
        sigmas = PROCESS.sigma(torch.linspace(1, PROCESS.t_min, steps + 1)).tolist()
        x = sigmas[0] * torch.randn(case.shape, device=case.device)

        def ours(seed: int | None = None, **options: Any) -> Tensor:
            return fastscore.reverse_sde(
                model, PROCESS, x, steps=steps, corrector="annealed", snr=SNR, denoise=False,
                seed=seed, **{"cuda_graph": "auto", **options},
            )  # fmt: skip

        def check() -> Agreement:  # by itself and as replayed: the same arithmetic
            return checks.same_formula(ours(0), ours(0, cuda_graph=False))

        def loop(step: Callable[..., Tensor], per_sample: bool) -> Side:
            def run() -> Tensor:
                state = x.clone()
                with torch.no_grad():
                    for sigma, below in itertools.pairwise(sigmas):
                        levels = [state.new_full((len(state),), s) for s in (sigma, below)]
                        state = step(state, levels, levels if per_sample else (sigma, below))
                return state

            return Side(run)

        def in_eager(state: Tensor, levels: list[Tensor], numbers: Any) -> Tensor:
            sigma, below = numbers
            variance, size = sigma**2 - below**2, 2 * (SNR * below) ** 2
            eager.langevin_step_(state, model(state, levels[0]), variance, variance**0.5)
            return eager.langevin_step_(state, model(state, levels[1]), size, (2 * size) ** 0.5)

        def published(state: Tensor, levels: list[Tensor], numbers: Any) -> Tensor:
            sigma, below = numbers
            state = papers.ve_predictor(state, model(state, sigma), sigma, below)
            return papers.annealed_corrector(state, model(state, below), below, SNR)

        return Work(
            [
                library(lambda: Side(ours, check)),
                peer("eager", lambda: loop(in_eager, False)),
                peer("score_sde loop", lambda: loop(published, True)),
                network_alone(model, x, 2 * steps),
            ]
        )

    return work


def build_heun(network: networks.Network) -> Callable[[Case], Work]:
    """Heun's method on Karras' ladder with its last step to the data: 2 steps - 1 evaluations."""

    def work(case: Case) -> Work:
        steps, model = case.params["steps"], network.make(case.device)
        grid = fastscore.sde.time_grid("bench", PROCESS, "karras", steps, 1.0, PROCESS.t_min)
        sigmas = [*PROCESS.sigma(grid).tolist(), 0.0]
        x = sigmas[0] * torch.randn(case.shape, device=case.device)

        def ours() -> Tensor:
            return fastscore.probability_flow(
                model, PROCESS, x, solver="heun", steps=steps, cuda_graph="auto"
            )

        def in_eager() -> Tensor:
            with torch.no_grad():
                return eager.heun(model, sigmas, x)

        def check() -> Agreement:
            return checks.same_formula(ours(), in_eager())

        return Work(
            [
                library(lambda: Side(ours, check)),
                peer("eager", lambda: Side(in_eager)),
                network_alone(model, x, 2 * steps - 1),
            ]
        )

    return work


def build_adaptive(network: networks.Network) -> Callable[[Case], Work]:
    """The flow to a tolerance: every sample takes its own steps."""

    def work(case: Case) -> Work:
        model, tolerance = network.make(case.device), case.params["tolerance"]
        x = 20.0 * torch.randn(case.shape, device=case.device)

        def ours() -> Tensor:
            return fastscore.probability_flow(
                model, PROCESS, x, solver="rk45", rtol=tolerance, atol=tolerance
            )

        state: Any = fastscore.probability_flow(
            model, PROCESS, x, solver="rk45", rtol=tolerance, atol=tolerance, return_state=True
        )
        evaluations = int(state.evaluations.max())

        def check() -> Agreement:  # a fine solve of fixed steps
            fine = fastscore.probability_flow(model, PROCESS, x, solver="rk4", steps=200)
            scale = float(fine.abs().max())
            return Agreement("reference", checks.max_error(ours(), fine), 30 * tolerance * scale)

        return Work([library(lambda: Side(ours, check)), network_alone(model, x, evaluations)])

    return work
