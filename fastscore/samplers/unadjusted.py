"""Langevin dynamics on one density."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import (
    check_choice,
    check_int,
    check_number,
    check_shape,
    fail,
    fail_type,
)
from fastscore.conditioning import conditioning_of, prediction_of
from fastscore.samplers._options import SamplerOptions, sampler
from fastscore.samplers._plan import Model, Plan
from fastscore.schedules import CONVENTIONS


def step_coefficients(step_size: Tensor, convention: str) -> tuple[Tensor, Tensor]:
    """b and c of x <- x + b s + c z: (alpha/2, sqrt alpha), or in full (alpha, sqrt(2 alpha)).

    Example:
        >>> b, c = step_coefficients(torch.tensor(4.0), "half")
        >>> float(b), float(c)
        (2.0, 2.0)
    """
    if convention == "half":
        return step_size / 2, step_size.sqrt()
    return step_size, (2 * step_size).sqrt()


def langevin_table(step_size: Tensor, convention: str, known_noise: float) -> Tensor:
    """One row a, b, c, k for each step size: shape (len(step_size), 4)."""
    b, c = step_coefficients(step_size, convention)
    return torch.stack([torch.ones_like(b), b, c, torch.full_like(b, known_noise)], dim=-1)


def check_step_sizes(fn: str, step_size: float | Sequence[float] | Tensor, steps: int) -> Tensor:
    """A number, or one for each step, as a 1-D float64 tensor of 1 or ``steps`` elements."""
    if isinstance(step_size, (list, tuple, numpy.ndarray)):
        try:
            step_size = torch.as_tensor(step_size, dtype=torch.float64)
        except (TypeError, ValueError):
            fail_type(fn, "step_size", f"a number, or {steps} of them", step_size)
    if not isinstance(step_size, Tensor) or step_size.numel() == 1:
        number = check_number(fn, "step_size", step_size, positive=True)
        return torch.tensor([number], dtype=torch.float64)
    check_shape(fn, "step_size", step_size, (steps,), "one for each step")
    values = step_size.detach().double().cpu()
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        fail(fn, "step_size", "positive and finite", values.tolist()[:8])
    return values


@sampler
def langevin(
    model: Model,
    x: Tensor | None = None,
    *,
    steps: int,
    step_size: float | Sequence[float] | Tensor,
    convention: str = "half",
    sigma: float | None = None,
    **options: Unpack[SamplerOptions],
) -> Plan:
    r"""Unadjusted Langevin dynamics: samples of a density from its score.

    Each step is, with fresh standard normal ``z``,

    - ``x <- x + step_size/2 * model(x) + sqrt(step_size) * z`` (``convention="half"``),
    - ``x <- x + step_size * model(x) + sqrt(2 * step_size) * z`` (``convention="full"``).

    There is no Metropolis correction: on N(0, sigma^2) the chain settles at variance
    sigma^2 * 2/(2 - eta), with eta = step_size/sigma^2 in the full convention and half of that in
    the half convention. It diverges for eta > 2.

    One level of a noise-conditional model is sampled by giving its ``sigma``; to end with a
    denoising step, or for a model that wants an index, see :func:`annealed_langevin`, which takes
    a single level too.

    Args:
        model: ``model(x)`` returns the gradient of the log density, in x's shape. With
            ``sigma`` it is called ``model(x, sigma)``, sigma of shape (batch,). It runs without
            gradients: a log density to be differentiated goes into
            :class:`fastscore.scores.EnergyScore`, see the example.
        x: initial state, (batch, ...); never changed. Half precision is continued in float32.
        steps: number of steps, each with one call of ``model``.
        step_size: a positive number, or ``steps`` of them.
        convention: "half" or "full", see above.
        sigma: noise level that a conditional score is asked for.
        trajectory: after how many steps (1 to ``steps``) the state is recorded. Known elements
            carry noise of standard deviation ``sigma`` during the run, or none without a ``sigma``.

    Returns:
        The final state, float32 or float64; with ``trajectory``, a pair of it and the recorded
        states, (number recorded, batch, ...), in the order of steps.

    Raises:
        ValueError: an argument that is out of its range, a NaN in x, or a score of another shape.
        TypeError: an argument of the wrong type.

    Example:
        A standard normal, sampled at variance 2/(2 - 0.05):

        >>> import torch, fastscore
        >>> x = fastscore.langevin(lambda x: -x, shape=(4000, 2), steps=200, step_size=0.1, seed=0)
        >>> bool((x.var() - 1.0256).abs() < 0.05)
        True

        The same from its log density:

        >>> log_density = lambda x: -x.square().sum(1) / 2
        >>> score = fastscore.scores.EnergyScore(lambda x: -log_density(x), conditioning="none")
        >>> same = fastscore.langevin(score, shape=(4000, 2), steps=200, step_size=0.1, seed=0)
        >>> torch.allclose(same, x)
        True
    """
    fn = "langevin"
    check_choice(fn, "convention", convention, CONVENTIONS)
    steps = check_int(fn, "steps", steps, minimum=1)
    default = "none" if sigma is None else "sigma"
    conditioning = conditioning_of(fn, model, options["conditioning"], default)
    check_choice(fn, "conditioning", conditioning, ("none", "sigma", "log_sigma"))
    prediction = prediction_of(fn, model, options["prediction"])
    if sigma is None and (conditioning, prediction) != ("none", "score"):
        expected = f"a positive number for a model of {conditioning=}, {prediction=}"
        fail(fn, "sigma", expected, None)
    level = 1.0 if sigma is None else check_number(fn, "sigma", sigma, positive=True)
    known_noise = 0.0 if sigma is None else level
    sizes = check_step_sizes(fn, step_size, steps)
    return Plan(
        langevin_table(sizes, convention, known_noise),
        torch.tensor([level], dtype=torch.float64),
        steps=steps,
        steps_per_level=steps,
        init_scale=level,
        known_scale=known_noise,
        step_size=f'step_size={float(sizes.max()):.4g} (convention="{convention}")',
        conditioning=conditioning,
        records_steps=True,
    )
