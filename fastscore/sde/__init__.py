"""Continuous time: data perturbed by a process, x_t = alpha(t) x_0 + sigma(t) z, t in [0, 1].

======================================  ===========================================================
``VE(sigma_min=0.01, sigma_max=50)``    variance exploding: alpha = 1, sigma geometric
``VP(beta_min=0.1, beta_max=20)``       variance preserving, beta linear in t
``SubVP(beta_min=0.1, beta_max=20)``    VP's drift, less noise
``Cosine(offset=0.008)``                variance preserving, alpha a cosine
``DDPM(betas)``                         the chain of a discrete network, its levels joined
``RectifiedFlow()``                     alpha = 1 - t, sigma = t: flow matching
``Process``                             what they all have; ``as_process`` makes one of any object
                                        with ``alpha(t)`` and ``sigma(t)``
``ProcessScore(net, process)``          a network trained for one process as a score for every other
``time_grid``                           the times at which samplers look: module ``grids``
``conversions``                         score, noise, posterior mean, v, velocity: each to each
``sigma_range_of(model)``               the noise levels that a model knows
======================================  ===========================================================

In y = x/alpha every process is the data perturbed by s = sigma/alpha. So a model of (y, s), as all
of this library are, serves every process; a network that was trained in time says so
(``conditioning="time"``), or is made such a model by ``ProcessScore``.

>>> import torch, fastscore
>>> vp = fastscore.sde.VP()
>>> vp, float(vp.diffusion_squared(1.0))
(VP(beta_min=0.1, beta_max=20.0), 20.0)
>>> x = torch.randn(8, 2)
>>> noisy = vp.perturb(x, 0.5, seed=0)  # alpha(0.5) x + sigma(0.5) z
>>> fastscore.sde.conversions.convert(x, noisy, 0.5, vp, source="x0", target="eps").shape
torch.Size([8, 2])
"""

from fastscore.conditioning import sigma_range_of
from fastscore.sde import conversions, grids
from fastscore.sde._given import as_process
from fastscore.sde._process import Process
from fastscore.sde._score import ProcessScore
from fastscore.sde.grids import time_grid
from fastscore.sde.processes import DDPM, VE, VP, Cosine, RectifiedFlow, SubVP

__all__ = [
    "DDPM",
    "VE",
    "VP",
    "Cosine",
    "Process",
    "ProcessScore",
    "RectifiedFlow",
    "SubVP",
    "as_process",
    "conversions",
    "grids",
    "sigma_range_of",
    "time_grid",
]


def __dir__() -> list[str]:
    return sorted(__all__)
