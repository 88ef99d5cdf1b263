"""The Langevin samplers of other libraries, on the standard normal in d dimensions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastscore.apps.bench.case import NotAvailable
from fastscore.apps.bench.peers.in_jax import Compiled, jax_on, to_jax


def torchebm_langevin(x: Tensor, steps: int, alpha: float) -> Any:
    """A function without arguments that runs the chain from ``x`` and returns its end."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    if x.dim() != 2:
        raise NotAvailable("torchebm samples vectors")

    class Normal(BaseModel):
        """Its energy, and the gradient in closed form as all sides have it."""

        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(dim=-1) / 2

        def gradient(self, x: Tensor, model_kwargs: object = None) -> Tensor:
            return x

    sampler = LangevinDynamics(Normal(device=x.device), step_size=alpha, device=x.device)
    return lambda: sampler.sample(x=x.clone(), n_steps=steps)


def blackjax_langevin(x: Tensor, steps: int, alpha: float) -> Compiled:
    """``blackjax.sgld`` with the exact gradient, under ``lax.scan``."""
    import blackjax

    jax = jax_on(x.device.type)
    sampler = blackjax.sgld(lambda position, _: -position)

    def chain(key: Any, x: Any) -> Any:
        key, now = jax.random.split(key)

        def step(x: Any, key: Any) -> Any:
            return sampler.step(key, x, 0.0, alpha), None

        return key, jax.lax.scan(step, sampler.init(x), jax.random.split(now, steps))[0]

    return Compiled(chain, [jax.random.key(0)], to_jax(x))
