"""Bad input of the samplers: each error names the function, the argument and what is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from samplers import NAMES, SIGMAS, Sampler, every_sampler
from torch import Tensor

from fastscore import annealed_langevin, consistent_annealed_langevin, langevin


class NeverCalled:
    def __call__(self, x: Tensor, *condition: Tensor) -> Tensor:
        raise AssertionError("the model was called before the arguments were checked")


BAD_COMMON: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None, "shape": None}, ValueError, "shape must be given"),
    ({"x": torch.full((2, 3), torch.nan)}, ValueError, "x must be finite"),
    ({"x": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "x must be a floating-point"),
    ({"x": torch.tensor(1.0)}, ValueError, "x must be a tensor with at least 1 dim"),
    ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor"),
    ({"shape": (2, 3)}, ValueError, "shape must be None when x is given"),
    ({"device": "cpu"}, ValueError, "device must be None when x is given"),
    ({"dtype": torch.float64}, ValueError, "dtype must be None when x is given"),
    ({"x": None, "shape": 3}, TypeError, "shape must be a sequence"),
    ({"x": None, "shape": ()}, ValueError, "shape must be at least 1-dimensional"),
    ({"x": None, "shape": (2, -3)}, ValueError, "shape must be at least 0"),
    ({"x": None, "shape": (2, 3.0)}, TypeError, "shape must be an integer"),
    ({"x": None, "shape": (2, 3), "dtype": torch.bfloat16}, ValueError, "dtype must be"),
    ({"x": None, "shape": (2, 3), "dtype": "float32"}, TypeError, "dtype must be"),
    ({"init": "zeros"}, ValueError, "init must be one of"),
    ({"conditioning": "level"}, ValueError, "conditioning must be one of"),
    ({"conditioning": ""}, ValueError, "conditioning must be one of"),
    ({"model": None}, TypeError, "must be callable"),
    ({"known": torch.zeros(2, 3)}, ValueError, "mask must be given together with known"),
    ({"mask": torch.ones(2, 3) > 0}, ValueError, "known must be given together with mask"),
    (
        {"known": torch.zeros(2, 4), "mask": torch.ones(2, 3) > 0},
        ValueError,
        "known must be of the state's shape",
    ),
    (
        {"known": torch.zeros(2, 3), "mask": torch.ones(5, 2, 3) > 0},
        ValueError,
        "mask must be of the state's shape",
    ),
    ({"known": torch.zeros(2, 3), "mask": torch.ones(2, 3)}, ValueError, "mask must be a tensor"),
    (
        {"known": torch.full((2, 3), torch.inf), "mask": torch.ones(2, 3) > 0},
        ValueError,
        "known must be finite",
    ),
    ({"clamp": (1, 0)}, ValueError, "clamp must be a pair"),
    ({"clamp": 1.0}, TypeError, "clamp must be a pair"),
    ({"clamp": (0.0, math.nan)}, ValueError, "clamp must be finite"),
    ({"sample_offset": -1}, ValueError, "sample_offset must be at least 0"),
    ({"start_step": -1}, ValueError, "start_step must be at least 0"),
    ({"start_step": 1000, "seed": 1}, ValueError, "start_step must be at most 1"),
    ({"start_step": 2}, ValueError, "seed must be that of the run"),
    ({"x": None, "shape": (2, 3), "start_step": 2, "seed": 0}, ValueError, "x must be the state"),
    ({"autocast": torch.float32}, ValueError, "autocast must be"),
    ({"autocast": "bf16"}, TypeError, "autocast must be"),
    ({"callback": 3}, TypeError, "callback must be callable"),
    ({"trajectory": [1000]}, ValueError, "trajectory must be"),
    ({"trajectory": [1.5]}, TypeError, "trajectory must be"),
    ({"trajectory": "all"}, TypeError, "trajectory must be"),
    ({"trajectory": 3}, TypeError, "trajectory must be"),
    ({"cuda_graph": True}, ValueError, "cuda_graph must be False or"),
    ({"cuda_graph": "always"}, ValueError, "cuda_graph must be True, False"),
    ({"cuda_graph": 1}, TypeError, "cuda_graph must be True, False"),
]


@every_sampler
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_COMMON)
def test_bad_arguments(
    sampler: Sampler,
    steps: int,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    arguments = {"x": torch.zeros(2, 3), "model": NeverCalled(), **arguments}
    with pytest.raises(error, match=f"^{NAMES[sampler]}: .*{message}"):
        sampler(**arguments)


@every_sampler
def test_bad_models(sampler: Sampler, steps: int) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"model must be a model whose output .* \(2, 3\)"):
        sampler(x, lambda x, sigma: x[:, :2])
    with pytest.raises(ValueError, match="model must be a model whose output"):
        sampler(x, lambda x, sigma: x.long())
    with pytest.raises(TypeError, match="model must be a model whose output"):
        sampler(x, lambda x, sigma: None)


BAD_SIGMAS = [
    ([1.0, 1.0], "sigmas must be strictly decreasing"),
    ([1.0, 2.0], "sigmas must be strictly decreasing"),
    ([1.0, 0.0], "sigmas must be positive"),
    ([1.0, -1.0], "sigmas must be positive"),
    ([math.inf, 1.0], "sigmas must be positive and finite"),
    ([math.nan, 1.0], "sigmas must be positive and finite"),
    ([], "sigmas must be a 1-D tensor"),
    (torch.ones(2, 2), "sigmas must be a 1-D tensor"),
    (torch.tensor([2, 1]), "sigmas must be a floating-point"),
]


@pytest.mark.parametrize(("sigmas", "message"), BAD_SIGMAS)
def test_bad_sigmas(sigmas: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^annealed_langevin: {message}"):
        annealed_langevin(NeverCalled(), sigmas, torch.zeros(2, 3), step_size=0.1)
    with pytest.raises(ValueError, match=f"^consistent_annealed_langevin: {message}"):
        consistent_annealed_langevin(NeverCalled(), sigmas, torch.zeros(2, 3), eta=0.9)


def test_bad_steps() -> None:
    x = torch.zeros(2, 3)
    for steps in (0, -1):
        with pytest.raises(ValueError, match="langevin: steps must be at least 1"):
            langevin(NeverCalled(), x, steps=steps, step_size=0.1)
        with pytest.raises(ValueError, match="steps_per_sigma must be at least 1"):
            annealed_langevin(NeverCalled(), SIGMAS, x, steps_per_sigma=steps)
    with pytest.raises(TypeError, match="langevin: steps must be an integer"):
        langevin(NeverCalled(), x, steps=2.0, step_size=0.1)
    for step_size in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="langevin: step_size must be"):
            langevin(NeverCalled(), x, steps=2, step_size=step_size)
        with pytest.raises(ValueError, match="langevin: step_size must be positive and finite"):
            langevin(NeverCalled(), x, steps=2, step_size=[0.1, step_size])
        with pytest.raises(ValueError, match="annealed_langevin: step_size must be"):
            annealed_langevin(NeverCalled(), SIGMAS, x, step_size=step_size)
    with pytest.raises(ValueError, match=r"step_size must be of shape \(2,\)"):
        langevin(NeverCalled(), x, steps=2, step_size=[0.1, 0.1, 0.1])
    for odd in (["a", "b"], [[0.1], [0.1, 0.2]]):
        with pytest.raises(TypeError, match="langevin: step_size must be a number, or 2 of them"):
            langevin(NeverCalled(), x, steps=2, step_size=odd)
    with pytest.raises(TypeError, match="step_size must be a real number"):
        langevin(NeverCalled(), x, steps=2, step_size="auto")
    with pytest.raises(ValueError, match="step_size must be a positive number or"):
        annealed_langevin(NeverCalled(), SIGMAS, x, step_size="large")
    with pytest.raises(ValueError, match="step_size must be a number when"):
        annealed_langevin(NeverCalled(), [1.0], x)
    with pytest.raises(ValueError, match="convention must be one of 'half', 'full'"):
        annealed_langevin(NeverCalled(), SIGMAS, x, convention="quarter")
    with pytest.raises(ValueError, match="convention must be one of 'half', 'full'"):
        langevin(NeverCalled(), x, steps=2, step_size=0.1, convention="quarter")


def test_bad_sigma_of_langevin() -> None:
    options: dict[str, Any] = {"steps": 2, "step_size": 0.1}
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="langevin: sigma must be positive"):
        langevin(NeverCalled(), x, sigma=-1.0, **options)
    with pytest.raises(ValueError, match="langevin: sigma must be a positive number for"):
        langevin(NeverCalled(), x, conditioning="log_sigma", **options)


@pytest.mark.parametrize("eta", [0.5, 0.4, 1.5, 2.0])
def test_bad_eta(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must be between 1 - gamma = 0.5 and 1 \+ gamma"):
        consistent_annealed_langevin(NeverCalled(), SIGMAS, torch.zeros(2, 3), eta=eta)
    with pytest.raises(ValueError, match="sigmas must be a 1-D tensor of at least 2"):
        consistent_annealed_langevin(NeverCalled(), [1.0], torch.zeros(2, 3), eta=eta)
