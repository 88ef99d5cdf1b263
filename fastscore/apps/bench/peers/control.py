"""Posterior samplers of azula and deepinv with a score of this library's.

``net(y, sigma)`` is the score of the data with noise of level sigma, of shape (batch,), added; the
levels fall from the first, where a state of that noise is given, to the last, and one evaluation of
the denoised mean follows there (or the last level is 0). Every step is ancestral (DDPM's, eta = 1),
so that each side asks the network at the same levels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore.apps.bench.peers.continuous import Net, azula_modules

Levels = Sequence[float]

# ---- azula -------------------------------------------------------------------------------------


def sample_azula(
    net: Net,
    x: Tensor,
    sigmas: Levels,
    method: str,
    operator: Any,
    y: Tensor,
    *,
    noise: float,
    iterations: int = 1,
    solver: str = "cg",
    zeta: float = 1.0,
) -> Tensor:
    """``method``: "mmps" (on its DDPM sampler), "pigdm" (which knows no noise), or "dps".

    DPS and PiGDM are samplers there, with steps of their own; MMPS is a denoiser. Its data are
    rows of numbers, which its linear solvers take one by one.
    """
    from azula import guidance

    module, denoiser_of = azula_modules()
    shape = x.shape[1:]

    def flat_net(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x.reshape(-1, *shape), sigma).flatten(1)

    def measured(x: Tensor) -> Tensor:
        return operator.A(x.reshape(-1, *shape)).flatten(1)

    denoiser: Any = denoiser_of(flat_net)
    options: dict[str, Any] = {"steps": len(sigmas) - 1, "silent": True}
    if method == "mmps":
        base: Any = module.DDPMSampler
        given: tuple[Any, ...] = (
            azula_mmps(denoiser, measured, y.flatten(1), noise, solver, iterations),
        )
    elif method == "pigdm":
        base, options["eta"] = guidance.PGDMSampler, 1.0

        def inverse(y_: Tensor) -> Tensor:
            return operator.A_dagger(y_.reshape(-1, *y.shape[1:])).flatten(1)

        given = (denoiser, y.flatten(1), measured, inverse)
    else:
        base, options["zeta"] = guidance.DPSSampler, zeta
        given = (denoiser, y.flatten(1), measured)

    class OnGrid(base):
        timesteps = torch.as_tensor(sigmas).to(torch.float32)

    samples: Tensor = OnGrid(*given, **options)(x.flatten(1))
    return samples.reshape(-1, *shape)


def azula_mmps(
    denoiser: Any, measured: Callable[[Tensor], Tensor], y: Tensor, noise: float, solver: str,
    iterations: int,
) -> Any:  # fmt: skip
    """Its denoiser given y, of rows of numbers."""
    from azula.guidance import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance

    covariance = IsotropicCovariance(torch.tensor(noise**2, dtype=y.dtype))
    return MMPSDenoiser(denoiser, y, measured, covariance, solver=solver, iterations=iterations)


# ---- deepinv -----------------------------------------------------------------------------------

_declared: list[Any] = []  # operators stay as long as what declared them


@functools.cache
def deepinv_package() -> Any:
    """deepinv; it needs torchvision, which a CPU build of torch may not import as it is."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for another torch: what its import asks for is declared
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _declared.append(library)
    import deepinv

    return deepinv


def sample_deepinv(
    net: Net,
    x: Tensor,
    sigmas: Levels,
    method: str,
    physics: Any,
    y: Tensor,
    *,
    iterations: int = 3,
    weight: float = 1.0,
) -> Tensor:
    """``method``: "dps", "pigdm" or "mmps", on its ancestral solver. The last level is above 0.

    ``physics`` is one of its own, with the noise in it. The denoised mean at the last level is that
    of the prior, as there.
    """
    deepinv = deepinv_package()
    sampling = deepinv.sampling

    denoiser: Any = deepinv.models.Denoiser

    class Denoised(denoiser):
        def __init__(self) -> None:
            super().__init__()

        def forward(self, x: Tensor, sigma: Any, **kwargs: Any) -> Tensor:
            level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1).expand(len(x))
            shape = (-1, *[1] * (x.dim() - 1))
            return x + level.square().reshape(shape) * net(x, level)

    kinds: dict[str, Callable[..., Any]] = {
        "dps": sampling.DPSDataFidelity,
        "pigdm": sampling.PiGDMDataFidelity,
        "mmps": sampling.MomentMatchingDataFidelity,
    }
    options: dict[str, Any] = {} if method == "dps" else {"cg_max_iter": iterations}
    ends = sigmas[-1], sigmas[0]
    process = sampling.VarianceExplodingDiffusion(
        sigma_min=ends[0], sigma_max=ends[1], alpha=1.0, dtype=x.dtype
    )
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    times = (levels / ends[0]).log() / torch.tensor(ends[1] / ends[0]).double().log()
    posterior = sampling.PosteriorDiffusion(
        data_fidelity=kinds[method](weight=weight, **options),
        denoiser=Denoised(),
        sde=process,
        solver=sampling.DDPMSolver(timesteps=times),
        dtype=x.dtype,
        minus_one_one=False,
    )
    samples: Tensor = posterior(y, physics, x_init=x)
    return samples
