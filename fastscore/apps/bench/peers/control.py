"""Posterior samplers of azula and deepinv with a score of this library's.

``net(y, sigma)`` is the score of the data with noise of level sigma, of shape (batch,), added; the
levels fall from the first, where a state of that noise is given, to the last, and one evaluation of
the denoised mean follows there (or the last level is 0). Every step is ancestral (DDPM's, eta = 1),
so that each side asks the network at the same levels.
"""

from __future__ import annotations

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

    DPS and PiGDM are samplers there, with steps of their own; MMPS is a denoiser.
    """
    from azula import guidance
    from azula.linalg.covariance import IsotropicCovariance

    module, denoiser_of = azula_modules()
    denoiser: Any = denoiser_of(net)
    options: dict[str, Any] = {"steps": len(sigmas) - 1, "silent": True}
    if method == "mmps":
        covariance = IsotropicCovariance(torch.tensor(noise**2, dtype=x.dtype))
        base: Any = module.DDPMSampler
        given: tuple[Any, ...] = (
            guidance.MMPSDenoiser(
                denoiser, y, operator.A, covariance, solver=solver, iterations=iterations
            ),
        )
    elif method == "pigdm":
        base, options["eta"] = guidance.PGDMSampler, 1.0
        given = (denoiser, y, operator.A, operator.A_dagger)
    else:
        base, options["zeta"] = guidance.DPSSampler, zeta
        given = (denoiser, y, operator.A)

    class OnGrid(base):
        timesteps = torch.as_tensor(sigmas).to(torch.float32)

    samples: Tensor = OnGrid(*given, **options)(x)
    return samples


# ---- deepinv -----------------------------------------------------------------------------------

_declared: list[Any] = []  # operators stay as long as what declared them


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
