"""Consistent annealed sampling (Jolicoeur-Martineau et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import check_number, fail
from fastscore.samplers._options import SamplerOptions, sampler
from fastscore.samplers._plan import Model, Plan, read_sigmas


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


@sampler
def consistent_annealed_langevin(
    model: Model,
    sigmas: Tensor | Sequence[float],
    x: Tensor | None = None,
    *,
    eta: float,
    denoise: bool = True,
    **options: Unpack[SamplerOptions],
) -> Plan:
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
        model: called ``model(x, sigma)``; returns the score. See :func:`annealed_langevin`.
        sigmas: noise levels, (L,), positive and strictly decreasing; two at the fewest.
        x: initial state, (batch, ...), taken as it is; never changed.
        eta: what part of the noise each step removes; 1 removes all and adds new noise. Near its
            lower bound 1 - gamma data keep their spread best: of N(0, 0.1), with the exact score
            and 150 levels from 4 to 0.01, samples have the standard deviation 0.312 (0.316 would be
            right) at eta = 0.04, 0.273 at 0.5 and 0.222 at 1.
        denoise: end with the denoising step.
        trajectory: numbers of the levels after whose step the state is recorded.

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
    levels, device = read_sigmas(fn, sigmas, minimum_levels=2)
    eta = check_number(fn, "eta", eta, positive=True)
    table = consistent_table(fn, levels, eta, bool(denoise))
    return Plan(
        table,
        levels,
        steps=len(table),
        steps_per_level=1,
        init_scale=float(levels[0]),
        known_scale=float(levels[0]),
        step_size=f"eta={eta:.4g}",
        device=device,
    )
