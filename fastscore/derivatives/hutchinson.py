r"""The divergence of a vector field, the trace of its Jacobian, exact or estimated.

    E[v'J v] = tr J    for any v with E[v v'] = I

(Hutchinson 1989, "A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_floating,
    check_int,
    fail,
)
from fastscore._support.common_options import KeyOptions, ModelOptions
from fastscore._support.explain import explained
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.options import Option, takes_options
from fastscore.conditioning import as_sigma, refuse_other_than_score
from fastscore.derivatives.call import Call
from fastscore.derivatives.projections import DISTRIBUTIONS, Batch, Slicing, forward
from fastscore.derivatives.traces import output_and_trace
from fastscore.random import check_numbering, noise_key

METHODS = ("hutchinson", "exact")


class DivergenceOptions(ModelOptions, KeyOptions, total=False):
    """How a divergence is taken."""

    method: Annotated[str, Option("hutchinson", '"hutchinson" or "exact".')]
    projections: Annotated[
        int, Option(1, "M, at least 1; at least 2 for a standard error.", was="probes")
    ]
    distribution: Annotated[
        str,
        Option("rademacher", 'of v: "rademacher", "gaussian" or "sphere" (of radius sqrt(d)).'),
    ]
    chunk_size: Annotated[
        int | None,
        Option(None, 'for "exact" without a closed form, how many unit vectors one pass carries.'),
    ]


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
@takes_options(DivergenceOptions)
def divergence(
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None = None,
    *,
    return_stderr: bool = False,
    **options: Unpack[DivergenceOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The divergence tr J of a vector field at each sample, J being its Jacobian.

    ``"hutchinson"`` is the mean of v'J v over M projections v with E[v v'] = I, without bias
    (Hutchinson 1989). With the symmetric part A of J and d dimensions, the variance of one is

        gaussian      2 |A|_F^2
        rademacher    2 (|A|_F^2 - sum_i a_ii^2)
        sphere        2d/(d+2) (|A|_F^2 - tr(A)^2/d)

    All projections are carried through the model in one pass (:func:`fastscore.jvps`). ``"exact"``
    asks a model that knows its divergence (:func:`fastscore.derivatives.known_divergence`), as
    mixtures, Parzen estimates and adapters around them do; it takes a closed form for multilayer
    perceptrons of one or two hidden layers and one tangent for each dimension for everything else,
    as :func:`fastscore.losses.score_matching_loss` does.

    Args:
        model: the vector field, called ``model(x)``, or ``model(x, sigma)`` when sigma is given;
            returns a tensor of x's shape. Its samples must not depend on one another.
        x: points, (batch, ...), float32, float64, bfloat16 or float16; never changed.
        sigma: noise level(s) for the model, a number or (batch,).
        return_stderr: also return the standard error of each sample's estimate, from the spread
            of its projections; 0 for "exact".

    Returns:
        (batch,), float32, or float64 for a float64 output; with ``return_stderr`` a pair of them.
        Differentiable once, in the model's parameters and x.

    Raises:
        ValueError: an argument out of its range, an output that is not of x's shape.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch
        >>> from fastscore import divergence
        >>> divergence(lambda x: -x, torch.randn(2, 5))
        tensor([-5., -5.])
        >>> x = torch.zeros(1, 3)
        >>> value, stderr = divergence(torch.tanh, x, projections=4, return_stderr=True)
        >>> value, stderr
        (tensor([3.]), tensor([0.]))
    """
    _, trace, stderr = _evaluate("divergence", model, x, sigma, options, return_stderr)
    return trace if stderr is None else (trace, stderr)


@takes_options(DivergenceOptions)
def output_and_divergence(
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None = None,
    **options: Unpack[DivergenceOptions],
) -> tuple[Tensor, Tensor]:
    """The model's output and its divergence, from one pass: :func:`divergence` has the arguments.

    This is what one step of a continuous normalising flow needs.

    Example:
        >>> import torch
        >>> from fastscore import output_and_divergence
        >>> output_and_divergence(lambda x: -x, torch.ones(1, 2))
        (tensor([[-1., -1.]]), tensor([-2.]))
    """
    output, trace, _ = _evaluate("output_and_divergence", model, x, sigma, options, False)
    return output, trace


def _evaluate(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | float | None,
    options: DivergenceOptions,
    with_stderr: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, trace and, when asked for, its standard error."""
    count, distribution = options["projections"], options["distribution"]
    check_floating(fn, "x", x, min_dim=1)
    check_choice(fn, "method", options["method"], METHODS)
    check_choice(fn, "distribution", distribution, DISTRIBUTIONS)
    check_int(fn, "projections", count, minimum=1)
    check_callable(fn, "model", model)
    if sigma is not None:
        refuse_other_than_score(fn, model)
    model_kwargs = check_model_kwargs(fn, options["model_kwargs"])
    call = Call(fn, model, () if sigma is None else (as_sigma(fn, x, sigma),), model_kwargs)
    offset, samples = options["sample_offset"], options["samples"]
    if options["method"] == "exact":
        check_int(fn, "sample_offset", offset, minimum=0)
        with explained(fn, model, x, "none"):
            output, trace = output_and_trace(call, x, chunk_size=options["chunk_size"])
        return output, trace, torch.zeros_like(trace) if with_stderr else None
    if with_stderr and count < 2:
        fail(fn, "projections", "at least 2 with return_stderr=True", count)
    key = noise_key(fn, x, options["key"], options["seed"], options["generator"])
    check_numbering(fn, key, samples, offset, len(x), x.device)
    batch = Batch(x, call, None, key, offset, samples)
    with explained(fn, model, x, "none"):
        vjv, _, output = forward(batch, Slicing(count, distribution))
    stderr = vjv.detach().std(dim=0) / math.sqrt(count) if with_stderr else None
    return output, vjv.mean(dim=0), stderr
