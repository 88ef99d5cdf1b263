"""The fused ops, one module a family: wrapper, fake kernel, autograd.

``fastscore.reference`` has the same names in pure PyTorch; ``csrc/core/<family>.h`` the
mathematics, ``csrc/cpu/<family>.cpp`` and ``csrc/cuda/<family>.cu`` the kernels.
"""

from fastscore.ops.dsm import dsm_residual, perturb
from fastscore.ops.duals import (
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
from fastscore.ops.langevin import langevin_step, langevin_step_
from fastscore.ops.multistep import multistep_step_
from fastscore.ops.random import normal_, rademacher_, uniform_
from fastscore.ops.runge_kutta import rk_advance_, rk_error, rk_stage
from fastscore.ops.sliced import projections, sliced_terms

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
