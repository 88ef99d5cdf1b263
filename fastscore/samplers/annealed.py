"""Annealed Langevin dynamics (Song and Ermon 2019, 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import check_choice, check_int, check_number, fail
from fastscore.samplers._options import SamplerOptions, sampler
from fastscore.samplers._plan import Model, Plan, read_sigmas
from fastscore.samplers.unadjusted import step_coefficients
from fastscore.schedules import CONVENTIONS, langevin_step_size


def annealed_table(
    sigmas: Tensor, steps_per_sigma: int, step_size: float, convention: str, denoise: bool
) -> Tensor:
    """One row a, b, c, k for each step: shape (L * steps_per_sigma + denoise, 4), float64.

    The step of level i is alpha_i = step_size * sigma_i^2 / sigma_L^2. ``k`` is the sigma of the
    *next* step: known elements, set at the end of a step, are then seen by the model at the noise
    level of all others. After the last step it is 0.

    Example:
        >>> annealed_table(torch.tensor([2.0, 1.0]).double(), 1, 0.5, "half", denoise=True)
        tensor([[1.0000, 1.0000, 1.4142, 1.0000],
                [1.0000, 0.2500, 0.7071, 1.0000],
                [1.0000, 1.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    b, c = step_coefficients(step_size * (sigmas / sigmas[-1]) ** 2, convention)
    table = torch.stack([torch.ones_like(b), b, c, sigmas], dim=-1)
    table = table.repeat_interleave(steps_per_sigma, dim=0)
    if denoise:
        last = sigmas[-1]
        row = torch.stack([torch.ones_like(last), last**2, torch.zeros_like(last), last])
        table = torch.cat([table, row.unsqueeze(0)])
    table[:, 3] = torch.cat([table[1:, 3], table.new_zeros(1)])
    return table


@sampler
def annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    steps_per_sigma: int = 5,
    step_size: float | str = "auto",
    convention: str = "half",
    denoise: bool = True,
    **options: Unpack[SamplerOptions],
) -> Plan:
    r"""Annealed Langevin dynamics: samples from a noise-conditional score model.

    For each noise level from sigma_1 down to sigma_L, ``steps_per_sigma`` Langevin steps of size
    alpha_i = step_size * sigma_i^2 / sigma_L^2, with fresh standard normal ``z``:

    - ``x <- x + alpha_i/2 * s(x, sigma_i) + sqrt(alpha_i) * z`` (``convention="half"``,
      Song and Ermon 2019),
    - ``x <- x + alpha_i * s(x, sigma_i) + sqrt(2 alpha_i) * z`` (``convention="full"``,
      Song and Ermon 2020 and its code).

    At the end, unless ``denoise=False``, the expected data given the last state:
    ``x + sigma_L^2 * s(x, sigma_L)``. That is L * steps_per_sigma + 1 model calls in all.

    The noise of a sample depends on the seed, the step number and the sample's own index (plus
    ``sample_offset``), on nothing else: a batch may be split over calls, processes and devices,
    stopped and resumed, and every sample meets the same noise. What the library itself computes is
    then the same to the last bit; a network may give others with another number of rows (some 1e-6
    of its output in float32), unless ``batch_size=`` fixes that number. The model runs without
    gradients (one that needs them inside, as an energy does, enables them itself) and in whatever
    mode, train or eval, it is in.

    Args:
        model: called ``model(x, sigma)`` with sigma of shape (batch,); returns the score, in x's
            shape. Other ways of calling: see ``conditioning``; networks that return the noise or
            the data: see ``prediction``. An energy is made a score by
            :class:`fastscore.scores.EnergyScore`.
        sigmas: noise levels, (L,), positive and strictly decreasing.
        x: initial state, (batch, ...), taken as it is; never changed. Half precision is continued
            in float32.
        steps_per_sigma: T, the steps at each level.
        step_size: the step at the smallest level, in the convention chosen; "auto" finds the one
            that keeps the variance right from level to level (Song and Ermon 2020, Technique 4).
            The chain diverges beyond 2 sigma_L^2 (full) or 4 sigma_L^2 (half).
        convention: "half" or "full", see above.
        denoise: end with the denoising step.
        trajectory: numbers of the levels (0 for sigma_1; negative ones count from the end) at whose
            end the state is recorded. Levels that ended before ``start_step`` are left out.

    Returns:
        Samples, float32 or float64, of the shape asked for; with ``trajectory``, a pair of them
        and the recorded states, (number recorded, batch, ...), from large sigma to small.

    Raises:
        ValueError: an argument out of its range: sigmas that are not positive, finite and
            decreasing, a NaN in ``x``, shapes that don't fit, a model output of another shape,
            ``cuda_graph=True`` on the CPU.
        TypeError: an argument of the wrong type.
        ImportError: ``progress=True`` without tqdm.

    Warns:
        UserWarning: the result has NaN or infinity in it, or numbers of 10^4 times the largest
            noise level: the chain has diverged.

    Example:
        One data point at 3, whose score under noise is known:

        >>> import torch, fastscore
        >>> sigmas = fastscore.geometric_sigmas(10.0, 0.01, 20)
        >>> score = lambda x, sigma: (3 - x) / sigma[:, None] ** 2
        >>> x = fastscore.annealed_langevin(score, sigmas, shape=(4, 2), seed=0)
        >>> torch.allclose(x, torch.full((4, 2), 3.0), atol=1e-5)
        True

        Stopped after 50 steps and resumed, to the same bytes:

        >>> half = fastscore.annealed_langevin(
        ...     score, sigmas, shape=(4, 2), seed=0, callback=lambda step, x: step == 50
        ... )
        >>> again = fastscore.annealed_langevin(score, sigmas, half, start_step=50, seed=0)
        >>> torch.equal(again, x)
        True
    """
    fn = "annealed_langevin"
    levels, device = read_sigmas(fn, sigmas)
    check_choice(fn, "convention", convention, CONVENTIONS)
    steps_per_sigma = check_int(fn, "steps_per_sigma", steps_per_sigma, minimum=1)
    step = check_step_size(fn, step_size, levels, steps_per_sigma, convention)
    table = annealed_table(levels, steps_per_sigma, step, convention, bool(denoise))
    return Plan(
        table,
        levels,
        steps=len(table),
        steps_per_level=steps_per_sigma,
        init_scale=float(levels[0]),
        known_scale=float(levels[0]),
        step_size=f'step_size={step:.4g} (convention="{convention}")',
        device=device,
    )


def check_step_size(
    fn: str, step_size: float | str, sigmas: Tensor, steps_per_sigma: int, convention: str
) -> float:
    """A positive number, or "auto", which Technique 4 answers for two levels or more."""
    if not isinstance(step_size, str):
        return check_number(fn, "step_size", step_size, positive=True)
    if step_size != "auto":
        fail(fn, "step_size", 'a positive number or "auto"', repr(step_size))
    if len(sigmas) < 2:
        fail(fn, "step_size", "a number when there is one noise level only", '"auto"')
    return langevin_step_size(sigmas, steps_per_sigma, convention=convention)
