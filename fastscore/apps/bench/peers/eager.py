"""Plain PyTorch: the formulas in as few passes as a careful user takes, in place where it can be.

Every function here is also what ``torch.compile`` is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Model = Callable[..., Tensor]


# ---- noise and the Langevin step ---------------------------------------------------------------


def rademacher_(out: Tensor) -> Tensor:
    """Signs of normals: on the CPU the fastest of the usual ways, and never 0 as sign_() may be."""
    return torch.copysign(out.new_ones(()), out.normal_(), out=out)


def langevin_step_(x: Tensor, score: Tensor, b: float, c: float) -> Tensor:
    return x.add_(score, alpha=b).add_(torch.randn_like(x), alpha=c)


def guided_step_(
    x: Tensor, score: Tensor, second: Tensor, w: tuple[float, float], b: float, c: float
) -> Tensor:
    """A step of the score w0 score + w1 second."""
    x.add_(score, alpha=b * w[0]).add_(second, alpha=b * w[1])
    return x.add_(torch.randn_like(x), alpha=c)


def multistep_step_(
    x: Tensor, history: Tensor, score: Tensor, square: float, ratio: float, now: float,
    before: float, c: float,
) -> Tensor:  # fmt: skip
    """x <- ratio x + now D + before H + c z with D = x + square score, which is returned."""
    mean = torch.add(x, score, alpha=square)
    x.mul_(ratio).add_(mean, alpha=now).add_(history, alpha=before)
    if c:
        x.add_(torch.randn_like(x), alpha=c)
    return mean


def langevin(score_fn: Callable[[Tensor], Tensor], x: Tensor, steps: int, alpha: float) -> Tensor:
    """``steps`` steps of x <- x + alpha s + sqrt(2 alpha) z."""
    x = x.clone()
    for _ in range(steps):
        langevin_step_(x, score_fn(x), alpha, (2 * alpha) ** 0.5)
    return x


def annealed_langevin(
    model: Model, sigmas: list[float], x: Tensor, steps: int, step_size: float
) -> Tensor:
    """x <- x + alpha_i s + sqrt(2 alpha_i) z, ``steps`` times at each level."""
    x = x.clone()
    sigma = x.new_empty(len(x))
    for level in sigmas:
        sigma.fill_(level)
        alpha = step_size * (level / sigmas[-1]) ** 2
        for _ in range(steps):
            langevin_step_(x, model(x, sigma), alpha, (2 * alpha) ** 0.5)
    return x


# ---- steps in continuous time ------------------------------------------------------------------


def predictor_corrector_(
    x: Tensor, at: Tensor, below: Tensor, sigma: float, next_sigma: float, snr: float
) -> Tensor:
    """A VE process' reverse diffusion from sigma to next_sigma, then the annealed corrector there.

    ``at`` and ``below`` are the scores that each of the two steps takes.
    """
    variance, size = sigma**2 - next_sigma**2, 2 * (snr * next_sigma) ** 2
    langevin_step_(x, at, variance, variance**0.5)
    return langevin_step_(x, below, size, (2 * size) ** 0.5)


def heun(model: Model, sigmas: list[float], x: Tensor) -> Tensor:
    """Algorithm 1 of Karras et al. 2022 for a score: dx/dsigma = -sigma s, Euler to level 0."""
    x = x.clone()
    level = x.new_empty(len(x))
    for sigma, below in itertools.pairwise(sigmas):
        slope = model(x, level.fill_(sigma)) * -sigma
        ahead = x + (below - sigma) * slope
        if below:
            slope = (slope + model(ahead, level.fill_(below)) * -below) / 2
            ahead = x + (below - sigma) * slope
        x = ahead
    return x


# ---- guided samplers ---------------------------------------------------------------------------


def ancestral(score: Model, sigmas: list[float], x: Tensor) -> Tensor:
    """Ho et al. 2020 in noise levels: to a draw of p(x' | x, D), D = x + sigma^2 s; at 0 to D."""
    x = x.clone()
    level = x.new_empty(len(x))
    for sigma, below in itertools.pairwise(sigmas):
        s = score(x, level.fill_(sigma))
        if not below:
            return x.add_(s, alpha=sigma**2)
        langevin_step_(x, s, sigma**2 - below**2, below * (1 - (below / sigma) ** 2) ** 0.5)
    return x


def pigdm(model: Model, mask: Tensor, y: Tensor, noise: float) -> Model:
    """The score given the elements that a mask of ones and zeros leaves (Song et al. 2023)."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.square().reshape(-1, *[1] * (x.dim() - 1))
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            s = model(point, sigma)
            data = torch.addcmul(point, variance, s)
            left = variance / (1 + variance) + noise**2
            off = (y - data.detach()).mul_(mask / left)
            (pull,) = torch.autograd.grad(data, point, off)
        return pull.add_(s.detach())

    return score


def classifier_free(model: Model, scale: float) -> Model:
    """(1 + w) s_c - w s (Ho and Salimans 2021), the model called with a label, 1 or 0."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (1 + scale) * model(x, sigma, label=1) - scale * model(x, sigma, label=0)

    return score


def perturb(x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x~, labels, sigma of each sample, z)."""
    labels = torch.randint(len(sigmas), x.shape[:1], device=x.device)
    sigma = sigmas[labels].reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    z = torch.randn_like(x)
    return torch.addcmul(x, sigma, z), labels, sigma, z


def dsm_residual(output: Tensor, sigma: Tensor, z: Tensor) -> Tensor:
    """1/2 |sigma s + z|^2 of each sample: the weight lambda = sigma^2 multiplied out."""
    return 0.5 * torch.addcmul(z, sigma, output).square().flatten(1).sum(1)


def dsm_loss(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    noisy, _, sigma, z = perturb(x, sigmas)
    return dsm_residual(model(noisy, sigma.flatten()), sigma, z).mean()


def sde_loss(model: Model, x: Tensor) -> Tensor:
    """Of VP, the model called with x_t/alpha and s: 1/2 |s score + z|^2 at uniform times."""
    t = 1e-5 + (1 - 1e-5) * torch.rand(len(x), dtype=torch.float64, device=x.device)
    s = torch.expm1(t * (t * 9.95 + 0.1)).sqrt().to(x.dtype)
    level, z = s.reshape(-1, *[1] * (x.dim() - 1)), torch.randn_like(x)
    return dsm_residual(model(torch.addcmul(x, level, z), s), level, z).mean()


# ---- sliced score matching ---------------------------------------------------------------------


def sliced_terms(score: Tensor, jvp: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    vjv = (v * jvp).flatten(2).sum(-1)
    half_vs2 = (v * score).flatten(2).sum(-1).square() / 2
    return vjv, half_vs2, score.square().flatten(1).sum(-1) / 2


def ssm_terms(model: Model, x: Tensor, count: int) -> Tensor:
    """v'Jv + |s|^2/2 of each sample, mean over Rademacher projections, by differentiating twice."""
    x = x.detach().requires_grad_(True)
    score = model(x)
    total = score.square().flatten(1).sum(1) / 2
    for _ in range(count):
        v = rademacher_(torch.empty_like(x))
        (product,) = torch.autograd.grad((score * v).sum(), x, create_graph=True)
        total = total + (v * product).flatten(1).sum(1) / count
    return total


def ssm_terms_forward(model: Model, x: Tensor, count: int) -> Tensor:
    """The same by ``torch.func.jvp``, vectorised over the projections."""
    v = rademacher_(x.new_empty(count, *x.shape))

    def push(tangent: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(model, (x,), (tangent,))[:2]

    if count == 1:
        score, product = push(v[0])
        products = product.unsqueeze(0)
    else:
        # The annotation of out_dims leaves out that None may stand in the tuple.
        score, products = torch.func.vmap(push, out_dims=(None, 0))(v)  # type: ignore[arg-type]
    vjv = (v * products).flatten(2).sum(-1).mean(0)
    return vjv + score.square().flatten(1).sum(1) / 2


# ---- activations with tangents -----------------------------------------------------------------


def dual_silu(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(h)
    value = h * gate
    return value, (gate + value * (1 - gate)) * hdot


def dual_softplus(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(h), torch.sigmoid(h) * hdot


def dual_tanh(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(h)
    return value, (1 - value * value) * hdot


def dual_gelu(h: Tensor, hdot: Tensor) -> tuple[Tensor, Tensor]:
    cdf = 0.5 * (1 + torch.erf(h * 0.5**0.5))
    density = torch.exp(-0.5 * h * h) * (2 * torch.pi) ** -0.5
    return h * cdf, (cdf + h * density) * hdot


DUALS = {"silu": dual_silu, "softplus": dual_softplus, "tanh": dual_tanh, "gelu": dual_gelu}
