"""The fused ops, one module a family: wrapper, fake kernel, autograd.

``fastscore.reference`` has the same names in pure PyTorch; ``csrc/core/<family>.h`` the
mathematics, ``csrc/cpu/<family>.cpp`` and ``csrc/cuda/<family>.cu`` the kernels.
"""

from fastscore.ops.dsm import dsm_residual, perturb
from fastscore.ops.langevin import langevin_step, langevin_step_
from fastscore.ops.random import normal_, rademacher_, uniform_

__all__ = [
    "dsm_residual",
    "langevin_step",
    "langevin_step_",
    "normal_",
    "perturb",
    "rademacher_",
    "uniform_",
]
