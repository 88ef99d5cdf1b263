"""Whole jobs with a guided score: of a class without a classifier, and of known pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import guidance, operators
from fastscore.apps.bench import checks
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases import networks
from fastscore.apps.bench.peers import eager
from fastscore.sde import VE

SIGMA_MIN, SIGMA_MAX = 0.02, 20.0
NOISE, SCALE = 0.05, 1.5
Score = Callable[..., Any]


class Labelled:
    """Two scores of one network: of the label 1, shifted, and of 0."""

    conditioning, prediction = "sigma", "score"

    def __init__(self, network: Score) -> None:
        self.network = network

    def __call__(self, x: Tensor, sigma: Tensor, *, label: Any) -> Tensor:
        shift = label if isinstance(label, int) else label.to(x.dtype).reshape(-1, 1, 1, 1)
        return self.network(x + 0.1 * shift, sigma)


def linear(x: Tensor, sigma: Tensor) -> Tensor:
    """The score of N(0, I), which costs next to nothing: it leaves the library's part."""
    return x * (-1 / (1 + sigma.square())).reshape(-1, *[1] * (x.dim() - 1))


def build(network: networks.Network | None, kind: str) -> Callable[[Case], Work]:
    """``steps`` ancestral steps of a VE process, the last to the data; None: no network."""

    def work(case: Case) -> Work:
        steps = case.params["steps"]
        model: Score = linear if network is None else network.make(case.device)
        generator = torch.Generator().manual_seed(0)
        data = torch.randn(case.shape[1:], generator=generator).to(case.device)
        mask = (torch.rand(case.shape[1:], generator=generator) < 0.5).to(case.device)
        y = (data * mask).unsqueeze(0)
        x = SIGMA_MAX * torch.randn(case.shape, device=case.device)
        sigmas = fastscore.geometric_sigmas(SIGMA_MAX, SIGMA_MIN, steps, dtype=torch.float64)
        process = VE(SIGMA_MIN, SIGMA_MAX)
        times = process.time_of(sigmas).clamp(0, 1)
        options: dict[str, Any] = {}
        score: Score
        if kind == "classifier-free":
            labelled = Labelled(model)
            score = guidance.ClassifierFreeGuidance(labelled, null={"label": 0}, scale=SCALE)
            label = torch.ones(len(x), dtype=torch.int64, device=case.device)
            options["model_kwargs"] = {"label": label}
            by_hand = eager.classifier_free(labelled, SCALE)
        else:
            score = guidance.PiGDM(model, operators.Mask(mask), y, noise=NOISE)
            by_hand = eager.pigdm(model, mask.to(x.dtype), y, NOISE)

        def ours(seed: int | None = None, **more: Any) -> Tensor:
            return fastscore.reverse_sde(
                score, process, x, steps=steps - 1, predictor="ancestral", grid=times, seed=seed,
                cuda_graph="auto", **options, **more,
            )  # fmt: skip

        def in_eager() -> Tensor:
            with torch.no_grad():
                return eager.ancestral(by_hand, [*sigmas.tolist(), 0.0], x)

        def check(run: Callable[[], Tensor]) -> Agreement:
            """Mean squares of samples, which no noise of their own moves by much."""
            sizes = [side().flatten(1).square().mean(1) for side in (run, in_eager)]
            return checks.same_mean(*sizes)

        return Work(
            [
                library(lambda: Side(ours, lambda: check(ours))),
                peer("eager", lambda: Side(in_eager, lambda: check(in_eager))),
            ]
        )

    return work
