"""The losses and sampling loops of the papers, written from their formulas.

The loops do in each step what the published experiments do: they keep the states on the host and
write norms to a log, for which the host waits. Here the log goes nowhere, but every line is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[..., Tensor]


def ncsn_annealed_langevin(
    model: Model, sigmas: list[float], x: Tensor, steps: int, step_size: float
) -> tuple[Tensor, list[Tensor]]:
    """Algorithm 1 of Song and Ermon 2019, with its record of states and of the score's size.

    x <- x + alpha_i/2 s + sqrt(alpha_i) z with alpha_i = 2 step_size sigma_i^2 / sigma_L^2.
    """
    path = []
    with open(os.devnull, "w") as log:
        for level, sigma in enumerate(sigmas):
            labels = torch.full((len(x),), sigma, device=x.device)
            alpha = 2 * step_size * (sigma / sigmas[-1]) ** 2
            for _ in range(steps):
                path.append(x.clamp(0.0, 1.0).to("cpu"))
                noise = torch.randn_like(x) * alpha**0.5
                score = model(x, labels)
                x = x + alpha / 2 * score + noise
                size = score.abs()
                print(f"{level} {alpha} {size.mean().item()} {size.max().item()}", file=log)
    return x, path


def ncsnv2_annealed_langevin(
    model: Model, sigmas: list[float], x: Tensor, steps: int, step_size: float
) -> tuple[Tensor, list[Tensor]]:
    """The sampler of Song and Ermon 2020, with the norms that its section 4 looks at.

    x <- x + alpha_i s + sqrt(2 alpha_i) z. The mean norms of score, noise and state, the
    signal-to-noise ratio of the step and the norm of the mean score are logged in each step.
    """
    path = []
    with open(os.devnull, "w") as log:
        for level, sigma in enumerate(sigmas):
            labels = torch.full((len(x),), sigma, device=x.device)
            alpha = step_size * (sigma / sigmas[-1]) ** 2
            for _ in range(steps):
                score = model(x, labels)
                noise = torch.randn_like(x)
                score_norm = score.flatten(1).norm(dim=1).mean()
                noise_norm = noise.flatten(1).norm(dim=1).mean()
                x = x + alpha * score + noise * (2 * alpha) ** 0.5
                state_norm = x.flatten(1).norm(dim=1).mean()
                snr = (alpha / 2) ** 0.5 * score_norm / noise_norm
                mean_norm = score.mean(dim=0).norm() ** 2 * sigma**2
                path.append(x.to("cpu"))
                numbers = [y.item() for y in (score_norm, state_norm, snr, mean_norm)]
                print(f"{level} {alpha} {numbers}", file=log)
    return x, path


def ve_predictor(x: Tensor, score: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """A reverse diffusion step (Song et al. 2021, appendix E), levels of shape (batch,)."""
    drift = torch.zeros_like(x)
    diffusion = torch.sqrt(sigma**2 - next_sigma**2)
    drift = drift - diffusion[:, None, None, None] ** 2 * score
    mean = x - drift
    return mean + diffusion[:, None, None, None] * torch.randn_like(x)


def annealed_corrector(x: Tensor, score: Tensor, sigma: Tensor, snr: float) -> Tensor:
    """A step of annealed Langevin dynamics of size 2 (snr sigma)^2, sigma of shape (batch,)."""
    noise = torch.randn_like(x)
    size = (snr * sigma) ** 2 * 2
    mean = x + size[:, None, None, None] * score
    return mean + noise * torch.sqrt(size * 2)[:, None, None, None]


def predictor_corrector(
    x: Tensor, at: Tensor, below: Tensor, sigma: Tensor, next_sigma: Tensor, snr: float
) -> Tensor:
    """Both, as the scores ``at`` and ``below`` say."""
    x = ve_predictor(x, at, sigma, next_sigma)
    return annealed_corrector(x, below, next_sigma, snr)


def dsm_residual(output: Tensor, noisy: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """1/2 sigma^2 |s(x~, sigma) + (x~ - x)/sigma^2|^2 of each sample (Song and Ermon 2019, (5))."""
    target = -1 / sigma**2 * (noisy - x)
    difference = (output.flatten(1) - target.flatten(1)) ** 2
    return 0.5 * difference.sum(dim=-1) * sigma.flatten() ** 2


def dsm_perturb(x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x~, labels, sigma of each sample)."""
    labels = torch.randint(0, len(sigmas), (len(x),), device=x.device)
    sigma = sigmas[labels].view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return x + torch.randn_like(x) * sigma, labels, sigma


def dsm_loss(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    noisy, _, sigma = dsm_perturb(x, sigmas)
    return dsm_residual(model(noisy, sigma.flatten()), noisy, x, sigma).mean(dim=0)


def sliced_terms(score: Tensor, jvp: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of Song et al. 2019, (7) and (8), projection by projection."""
    vjv = torch.stack([torch.sum(v[m] * jvp[m], dim=-1) for m in range(len(v))])
    vs = torch.stack([torch.sum(score * v[m], dim=-1) for m in range(len(v))])
    return vjv, 0.5 * vs**2, 0.5 * torch.sum(score * score, dim=-1)


def ssm_terms(model: Model, x: Tensor, count: int) -> Tensor:
    """Variance-reduced sliced score matching (Song et al. 2019): the batch repeated for each
    Gaussian projection, differentiated twice."""
    repeated = x.unsqueeze(0).expand(count, *x.shape).contiguous().view(-1, *x.shape[1:])
    repeated = repeated.detach().requires_grad_(True)
    v = torch.randn_like(repeated)
    score = model(repeated)
    projected = torch.sum(score * v)
    gradient = torch.autograd.grad(projected, repeated, create_graph=True)[0]
    square = 0.5 * torch.sum(score.flatten(1) ** 2, dim=-1)
    terms = square + torch.sum((v * gradient).flatten(1), dim=-1)
    return terms.view(count, -1).mean(dim=0)
