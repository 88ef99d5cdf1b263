"""Annealed Langevin dynamics (Song and Ermon 2019, 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_int, check_number, check_sigmas, fail
from fastscore.samplers._inputs import check_levels, sample
from fastscore.samplers._loop import Callback, Clamp, Model, Plan
from fastscore.samplers.unadjusted import step_coefficients
from fastscore.schedules import CONVENTIONS, langevin_step_size

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastscore.samplers._options import SamplerOptions


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


@overload
def annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    steps_per_sigma: int = ...,
    step_size: float | str = ...,
    convention: str = ...,
    denoise: bool = ...,
    conditioning: str = ...,
    trajectory: None = None,
    **options: Unpack[SamplerOptions],
) -> Tensor: ...
@overload
def annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    steps_per_sigma: int = ...,
    step_size: float | str = ...,
    convention: str = ...,
    denoise: bool = ...,
    conditioning: str = ...,
    trajectory: Sequence[int],
    **options: Unpack[SamplerOptions],
) -> tuple[Tensor, Tensor]: ...
def annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    shape: Sequence[int] | None = None,
    num_samples: int | None = None,
    steps_per_sigma: int = 5,
    step_size: float | str = "auto",
    convention: str = "half",
    denoise: bool = True,
    conditioning: str = "sigma",
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
    stopped and resumed, and every sample meets the same noise. The model runs without gradients
    (one that needs them inside, as an energy does, enables them itself) and in whatever mode,
    train or eval, it is in.

    Args:
        model: called ``model(x, sigma)`` with sigma of shape (batch,); returns the score, in x's
            shape. Other ways of calling: see ``conditioning``. A network that predicts the noise,
            or the data, is made a score by :class:`fastscore.scores.EpsScore` or
            :class:`fastscore.scores.DenoiserScore`, an energy by
            :class:`fastscore.scores.EnergyScore`.
        sigmas: noise levels, (L,), positive and strictly decreasing.
        x: initial state, (batch, ...), taken as it is; never changed. Half precision is continued
            in float32.
        shape: shape of the state, (batch, ...), when no ``x`` is given.
        num_samples: batch size for a model that has a ``data_shape``, when neither ``x`` nor
            ``shape`` is given; 64 by default.
        steps_per_sigma: T, the steps at each level.
        step_size: the step at the smallest level, in the convention chosen; "auto" finds the one
            that keeps the variance right from level to level (Song and Ermon 2020, Technique 4).
            The chain diverges beyond 2 sigma_L^2 (full) or 4 sigma_L^2 (half).
        convention: "half" or "full", see above.
        denoise: end with the denoising step.
        conditioning: "sigma"; "index" for NCSN's ``model(x, labels)`` with int64 labels, 0 for the
            largest sigma; "log_sigma"; or "none" for ``model(x)``.
        init: "normal" (standard deviation sigma_1) or "uniform" in [0, 1), when no ``x`` is given.
        known, mask: inpainting. Where the boolean ``mask`` is True the state is held at ``known``
            plus fresh noise of the current level, and ends as ``known`` exactly. Both broadcast to
            the state's shape; ``known`` may be anything, NaN too, where the mask is False.
        clamp: ``(lo, hi)``, either may be None: the state is projected to this interval after
            every step. To bound only the result, clamp that.
        seed: governs all noise; None draws one from PyTorch's default generator.
        generator: where to draw the seed from instead.
        sample_offset: number of the first sample: a shard of a larger batch that starts at sample
            k draws, with ``sample_offset=k``, what the whole batch would have drawn there.
        start_step: resume after so many steps, with ``x`` the state then and the same ``seed``:
            the result equals that of an uninterrupted run to the last bit.
        dtype: torch.float32 or torch.float64, of a state that is drawn; by default float64 for a
            model of float64 parameters, else float32.
        device: of a state that is drawn; by default where the model's parameters are.
        autocast: torch.bfloat16 or torch.float16 to run the model under autocast. The state keeps
            its precision.
        progress: show a progress bar (needs tqdm). On CUDA it shows steps launched, which may be
            ahead of steps done.
        callback: ``callback(step, x)`` after each step, ``step`` being the number of steps taken
            since the very start, and ``x`` the state itself (clone it to keep it; what is written
            to it goes into the chain). Return True to stop: the state is returned as it is, and
            ``start_step=step`` resumes.
        trajectory: numbers of the levels (0 for sigma_1; negative ones count from the end) at whose
            end the state is recorded. Levels that ended before ``start_step`` are left out.
        cuda_graph: True captures one step, network included, in a CUDA graph that is replayed for
            all steps of all levels; "auto" does so where the state is on a GPU and the run is long
            enough. The result is the same. A model that can't be captured (one that waits for the
            device) runs without, after a warning. Python code in the model runs only in capture.

    Returns:
        Samples, float32 or float64, of the shape asked for; with ``trajectory``, a pair of them
        and the recorded states, (number recorded, batch, ...), from large sigma to small.

    Raises:
        ValueError: an argument out of its range: sigmas that are not positive, finite and
            decreasing, a NaN in ``x``, shapes that don't fit, a model output of another shape,
            ``cuda_graph=True`` on the CPU.
        TypeError: an argument of the wrong type.
        ImportError: ``progress=True`` without tqdm.

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
    given, sigmas = sigmas, check_sigmas(fn, sigmas).detach().double().cpu()
    check_choice(fn, "convention", convention, CONVENTIONS)
    steps_per_sigma = check_int(fn, "steps_per_sigma", steps_per_sigma, minimum=1)
    step_size = check_step_size(fn, step_size, sigmas, steps_per_sigma, convention)
    levels = check_levels(fn, trajectory, len(sigmas))
    table = annealed_table(sigmas, steps_per_sigma, step_size, convention, bool(denoise))
    plan = Plan(
        table,
        sigmas,
        steps=len(table),
        steps_per_level=steps_per_sigma,
        init_scale=float(sigmas[0]),
        known_scale=float(sigmas[0]),
        device=given.device if isinstance(given, Tensor) else None,
    )
    return sample(
        fn,
        model,
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
        record=None if levels is None else [(level + 1) * steps_per_sigma for level in levels],
        cuda_graph=cuda_graph,
    )


def check_step_size(
    fn: str, step_size: float | str, sigmas: Tensor, steps_per_sigma: int, convention: str
) -> float:
    """A positive number, or "auto", which Technique 4 answers for two levels or more."""
    if isinstance(step_size, Tensor) and step_size.dim() == 0:
        step_size = step_size.item()
    if not isinstance(step_size, str):
        return check_number(fn, "step_size", step_size, positive=True)
    if step_size != "auto":
        fail(fn, "step_size", 'a positive number or "auto"', repr(step_size))
    if len(sigmas) < 2:
        fail(fn, "step_size", "a number when there is one noise level only", '"auto"')
    return langevin_step_size(sigmas, steps_per_sigma, convention=convention)
