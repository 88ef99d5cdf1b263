"""Consistent annealed sampling (Jolicoeur-Martineau et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from fastscore._support.checks import check_number, check_sigmas, fail
from fastscore.samplers._inputs import check_levels, sample
from fastscore.samplers._loop import Callback, Clamp, Model, Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastscore.samplers._options import SamplerOptions


def consistent_table(fn: str, sigmas: Tensor, eta: float, denoise: bool) -> Tensor:
    """One row a, b, c, k for each step: shape (L - 1 + denoise, 4), float64.

    Raises:
        ValueError: eta outside (1 - gamma, 1 + gamma) for the gamma of some level.

    Example:
        >>> consistent_table("f", torch.tensor([2.0, 1.0]).double(), 1.0, denoise=True)
        tensor([[1., 4., 1., 1.],
                [1., 1., 0., 0.]], dtype=torch.float64)
    """
    gamma = sigmas[1:] / sigmas[:-1]
    lo, hi = float(1 - gamma.min()), float(1 + gamma.min())
    if not lo < eta < hi:
        expected = f"between 1 - gamma = {lo:.6g} and 1 + gamma = {hi:.6g}"
        fail(fn, "eta", f"{expected}, with gamma the smallest sigma_(i+1)/sigma_i", eta)
    beta = torch.sqrt(1 - ((1 - eta) / gamma) ** 2)
    one = torch.ones_like(gamma)
    table = torch.stack([one, eta * sigmas[:-1] ** 2, beta * sigmas[1:], sigmas[1:]], dim=-1)
    if denoise:
        last = table.new_tensor([[1.0, float(sigmas[-1]) ** 2, 0.0, 0.0]])
        return torch.cat([table, last])
    table[-1, 3] = 0.0
    return table


@overload
def consistent_annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    eta: float,
    denoise: bool = ...,
    conditioning: str = ...,
    trajectory: None = None,
    **options: Unpack[SamplerOptions],
) -> Tensor: ...
@overload
def consistent_annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    eta: float,
    denoise: bool = ...,
    conditioning: str = ...,
    trajectory: Sequence[int],
    **options: Unpack[SamplerOptions],
) -> tuple[Tensor, Tensor]: ...
def consistent_annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    eta: float,
    shape: Sequence[int] | None = None,
    num_samples: int | None = None,
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
    r"""Consistent annealed sampling: annealed Langevin whose noise level is right after every step.

    One step for each level but the last (Jolicoeur-Martineau et al. 2020, "Adversarial score
    matching and improved sampling for image generation"), with gamma_i = sigma_{i+1}/sigma_i and
    beta_i = sqrt(1 - ((1 - eta)/gamma_i)^2):

        ``x <- x + eta sigma_i^2 s(x, sigma_i) + beta_i sigma_{i+1} z``

    and at the end, unless ``denoise=False``, ``x + sigma_L^2 s(x, sigma_L)``. A state that has
    noise sigma_i around the data has noise sigma_{i+1} after it, to which end
    1 - gamma < eta < 1 + gamma must hold. In the full convention of :func:`annealed_langevin`,
    eta is step_size/sigma_L^2. For more steps, give more sigmas.

    Args:
        eta: what part of the noise each step removes; 1 removes all and adds new noise. Near its
            lower bound 1 - gamma data keep their spread best: of N(0, 0.1), with the exact score
            and 150 levels from 4 to 0.01, samples have the standard deviation 0.312 (0.316 would be
            right) at eta = 0.04, 0.273 at 0.5 and 0.222 at 1.
        trajectory: numbers of the levels after whose step the state is recorded.
        model, sigmas, x, shape, num_samples, denoise, conditioning, init, known, mask, clamp, seed,
        generator, sample_offset, start_step, dtype, device, autocast, progress, callback,
        cuda_graph: see :func:`annealed_langevin`. Two sigmas are the fewest.

    Returns:
        Samples, float32 or float64; with ``trajectory``, a pair of them and the recorded states.

    Raises:
        ValueError: as :func:`annealed_langevin`, and an eta for which beta is not real.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch, fastscore
        >>> sigmas = fastscore.geometric_sigmas(10.0, 0.01, 100)
        >>> score = lambda x, sigma: (3 - x) / sigma[:, None] ** 2
        >>> x = fastscore.consistent_annealed_langevin(score, sigmas, eta=0.5, shape=(4, 2), seed=0)
        >>> torch.allclose(x, torch.full((4, 2), 3.0), atol=1e-5)
        True
    """
    fn = "consistent_annealed_langevin"
    given, sigmas = sigmas, check_sigmas(fn, sigmas, minimum_levels=2).detach().double().cpu()
    eta = check_number(fn, "eta", eta, positive=True)
    table = consistent_table(fn, sigmas, eta, bool(denoise))
    levels = check_levels(fn, trajectory, len(table))
    plan = Plan(
        table,
        sigmas,
        steps=len(table),
        steps_per_level=1,
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
        record=None if levels is None else [level + 1 for level in levels],
        cuda_graph=cuda_graph,
    )
