r"""The divergence of a vector field, the trace of its Jacobian, exact or estimated.

    E[v'J v] = tr J    for any v with E[v v'] = I

(Hutchinson 1989, "A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_floating,
    check_int,
    fail,
    fail_type,
)
from fastscore.conditioning import as_sigma
from fastscore.derivatives.projections import DISTRIBUTIONS, Batch, Slicing, forward
from fastscore.derivatives.traces import output_and_trace
from fastscore.random import noise_key

if TYPE_CHECKING:
    from typing_extensions import Unpack

METHODS = ("hutchinson", "exact")


class DivergenceOptions(TypedDict, total=False):
    """The other arguments of :func:`divergence`, for type checkers."""

    method: str
    probes: int
    distribution: str
    chunk_size: int | None
    seed: int | None
    generator: torch.Generator | None
    key: Tensor | None
    sample_offset: int


@overload
def divergence(
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None = None,
    *,
    return_stderr: Literal[False] = False,
    **options: Unpack[DivergenceOptions],
) -> Tensor: ...
@overload
def divergence(
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None = None,
    *,
    return_stderr: Literal[True],
    **options: Unpack[DivergenceOptions],
) -> tuple[Tensor, Tensor]: ...
def divergence(
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None = None,
    *,
    method: str = "hutchinson",
    probes: int = 1,
    distribution: str = "rademacher",
    return_stderr: bool = False,
    chunk_size: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The divergence tr J of a vector field at each sample, J being its Jacobian.

    ``"hutchinson"`` is the mean of v'J v over M probes v with E[v v'] = I, without bias (Hutchinson
    1989). With the symmetric part A of J and d dimensions, the variance of one probe is

        gaussian      2 |A|_F^2
        rademacher    2 (|A|_F^2 - sum_i a_ii^2)
        sphere        2d/(d+2) (|A|_F^2 - tr(A)^2/d)

    All probes are carried through the model in one pass (:func:`fastscore.jvps`). ``"exact"``
    takes a closed form for multilayer perceptrons of one or two hidden layers and one tangent for
    each dimension for everything else, as :func:`fastscore.losses.score_matching_loss` does.

    Args:
        model: the vector field, called ``model(x)``, or ``model(x, sigma)`` when sigma is given;
            returns a tensor of x's shape. Its samples must not depend on one another.
        x: points, (batch, ...), float32, float64, bfloat16 or float16; never changed.
        sigma: noise level(s) for the model, a number or (batch,).
        method: "hutchinson" (default) or "exact".
        probes: M, at least 1; at least 2 for a standard error.
        distribution: of v: "rademacher" (default), "gaussian" or "sphere" (of radius sqrt(d)).
        return_stderr: also return the standard error of each sample's estimate, from the spread
            of its probes; 0 for "exact".
        chunk_size: for "exact" without a closed form, how many unit vectors one pass carries.
        seed: governs the probes; None draws one from PyTorch's default generator.
        generator: where to draw the seed from instead.
        key: int64 tensor [seed, draw] on x's device in place of ``seed`` and ``generator``.
        sample_offset: number of the first sample in a larger batch.

    Returns:
        (batch,), float32, or float64 for a float64 output; with ``return_stderr`` a pair of them.
        Differentiable once, in the model's parameters and x.

    Raises:
        ValueError: an argument out of its range, an output that is not of x's shape.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch
        >>> from fastscore.derivatives.hutchinson import divergence
        >>> divergence(lambda x: -x, torch.randn(2, 5))
        tensor([-5., -5.])
        >>> value, stderr = divergence(torch.tanh, torch.zeros(1, 3), probes=4, return_stderr=True)
        >>> value, stderr
        (tensor([3.]), tensor([0.]))
    """
    _, trace, stderr = _evaluate(
        "divergence",
        model,
        x,
        sigma,
        method,
        probes,
        distribution,
        return_stderr,
        chunk_size,
        seed,
        generator,
        key,
        sample_offset,
    )
    return trace if stderr is None else (trace, stderr)


def output_and_divergence(
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None = None,
    *,
    method: str = "hutchinson",
    probes: int = 1,
    distribution: str = "rademacher",
    chunk_size: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """The model's output and its divergence, from one pass: :func:`divergence` has the arguments.

    This is what one step of a continuous normalising flow needs.

    Example:
        >>> import torch
        >>> from fastscore.derivatives.hutchinson import output_and_divergence
        >>> output_and_divergence(lambda x: -x, torch.ones(1, 2))
        (tensor([[-1., -1.]]), tensor([-2.]))
    """
    output, trace, _ = _evaluate(
        "output_and_divergence",
        model,
        x,
        sigma,
        method,
        probes,
        distribution,
        False,
        chunk_size,
        seed,
        generator,
        key,
        sample_offset,
    )
    return output, trace


def _evaluate(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None,
    method: str,
    probes: int,
    distribution: str,
    with_stderr: bool,
    chunk_size: int | None,
    seed: int | None,
    generator: torch.Generator | None,
    key: Tensor | None,
    sample_offset: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, trace and, when asked for, its standard error."""
    check_floating(fn, "x", x, min_dim=1)
    check_choice(fn, "method", method, METHODS)
    check_choice(fn, "distribution", distribution, DISTRIBUTIONS)
    check_int(fn, "probes", probes, minimum=1)
    check_int(fn, "sample_offset", sample_offset, minimum=0)
    if not callable(model):
        fail_type(fn, "model", "callable", model)
    args = () if sigma is None else (as_sigma(fn, x, sigma),)
    if method == "exact":
        output, trace = output_and_trace(fn, model, x, args, chunk_size=chunk_size)
        return output, trace, torch.zeros_like(trace) if with_stderr else None
    if with_stderr and probes < 2:
        fail(fn, "probes", "at least 2 with return_stderr=True", probes)
    key = noise_key(fn, x, key, seed, generator)
    batch = Batch(x, args, None, key, sample_offset)
    vjv, _, output = forward(fn, model, batch, Slicing(probes, distribution))
    stderr = vjv.detach().std(dim=0) / math.sqrt(probes) if with_stderr else None
    return output, vjv.mean(dim=0), stderr
