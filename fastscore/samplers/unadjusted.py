"""Langevin dynamics on one density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_int,
    check_number,
    check_shape,
    fail,
    fail_type,
)
from fastscore.samplers._inputs import check_sequence, sample
from fastscore.samplers._loop import Callback, Clamp, Model, Plan
from fastscore.schedules import CONVENTIONS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastscore.samplers._options import SamplerOptions


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
    if isinstance(step_size, (list, tuple)):
        step_size = torch.tensor(step_size, dtype=torch.float64)
    if not isinstance(step_size, Tensor) or step_size.dim() == 0:
        number = step_size.item() if isinstance(step_size, Tensor) else step_size
        number = check_number(fn, "step_size", number, positive=True)
        return torch.tensor([number], dtype=torch.float64)
    check_shape(fn, "step_size", step_size, (steps,), "one for each step")
    values = step_size.detach().double().cpu()
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        fail(fn, "step_size", "positive and finite", values.tolist()[:8])
    return values


@overload
def langevin(
    score_fn: Model,
    x: Tensor | None = None,
    *,
    steps: int,
    step_size: float | Sequence[float] | Tensor,
    convention: str = ...,
    sigma: float | None = None,
    conditioning: str | None = None,
    trajectory: None = None,
    **options: Unpack[SamplerOptions],
) -> Tensor: ...
@overload
def langevin(
    score_fn: Model,
    x: Tensor | None = None,
    *,
    steps: int,
    step_size: float | Sequence[float] | Tensor,
    convention: str = ...,
    sigma: float | None = None,
    conditioning: str | None = None,
    trajectory: Sequence[int],
    **options: Unpack[SamplerOptions],
) -> tuple[Tensor, Tensor]: ...
def langevin(
    score_fn: Model,
    x: Tensor | None = None,
    *,
    steps: int,
    step_size: float | Sequence[float] | Tensor,
    shape: Sequence[int] | None = None,
    num_samples: int | None = None,
    convention: str = "half",
    sigma: float | None = None,
    conditioning: str | None = None,
    init: str = "normal",
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Clamp | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    sample_offset: int = 0,
    start_step: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    trajectory: Sequence[int] | None = None,
    cuda_graph: bool | str = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Unadjusted Langevin dynamics: samples of a density from its score.

    Each step is, with fresh standard normal ``z``,

    - ``x <- x + step_size/2 * score_fn(x) + sqrt(step_size) * z`` (``convention="half"``),
    - ``x <- x + step_size * score_fn(x) + sqrt(2 * step_size) * z`` (``convention="full"``).

    There is no Metropolis correction: on N(0, sigma^2) the chain settles at variance
    sigma^2 * 2/(2 - eta), with eta = step_size/sigma^2 in the full convention and half of that in
    the half convention. It diverges for eta > 2.

    One level of a noise-conditional model is sampled by giving its ``sigma``; to end with a
    denoising step, or for a model that wants an index, see :func:`annealed_langevin`, which takes
    a single level too.

    Args:
        score_fn: ``score_fn(x)`` returns the gradient of the log density, in x's shape. With
            ``sigma`` it is called ``score_fn(x, sigma)``, sigma of shape (batch,). It runs without
            gradients: a log density to be differentiated goes into
            :class:`fastscore.scores.EnergyScore`, see the example.
        x: initial state, (batch, ...); never changed. Half precision is continued in float32.
        steps: number of steps, each with one call of ``score_fn``.
        step_size: a positive number, or ``steps`` of them.
        shape: shape of the state when no ``x`` is given.
        num_samples: batch size for a ``score_fn`` with a ``data_shape`` when neither ``x`` nor
            ``shape`` is given; 64 by default.
        convention: "half" or "full", see above.
        sigma: noise level that a conditional score is asked for.
        conditioning: "none", "sigma" or "log_sigma"; by default "sigma" if a sigma is given.
        init: "normal" (of standard deviation ``sigma``, or 1) or "uniform" in [0, 1).
        known, mask: inpainting; see :func:`annealed_langevin`. Known elements carry noise of
            standard deviation ``sigma`` during the run, or none without a ``sigma``.
        trajectory: after how many steps (1 to ``steps``) the state is recorded.
        clamp, seed, generator, sample_offset, start_step, dtype, device, autocast, progress,
        callback, cuda_graph: see :func:`annealed_langevin`.

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
        >>> score = fastscore.scores.EnergyScore(lambda x: -log_density(x), takes_sigma=False)
        >>> same = fastscore.langevin(score, shape=(4000, 2), steps=200, step_size=0.1, seed=0)
        >>> torch.allclose(same, x)
        True
    """
    fn = "langevin"
    if not callable(score_fn):
        fail_type(fn, "score_fn", "callable", score_fn)
    check_choice(fn, "convention", convention, CONVENTIONS)
    steps = check_int(fn, "steps", steps, minimum=1)
    if conditioning is None:
        conditioning = "none" if sigma is None else "sigma"
    check_choice(fn, "conditioning", conditioning, ("none", "sigma", "log_sigma"))
    if sigma is None and conditioning != "none":
        fail(fn, "sigma", f'a positive number for conditioning="{conditioning}"', None)
    level = 1.0 if sigma is None else check_number(fn, "sigma", sigma, positive=True)
    known_noise = 0.0 if sigma is None else level
    plan = Plan(
        langevin_table(check_step_sizes(fn, step_size, steps), convention, known_noise),
        torch.tensor([level], dtype=torch.float64),
        steps=steps,
        steps_per_level=steps,
        init_scale=level,
        known_scale=known_noise,
    )
    return sample(
        fn,
        score_fn,
        x,
        plan,
        shape=shape,
        num_samples=num_samples,
        conditioning=conditioning,
        init=init,
        known=known,
        mask=mask,
        clamp=clamp,
        seed=seed,
        generator=generator,
        sample_offset=sample_offset,
        start_step=start_step,
        dtype=dtype,
        device=device,
        autocast=autocast,
        progress=progress,
        callback=callback,
        record=check_recorded_steps(fn, trajectory, steps),
        cuda_graph=cuda_graph,
    )


def check_recorded_steps(fn: str, trajectory: Sequence[int] | None, steps: int) -> list[int] | None:
    """Step counts from 1 to ``steps``, sorted."""
    if trajectory is None:
        return None
    check_sequence(fn, "trajectory", trajectory, "step counts, such as range(1, 100)")
    counts = sorted({check_int(fn, "trajectory", count, minimum=1) for count in trajectory})
    if counts and counts[-1] > steps:
        fail(fn, "trajectory", f"step counts of at most {steps}", counts[-1])
    return counts
