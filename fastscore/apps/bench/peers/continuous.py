"""The samplers of other libraries in continuous time, each with a network of this library's.

``net(y, sigma)`` is the score of the data with noise of level sigma, of shape (batch,), added. A
function takes noise of the largest level and returns samples; what its library wants instead of a
score (a denoised mean, a state of unit variance) is made in as few passes as there can be. The
noise levels each of them visits are said with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Net = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]  # of a step

RHO = 7.0  # of Karras' ladder, in EDM and in diffusers
VP_BETAS = (0.1, 20.0)
T_MIN = 1e-3  # where sampling a VP process ends


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """``steps`` levels from the largest to the smallest, float64; the 0 after them left out.

    Karras et al. 2022, (5), with rho = 7.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return (high + ramp * (low - high)) ** RHO


def denoised(net: Net, y: Tensor, sigma: float) -> Tensor:
    """Tweedie's formula: y + sigma^2 score."""
    return torch.add(y, net(y, y.new_full((len(y),), sigma)), alpha=sigma**2)


# ---- diffusers ---------------------------------------------------------------------------------


@functools.cache
def _scheduler(name: str, **config: Any) -> Any:
    """A scheduler, made once as a pipeline does; ``set_timesteps`` starts it afresh."""
    import diffusers

    return getattr(diffusers, name)(**config)


@functools.cache
def _karras_scheduler(name: str, sigma_min: float, sigma_max: float, **config: Any) -> Any:
    """One for a ladder between these levels, which else is between those of its own betas."""
    import diffusers

    config |= {"use_karras_sigmas": True, "prediction_type": "sample"}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.register_to_config(sigma_min=sigma_min, sigma_max=sigma_max)
    return scheduler


@torch.no_grad()
def sample_diffusers_ve(
    net: Net,
    x: Tensor,
    steps: int,
    sigma_min: float,
    sigma_max: float,
    *,
    snr: float = 0.16,
    corrector_steps: int = 1,
) -> Tensor:
    """``ScoreSdeVeScheduler``: ``steps (1 + corrector_steps)`` evaluations.

    ``steps`` levels, log-linear from sigma_max to sigma_min, then 0. At each it corrects, by the
    batch's mean norms, then predicts (reverse diffusion); the last prediction is without noise.
    """
    scheduler = _scheduler(
        "ScoreSdeVeScheduler",
        num_train_timesteps=steps,
        snr=snr,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    mean = x
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i] * torch.ones(len(x), device=x.device)
        for _ in range(corrector_steps):
            (x,) = scheduler.step_correct(net(x, sigma), x, return_dict=False)
        x, mean = scheduler.step_pred(net(x, sigma), t, x, return_dict=False)
    return mean


@torch.no_grad()
def sample_diffusers_euler(
    net: Net, x: Tensor, steps: int, sigma_min: float, sigma_max: float
) -> Tensor:
    """``EDMEulerScheduler``: ``steps`` evaluations, at :func:`karras_sigmas`, then 0."""
    scheduler = _scheduler("EDMEulerScheduler", sigma_min=sigma_min, sigma_max=sigma_max)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True  # our network scales its input by itself
    for sigma, t in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
        x0 = denoised(net, x, sigma)
        (x, _) = scheduler.step(x0, t, x, pred_original_sample=x0, return_dict=False)
    return x


@torch.no_grad()
def sample_diffusers_heun(
    net: Net, x: Tensor, steps: int, sigma_min: float, sigma_max: float
) -> Tensor:
    """``HeunDiscreteScheduler``: ``2 steps - 1`` evaluations, at :func:`karras_sigmas`.

    Its ``sigmas`` hold each level but the first twice; the step from the last to 0 is Euler's.
    """
    scheduler = _karras_scheduler("HeunDiscreteScheduler", sigma_min, sigma_max)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    for sigma, t in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
        (x, _) = scheduler.step(denoised(net, x, sigma), t, x, return_dict=False)
    return x


@torch.no_grad()
def sample_diffusers_dpmpp(
    net: Net,
    x: Tensor,
    steps: int,
    sigma_min: float,
    sigma_max: float,
    *,
    stochastic: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """``DPMSolverMultistepScheduler`` of order 2: ``steps`` evaluations, at :func:`karras_sigmas`.

    First step and last step, to 0, are of order 1, the others of the midpoint form. Its state is
    y/sqrt(1 + sigma^2). ``noise`` gives what each step of the stochastic form adds.
    """
    kind = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    name = "DPMSolverMultistepScheduler"
    scheduler = _karras_scheduler(name, sigma_min, sigma_max, algorithm_type=kind)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    x = x / (1 + scheduler.sigmas[0] ** 2) ** 0.5
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        x0 = denoised(net, x * (1 + sigma**2) ** 0.5, sigma)
        z = noise(i) if noise else None
        (x,) = scheduler.step(x0, t, x, variance_noise=z, return_dict=False)
    return x


def ddim_levels(steps: int, levels: int) -> list[int]:
    """The levels that diffusers' DDIM visits ("leading"): not the last one of ``levels``."""
    return [i * (levels // steps) for i in reversed(range(steps))]


@torch.no_grad()
def sample_diffusers_ddim(
    net: Net,
    x: Tensor,
    steps: int,
    betas: Sequence[float],
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
) -> Tensor:
    """``DDIMScheduler``: ``steps`` evaluations, at :func:`ddim_levels`, then alpha = 1.

    ``net(x, index)`` predicts the noise in x = alpha x_0 + sigma eps at level ``index``, int64
    (batch,), of ``betas``; ``x`` is the state at the first level that is visited. ``noise`` gives
    what each step adds where eta > 0; with eta = 1 these are DDPM's steps on fewer levels.
    """
    scheduler = _scheduler(
        "DDIMScheduler",
        trained_betas=tuple(betas),
        num_train_timesteps=len(betas),  # which it does not count
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    for i, t in enumerate(scheduler.timesteps):
        eps = net(x, t.expand(len(x)))
        z = noise(i) if noise and eta else None
        (x, _) = scheduler.step(eps, t, x, eta=eta, variance_noise=z, return_dict=False)
    return x


# ---- azula -------------------------------------------------------------------------------------


@functools.cache
def azula_modules() -> tuple[Any, Any]:
    """Its samplers, and a denoiser of a score network whose time is the noise level itself."""
    from azula import denoise, noise, sample

    class Levels(noise.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), t

    class Denoised(denoise.Denoiser):
        def __init__(self, net: Net) -> None:
            super().__init__()
            self.net, self.schedule = net, Levels()

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            score = self.net(x_t, t.expand(len(x_t)))
            return denoise.DiracPosterior(torch.addcmul(x_t, t * t, score))

    return sample, Denoised


def sample_azula(
    net: Net, x: Tensor, sampler: str, sigmas: Tensor | Sequence[float], **options: Any
) -> Tensor:
    """A sampler of azula, by its name, from the first of ``sigmas`` to the last.

    An interval costs "DDIMSampler" and "EulerSampler" one evaluation, "xEABSampler" (the multistep
    DPM-Solver++) too, "HeunSampler" two, "PCSampler" 1 + ``corrections``. The last level may be 0
    but for "HeunSampler", which divides by it, and "xEABSampler", which takes its logarithm. Steps
    of its own spacing are log-linear on its ``VESchedule``, and end above 0.
    """
    module, denoiser = azula_modules()
    base: Any = getattr(module, sampler)

    class OnGrid(base):
        timesteps = torch.as_tensor(sigmas).to(torch.float32)

    run = OnGrid(denoiser(net), steps=len(sigmas) - 1, silent=True, **options)
    samples: Tensor = run(x)
    return samples


# ---- torchebm ----------------------------------------------------------------------------------


def vp_alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a VP process, data at t = 0."""
    low, high = VP_BETAS
    log_alpha = -(t**2) * (high - low) / 4 - t * low / 2
    return log_alpha.exp(), torch.expm1(2 * log_alpha).neg().sqrt()


def sample_torchebm(
    net: Net, x: Tensor, steps: int, *, integrator: str = "heun", stochastic: bool = False
) -> Tensor:
    """``FlowSampler`` on its VP interpolant, from x ~ N(0, I); its time runs from noise to data.

    ``steps`` equal steps from t = 0 to 1 - 1e-3. "euler" costs an evaluation a step, "heun" two;
    stochastic (Euler-Maruyama, whose last step is Tweedie's formula) two as well, as drift and
    score each call the network, and one at the end.
    """
    from torchebm.samplers import FlowSampler

    class InTime(torch.nn.Module):
        """The score in the VP process from the score of (y, sigma)."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = vp_alpha_sigma(1 - t)
            wide = alpha.reshape(-1, *[1] * (x.dim() - 1))
            return net(x / wide, sigma / alpha) / wide

    options: dict[str, Any] = {"interpolant": "vp", "prediction": "score", "device": x.device}
    if stochastic:
        sampler = FlowSampler(
            InTime(), "sde", last_step="Tweedie", last_step_size=T_MIN, sample_eps=T_MIN, **options
        )
    else:
        sampler = FlowSampler(InTime(), "ode", sample_eps=T_MIN, integrator=integrator, **options)
    samples: Tensor = sampler.sample(x=x, n_steps=steps)
    return samples


# ---- adaptive solvers --------------------------------------------------------------------------


def _slope(net: Net, variable: str, shape: torch.Size) -> Callable[[Tensor, Tensor], Tensor]:
    """dy/ds = -s S, or dy/dlog s = -s^2 S, of a level for all or one for each sample."""

    def slope(at: Tensor, y: Tensor) -> Tensor:
        sigma = (at.exp() if variable == "log" else at).to(y.dtype).expand(len(y))
        scale = sigma.square() if variable == "log" else sigma
        y = y.reshape(shape)
        score = net(y, sigma)
        return (score * scale.neg().reshape(-1, *[1] * (y.dim() - 1))).flatten(1)

    return slope


def _span(x: Tensor, sigma_min: float, sigma_max: float, variable: str) -> Tensor:
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64, device=x.device)
    return ends.log() if variable == "log" else ends


@torch.no_grad()
def sample_torchdiffeq(
    net: Net,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    variable: str = "log",
) -> Tensor:
    """torchdiffeq's dopri5 on the flow, one step size for the batch, in s or in "log" s."""
    from torchdiffeq import odeint

    slope, span = _slope(net, variable, x.shape), _span(x, sigma_min, sigma_max, variable)
    path = odeint(slope, x.flatten(1), span, rtol=rtol, atol=atol, method="dopri5")
    return path[-1].reshape(x.shape)


@torch.no_grad()
def sample_torchode(
    net: Net,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    variable: str = "log",
) -> Tensor:
    """torchode's dopri5 on the flow, each sample with a step size of its own."""
    import torchode

    slope, span = _slope(net, variable, x.shape), _span(x, sigma_min, sigma_max, variable)
    term = torchode.ODETerm(slope)
    controller = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    ends = span.to(x.dtype).expand(len(x), 2)
    problem = torchode.InitialValueProblem(y0=x.flatten(1), t_eval=ends)
    path: Tensor = solver.solve(problem).ys
    return path[:, -1].reshape(x.shape)
