r"""Score matching with the exact trace of the score's Jacobian.

    E[tr J + 1/2 |s|^2]

(Hyvarinen 2005, "Estimation of Non-Normalized Statistical Models by Score Matching").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import check_floating, check_int
from fastscore._support.options import Option, documents, takes_options
from fastscore.derivatives.projections import Batch, half_square
from fastscore.derivatives.traces import output_and_trace
from fastscore.losses._levels import (
    How,
    ScoreMatchingModule,
    expected_term,
    prepare_levels,
    to_device,
)
from fastscore.losses._options import DrawOptions, LossOptions


def score_matching_term(batch: Batch, chunk_size: int | None, *, closed: bool = False) -> Tensor:
    """tr J + 1/2 |s|^2 of each sample; with ``closed`` in closed form or not at all."""
    evaluate = output_and_trace
    if torch.compiler.is_compiling():  # can't be traced: a break in the graph
        evaluate = torch.compiler.disable(output_and_trace)
    score, trace = evaluate(batch.call, batch.x, chunk_size=chunk_size, closed=closed)
    return trace + half_square(score)


class ScoreMatchingOptions(LossOptions, total=False):
    """The options of exact score matching."""

    chunk_size: Annotated[
        int | None,
        Option(
            None,
            """how many unit vectors one pass carries where there is no closed form; by default as
            many as keep the tangents of the data below 2^21 elements.""",
        ),
    ]


class _EveryOption(ScoreMatchingOptions, DrawOptions, total=False):
    """Those of the loss and those of each call."""


@documents(ScoreMatchingOptions)
class ScoreMatchingLoss(ScoreMatchingModule):
    r"""Exact score matching with its noise levels prepared once, see :func:`score_matching_loss`.

    Args:
        sigmas: noise levels, (L,), positive and strictly decreasing; None for clean data.

    Example:
        >>> import torch
        >>> from fastscore.losses import ScoreMatchingLoss
        >>> loss_fn = ScoreMatchingLoss(reduction="none")
        >>> loss_fn(lambda x: -x, torch.ones(1, 4))
        tensor([-2.])
    """

    random_terms = False

    @takes_options(ScoreMatchingOptions)
    def __init__(
        self,
        sigmas: Tensor | Sequence[float] | None = None,
        **options: Unpack[ScoreMatchingOptions],
    ) -> None:
        super().__init__(sigmas, options)
        self.chunk_size = check_chunk_size("ScoreMatchingLoss", options["chunk_size"])

    def _estimate(self, batch: Batch) -> Tensor:
        return score_matching_term(batch, self.chunk_size)


def check_chunk_size(fn: str, chunk_size: int | None) -> int | None:
    """At least 1, or None."""
    return None if chunk_size is None else check_int(fn, "chunk_size", chunk_size, minimum=1)


@takes_options(_EveryOption)
def score_matching_loss(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    sigmas: Tensor | Sequence[float] | None = None,
    **options: Unpack[_EveryOption],
) -> Tensor:
    r"""Score matching loss tr J + 1/2 |s|^2 with the exact trace of the score's Jacobian J.

    Up to a constant of the data this is the Fisher divergence 1/2 E|s - grad log p|^2 (Hyvarinen
    2005). A sum over the dimensions of a sample, averaged over the batch. With ``sigmas`` it is
    taken at perturbed data and weighted by lambda(sigma), as :func:`ssm_loss` does.

    The trace is a closed form for a multilayer perceptron of one or two hidden layers, with noise
    levels, skip connections and scalings (:mod:`fastscore.derivatives.closed_form`): one more pass
    through the middle layer, whatever the dimension. A model that knows its own divergence
    (:mod:`fastscore.derivatives.known`) is asked for it. For any other model it is the sum of
    e_i'J e_i over the unit vectors e_i, whose time grows with the dimension, in chunks that bound
    the memory.

    Args:
        model: called ``model(x)`` or, with ``sigmas``, ``model(x, sigma)``; returns the score in
            x's shape. An energy: :class:`fastscore.scores.EnergyScore`.
        x: data, (batch, ...), float32, float64, bfloat16 or float16; never changed.
        sigmas: noise levels, (L,), positive and strictly decreasing; None for clean data, which
            need no random numbers.

    Returns:
        A scalar, or (batch,) for ``reduction="none"``: float32, or float64 where the model's output
        is float64. Differentiable once, in the model's parameters and x.

    Raises:
        ValueError: an argument out of its range, a model output of another shape, a model whose
            samples depend on one another (batch normalisation in training, a mean over the batch)
            and that has no closed form, NaN or infinity in x on the CPU.
        TypeError: an argument of the wrong type.

    Example:
        For the score -x, tr J + 1/2 |s|^2 = -d + |x|^2 / 2.

        >>> import torch
        >>> from fastscore.losses import score_matching_loss
        >>> score_matching_loss(lambda x: -x, torch.ones(5, 4))
        tensor(-2.)
    """
    fn = "score_matching_loss"
    check_floating(fn, "x", x, min_dim=1)
    levels = prepare_levels(fn, sigmas, options)
    chunk_size = check_chunk_size(fn, options["chunk_size"])
    return expected_term(
        fn,
        lambda batch: score_matching_term(batch, chunk_size),
        model,
        x,
        to_device(levels, x),
        How.of(fn, options, clean=levels is None),
        options,
        random_terms=False,
    )
