"""What ``--op`` takes: families, and names of public functions, each with what its cases do.

An op is named as the function of ``fastscore`` or ``fastscore.ops`` whose work it is,
``_with_grad`` where its gradients are taken too; ``predictor_corrector_step`` and ``rk45_step`` are
several at work together. A whole job, network included, is ``sample_`` or ``train_`` and the
function.
"""

from __future__ import annotations

from collections.abc import Iterator

FAMILIES = {
    "random": "filling a tensor with noise",
    "langevin": "a Langevin step, and chains whose score costs next to nothing",
    "multistep": "one row of a solver on a grid, with the history that it keeps",
    "continuous": "steps of samplers in continuous time but for the network",
    "dsm": "denoising score matching but for the network",
    "runge_kutta": "what an adaptive solver does beside the network, whole and in parts",
    "sliced": "the terms of sliced score matching, and projections",
    "dual": "an activation's value and tangents in one pass",
    "jobs": "sampling and training steps with a network",
    "scaling": "more elements, steps, levels, projections or threads; a call on two elements",
    "capability": "the main kernels in each instruction set of the CPU",
}

OPS = {
    "normal_": "standard normals",
    "uniform_": "uniform numbers in [0, 1)",
    "rademacher_": "-1 and +1, a bit each",
    "langevin_step_": "x <- a x + b s + c z in place, the score s given",
    "multistep_step_": "a step of DPM-Solver++(2M) and of its stochastic form, the score given",
    "langevin": "a chain on N(0, I)",
    "annealed_langevin": "annealed Langevin dynamics about one data point",
    "predictor_corrector_step": "a reverse diffusion step and an annealed corrector, scores given",
    "dsm_loss": "perturbation, loss and the gradient of the network's output, which is given",
    "perturb": "data with noise of a level drawn for each sample",
    "dsm_residual": "the loss of each sample from the network's output, which is given",
    "rk_stage": "the last stage of Dormand and Prince, each sample's step its own",
    "rk_error": "the norm of each sample's error",
    "rk45_step": "whole steps of Dormand and Prince by the ops rk_*, the slopes given",
    "sliced_terms": "v'Jv, (v's)^2/2 and |s|^2/2 of drawn projections, s and Jv given",
    "projections": "projections alone",
    "dual": "an activation's value and tangents",
    "dual_with_grad": "the same and its gradients",
    "sample_annealed_langevin": "annealed Langevin dynamics with a network",
    "train_dsm_loss": "a step of Adam on the denoising loss",
    "train_sde_loss": "a step of Adam on the denoising loss of a process in continuous time",
    "train_ssm_loss": "a step of Adam on the sliced loss",
    "train_score_matching_loss": "a step of Adam on the exact loss; its peers take projections",
}


def listing() -> Iterator[str]:
    """All names with a line each."""
    for title, names in (("families", FAMILIES), ("ops and jobs", OPS)):
        yield f"{title}:"
        width = max(map(len, names))
        yield from (f"    {name:<{width}}  {line}" for name, line in names.items())
