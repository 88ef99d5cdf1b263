r"""How far a model's score is from the true one.

    F = 1/2 E|s(x) - grad log p(x)|^2

is the Fisher divergence, the quantity that score matching minimises up to a constant (Hyvarinen
2005), and 1/2 E(v'(s(x) - grad log p(x)))^2, over projections v with E[v v'] = I too, its sliced
form (Song, Garg, Shi and Ermon 2019), of the same expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore import random
from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_device,
    check_floating,
    check_int,
    check_output,
    check_shape,
    fail_type,
)
from fastscore._support.common_options import SeedOptions
from fastscore._support.explain import explained
from fastscore._support.lending import lend, lent
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.options import takes_options
from fastscore._support.terms import summed
from fastscore.conditioning import as_sigma, refuse_other_than_score
from fastscore.derivatives.projections import DISTRIBUTIONS, half_square
from fastscore.derivatives.traces import sum_over_sample
from fastscore.ops import projections as draw_projections
from fastscore.ops._library import sum_dtype
from fastscore.ops.dsm import REDUCTIONS, reduced

Score = Callable[..., Tensor]


@torch.no_grad()
def fisher_divergence(
    model: Score,
    true_score: Score | Tensor,
    x: Tensor,
    sigma: Tensor | float | None = None,
    *,
    reduction: str = "mean",
    model_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""1/2 E|s(x) - s_true(x)|^2, summed over dimensions, averaged over the points.

    With points from the data that is the Fisher divergence (Hyvarinen 2005). No gradients.

    Args:
        model: called ``model(x)``, or ``model(x, sigma)`` when sigma is given.
        true_score: the score to compare with: called likewise, or its values, a tensor of x's
            shape.
        x: points, (batch, ...), float32, float64, bfloat16 or float16.
        sigma: noise level(s), a number or (batch,); x are then points of that noise level.
        reduction: "mean" or "sum" over the batch, or "none".
        model_kwargs: what else ``model`` (not ``true_score``) is called with, by name.

    Returns:
        A scalar, or (batch,) for ``reduction="none"``; float32, or float64 for float64 scores.

    Raises:
        ValueError: scores that are not of x's shape, an argument out of its range.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch
        >>> from fastscore.evaluation.fisher import fisher_divergence
        >>> fisher_divergence(lambda x: -x, lambda x: 1 - x, torch.randn(10, 4))
        tensor(2.)
    """
    fn = "fisher_divergence"
    difference = _difference(fn, model, true_score, x, sigma, model_kwargs)
    return _reduce(fn, half_square(difference), reduction)


@takes_options(SeedOptions)
@torch.no_grad()
def sliced_fisher_divergence(
    model: Score,
    true_score: Score | Tensor,
    x: Tensor,
    sigma: Tensor | float | None = None,
    *,
    projections: int = 1,
    distribution: str = "rademacher",
    reduction: str = "mean",
    model_kwargs: Mapping[str, Any] | None = None,
    **draws: Unpack[SeedOptions],
) -> Tensor:
    r"""1/2 E(v'(s(x) - s_true(x)))^2 over points x and projections v with E[v v'] = I.

    The sliced form of :func:`fisher_divergence`, of the same expectation (Song, Garg, Shi and Ermon
    2019, equation 5).

    Args:
        model, true_score, x, sigma, reduction, model_kwargs: see :func:`fisher_divergence`.
        projections: for each point, at least 1.
        distribution: of v: "rademacher" (default), "gaussian" or "sphere" (of radius sqrt(d)).

    Returns, Raises: as :func:`fisher_divergence`.

    Example:
        >>> import torch
        >>> from fastscore.evaluation.fisher import sliced_fisher_divergence
        >>> x = torch.randn(1000, 4)
        >>> value = sliced_fisher_divergence(lambda x: -x, lambda x: 1 - x, x, seed=0)
        >>> bool(abs(value - 2) < 0.5)
        True
    """
    fn = "sliced_fisher_divergence"
    check_int(fn, "projections", projections, minimum=1)
    check_choice(fn, "distribution", distribution, DISTRIBUTIONS)
    difference = _difference(fn, model, true_score, x, sigma, model_kwargs)
    offset, samples = draws["sample_offset"], draws["samples"]
    key = random.make_key(fn, draws["seed"], device=x.device, generator=draws["generator"])
    random.check_numbering(fn, key, samples, offset, len(x), x.device)
    v = draw_projections(
        key,
        x.shape,
        projections,
        distribution=distribution,
        dtype=difference.dtype,
        sample_offset=offset,
        samples=samples,
    )
    values = sum_over_sample(v * difference, 2).square().mean(dim=0) / 2
    return _reduce(fn, values, reduction)


def _difference(
    fn: str,
    model: Score,
    true_score: Score | Tensor,
    x: Tensor,
    sigma: Tensor | float | None,
    model_kwargs: Mapping[str, Any] | None,
) -> Tensor:
    """s - s_true at x, in float32 or float64."""
    check_floating(fn, "x", x, min_dim=1)
    check_callable(fn, "model", model)
    refuse_other_than_score(fn, model)
    refuse_other_than_score(fn, true_score, "true_score")
    args = () if sigma is None else (as_sigma(fn, x, sigma),)
    named = lent(check_model_kwargs(fn, model_kwargs))
    with explained(fn, model, x, "sigma" if args else "none", by_index=False):
        score = check_output(fn, summed(model(lend(x), *map(lend, args), **named)), x)
    if isinstance(true_score, Tensor):
        check_floating(fn, "true_score", true_score)
        check_shape(fn, "true_score", true_score, x.shape, "x's shape")
        check_device(fn, "true_score", true_score, x.device, "where x is")
        true = true_score
    elif callable(true_score):
        true = summed(true_score(lend(x), *map(lend, args)))
        true = check_output(fn, true, x, arg="true_score")
    else:
        fail_type(fn, "true_score", "callable or a tensor", true_score)
    dtype = sum_dtype(torch.promote_types(score.dtype, true.dtype))
    return score.to(dtype) - true.to(dtype)


def _reduce(fn: str, values: Tensor, reduction: str) -> Tensor:
    check_choice(fn, "reduction", reduction, REDUCTIONS)
    return reduced(values, reduction)
