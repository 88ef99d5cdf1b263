"""Known elements in every sampler: what the model finds there, in every call that it gets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from continuous import PROCESSES, InTime
from continuous import gaussian as gaussian_of
from helpers import assert_same_bytes
from samplers import NAMES, SIGMAS, Sampler, every_sampler, gaussian_score, run_annealed
from torch import Tensor

import fastscore
from fastscore import sde
from fastscore.samplers import probability_flow, reverse_sde
from fastscore.sde import Process

VALUE = 3.0
SAMPLES = 2000
MASK = torch.tensor([True, False])


class Watching:
    """A model of a process that notes (known - alpha value)/sigma at what it is told itself."""

    def __init__(self, process: Process, conditioning: str) -> None:
        self.process, self.conditioning = process, conditioning
        self.noise: list[Tensor] = []
        self.told: list[float] = []

    def __call__(self, state: Tensor, told: Tensor) -> Tensor:
        if self.conditioning == "time":
            alpha, sigma = self.process.alpha(told.double()), self.process.sigma(told.double())
        else:
            sigma = told.double()
            alpha = torch.ones_like(sigma)
        self.noise.append((state[:, 0].double() - alpha * VALUE) / sigma)
        self.told.append(float(told[0]))
        if self.conditioning == "time":
            return InTime(self.process)(state, told)
        return gaussian_of(state, told)

    def check(self, calls: int | None) -> None:
        assert calls is None or len(self.noise) == calls
        for z in self.noise:
            assert abs(float(z.mean())) < 5 / math.sqrt(SAMPLES)
            assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(2 / SAMPLES)

    def correlations(self) -> list[float]:
        """Of the noise in a call with that in the next."""
        return [float((a * b).mean()) for a, b in itertools.pairwise(self.noise)]


LEVELS: dict[str, tuple[Callable[..., Any], int]] = {
    "annealed": (
        lambda model, **how: fastscore.annealed_langevin(
            model, SIGMAS, steps_per_sigma=2, step_size=0.1, **how
        ),
        9,
    ),
    "annealed, without the last step": (
        lambda model, **how: fastscore.annealed_langevin(
            model, SIGMAS, steps_per_sigma=2, step_size=0.1, denoise=False, **how
        ),
        8,
    ),
    "consistent": (
        lambda model, **how: fastscore.consistent_annealed_langevin(
            model, fastscore.geometric_sigmas(4.0, 0.5, 9), eta=0.5, **how
        ),
        9,
    ),
    "langevin": (
        lambda model, **how: fastscore.langevin(model, steps=6, step_size=0.1, sigma=0.7, **how),
        6,
    ),
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_noise_is_of_the_level_that_is_told(device: torch.device, name: str) -> None:
    draw, calls = LEVELS[name]
    watching = Watching(sde.VE(), "sigma")
    x = draw(watching, shape=(SAMPLES, 2), known=VALUE, mask=MASK.to(device), seed=0, device=device)
    watching.check(calls)
    assert max(map(abs, watching.correlations())) < 5 / math.sqrt(SAMPLES)
    assert bool((x[:, 0] == VALUE).all())
    assert bool((x[:, 1] != VALUE).all())


REVERSE: dict[str, tuple[dict[str, Any], int]] = {
    "euler_maruyama": ({"predictor": "euler_maruyama"}, 7),
    "ancestral": ({"predictor": "ancestral", "eta": 0.5}, 7),
    "annealed corrector": ({"corrector": "annealed", "corrector_steps": 2}, 19),
    "langevin corrector": ({"corrector": "langevin"}, 13),
    "norms of the batch": ({"corrector": "langevin", "norms": "batch"}, 13),
    "clipped": ({"corrector": "annealed", "clip_denoised": (-9.0, 9.0)}, 13),
    "resampled": ({"corrector": "annealed", "resamplings": 3}, 37),
    "without the last step": ({"denoise": False}, 6),
}
USED = [PROCESSES[0], PROCESSES[1], PROCESSES[2], PROCESSES[5]]
each_process = pytest.mark.parametrize("process", USED, ids=lambda p: type(p).__name__)
each_call = pytest.mark.parametrize("conditioning", ["sigma", "time"])


@each_process
@each_call
@pytest.mark.parametrize("name", REVERSE)
def test_predictors_and_correctors(process: Process, conditioning: str, name: str) -> None:
    options, calls = REVERSE[name]
    watching = Watching(process, conditioning)
    how = {"shape": (SAMPLES, 2), "steps": 6, "seed": 0, "conditioning": conditioning}
    x = reverse_sde(watching, process, known=VALUE, mask=MASK, **how, **options)
    if options.get("corrector") == "langevin" and "norms" not in options:
        del watching.noise[:-calls]  # those of the pilot, where nothing is known
    watching.check(calls)
    assert max(map(abs, watching.correlations())) < 6 / math.sqrt(SAMPLES)
    assert bool((x[:, 0] == VALUE).all())
    assert bool((x[:, 1] != VALUE).all())


FLOW: dict[str, tuple[dict[str, Any], int | None]] = {
    "euler": ({"solver": "euler"}, 6),
    "heun": ({"solver": "heun"}, 11),
    "heun, churned": ({"solver": "heun", "churn": 4.0, "churn_noise": 1.1}, 11),
    "heun, clipped": ({"solver": "heun", "clip_denoised": (-9.0, 9.0)}, 11),
    "rk4": ({"solver": "rk4"}, 21),
    "rk4, clipped": ({"solver": "rk4", "clip_denoised": (-9.0, 9.0)}, 21),
    "dpmpp_2m": ({"solver": "dpmpp_2m"}, 6),
    "dpmpp_2m, without the last step": ({"solver": "dpmpp_2m", "denoise": False}, 6),
    "dpmpp_2m_sde": ({"solver": "dpmpp_2m_sde"}, 6),
    "rk45": ({"solver": "rk45", "steps": None, "denoise": True}, None),
}


@each_process
@each_call
@pytest.mark.parametrize("name", FLOW)
def test_solvers_of_the_flow(process: Process, conditioning: str, name: str) -> None:
    options, calls = FLOW[name]
    adaptive = options["solver"] == "rk45"
    samples = 4 if adaptive else SAMPLES  # of which some leave before the others
    watching = Watching(process, conditioning)
    how = {"shape": (samples, 2), "steps": 6, "seed": 0, "conditioning": conditioning}
    how |= {"dtype": torch.float64, "model": watching, "sde": process}
    x = probability_flow(**{**how, "known": VALUE, "mask": MASK, **options})
    assert bool((x[:, 0] == VALUE).all())
    assert bool((x[:, 1] != VALUE).all())
    if not adaptive:
        watching.check(calls)
    first = watching.noise[0]
    for z in watching.noise:  # one noise for the whole run
        if len(z) == len(first):
            torch.testing.assert_close(z, first, rtol=1e-5, atol=1e-5)
        assert bool(((z.unsqueeze(1) - first).abs().min(1).values < 1e-4).all())


def test_churn_is_the_same_run_however_the_model_is_called() -> None:
    """The state is raised to another time, where it is another x for the same y."""
    how: dict[str, Any] = {"shape": (50, 2), "steps": 8, "seed": 0, "dtype": torch.float64}
    how |= {"solver": "heun", "churn": 8.0}
    for process in PROCESSES[1:]:
        in_time = probability_flow(InTime(process), process, **how)
        by_level = probability_flow(gaussian_of, process, conditioning="sigma", **how)
        torch.testing.assert_close(in_time, by_level, rtol=1e-4, atol=1e-4)


CHAINS: dict[str, Callable[..., Any]] = {
    **{name: draw for name, (draw, _) in LEVELS.items()},
    **{
        name: lambda model, o=options, **how: reverse_sde(
            model, sde.VE(0.02, 5.0), steps=5, **o, **how
        )
        for name, (options, _) in REVERSE.items()
        if "norms" not in options
    },
    **{
        name: lambda model, o=options, **how: probability_flow(
            model, sde.VE(0.02, 5.0), **{"steps": 5, **o}, **how
        )
        for name, (options, _) in FLOW.items()
    },
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_sample_is_the_same_alone_and_among_others(name: str) -> None:
    """Each with a mask and values of its own, of which one sample has none."""
    draw = CHAINS[name]
    mask = torch.tensor([[True, False, True], [False, True, False], [False] * 3, [True] * 3])
    known = torch.arange(12.0).reshape(4, 3) / 4
    together = draw(gaussian_score, shape=(4, 3), seed=1, known=known, mask=mask)
    assert torch.equal(together[mask], known[mask])
    for i in (0, 1, 3):
        own = {"known": known[i : i + 1], "mask": mask[i : i + 1]}
        alone = draw(gaussian_score, shape=(1, 3), seed=1, samples=torch.tensor([i]), **own)
        assert_same_bytes(alone, together[i : i + 1])
    how = {"known": known, "mask": mask, "seed": 1, "batch_size": 3}
    assert_same_bytes(draw(gaussian_score, shape=(4, 3), **how), together)


@every_sampler
def test_a_mask_without_a_known_element_is_refused(sampler: Sampler, steps: int) -> None:
    none = torch.zeros(2, 3, dtype=torch.bool)
    expected = rf"{NAMES[sampler]}: mask must be True for .* \(2, 3\) .*False everywhere"
    with pytest.raises(ValueError, match=expected):
        sampler(torch.zeros(2, 3), known=0.5, mask=none)
    with pytest.raises(ValueError, match="mask must be True for"):
        sampler(shape=(2, 3), known=0.5, mask=none[0])
    assert sampler(shape=(0, 3), known=0.5, mask=none[:0]).shape == (0, 3)
    assert sampler(shape=(2, 0), known=0.5, mask=none[:, :0]).shape == (2, 0)


def test_the_mask_of_the_other_solvers_too() -> None:
    none = torch.zeros(3, dtype=torch.bool)
    for name, draw in CHAINS.items():
        with pytest.raises(ValueError, match="mask must be True for"):
            draw(gaussian_score, shape=(2, 3), known=0.5, mask=none)
        everything = draw(gaussian_score, shape=(2, 3), known=0.5, mask=~none, seed=0)
        assert bool((everything == 0.5).all()), name


def test_what_is_known_of_some_samples_alone() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    x = run_annealed(shape=(2, 2), known=1.0, mask=mask, seed=0)
    free = run_annealed(shape=(2, 2), seed=0)
    assert float(x[0, 0]) == 1
    assert_same_bytes(x[1], free[1])
