"""The ops of ``fastscore.ops`` in pure PyTorch: same names, same signatures, the specification.

Nothing here is compiled, and nothing here imports the compiled extension. These functions say
what the fused kernels must compute; tests and benchmarks compare against them. They are slower
and keep the noise in memory, so prefer ``fastscore.ops`` for work.
"""

from fastscore.reference.dsm import dsm_residual, perturb
from fastscore.reference.duals import (
    dual,
    dual_elu,
    dual_gelu,
    dual_leaky_relu,
    dual_relu,
    dual_sigmoid,
    dual_silu,
    dual_slope,
    dual_softplus,
    dual_stacked,
    dual_tanh,
)
from fastscore.reference.langevin import langevin_step, langevin_step_
from fastscore.reference.multistep import multistep_step_
from fastscore.reference.random import normal_, rademacher_, uniform_
from fastscore.reference.runge_kutta import rk_advance_, rk_error, rk_stage
from fastscore.reference.sliced import projections, sliced_terms

__all__ = [
    "dsm_residual",
    "dual",
    "dual_elu",
    "dual_gelu",
    "dual_leaky_relu",
    "dual_relu",
    "dual_sigmoid",
    "dual_silu",
    "dual_slope",
    "dual_softplus",
    "dual_stacked",
    "dual_tanh",
    "langevin_step",
    "langevin_step_",
    "multistep_step_",
    "normal_",
    "perturb",
    "projections",
    "rademacher_",
    "rk_advance_",
    "rk_error",
    "rk_stage",
    "sliced_terms",
    "uniform_",
]


def __dir__() -> list[str]:
    return sorted(__all__)
