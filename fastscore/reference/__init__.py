"""The ops of ``fastscore.ops`` in pure PyTorch: same names, same signatures, the specification.

Nothing here is compiled, and nothing here imports the compiled extension. These functions say
what the fused kernels must compute; tests and benchmarks compare against them. They are slower
and keep the noise in memory, so prefer ``fastscore.ops`` for work.
"""

from fastscore.reference.dsm import dsm_residual, perturb
from fastscore.reference.langevin import langevin_step, langevin_step_
from fastscore.reference.random import normal_, rademacher_, uniform_

__all__ = [
    "dsm_residual",
    "langevin_step",
    "langevin_step_",
    "normal_",
    "perturb",
    "rademacher_",
    "uniform_",
]
