r"""Sliced score matching: score matching whose cost does not grow with the dimension.

Hyvarinen's objective E[1/2 |s|^2 + tr J] needs the trace of the Jacobian J of the score s. With
random projections v, E[v v'] = I, it becomes (Song, Garg, Shi and Ermon 2019, "Sliced Score
Matching: A Scalable Approach to Density and Score Estimation")

    SSM       E[v'J v + 1/2 (v's)^2]
    SSM-VR    E[v'J v + 1/2 |s|^2]

The projections are never stored for the reductions, which draw them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import (
    check_choice,
    check_floating,
    check_int,
    check_number,
    fail_type,
)
from fastscore._support.options import Option, documents, takes_options
from fastscore.derivatives.closed_form import NoClosedForm
from fastscore.derivatives.mixing import MixedSamples
from fastscore.derivatives.projections import DISTRIBUTIONS, METHODS, Batch, Slicing
from fastscore.losses._choice import choose_method, few_dimensions
from fastscore.losses._levels import (
    How,
    ScoreMatchingModule,
    expected_term,
    prepare_levels,
    to_device,
)
from fastscore.losses._options import DrawOptions, LossOptions
from fastscore.losses.score_matching import check_chunk_size, score_matching_term


class Estimation(NamedTuple):
    """How the term of a sample is computed."""

    method: str
    slicing: Slicing
    chunk_size: int | None

    def term(self, batch: Batch) -> tuple[Tensor, str]:
        """The term of each sample, (batch,), and the method that it was computed by."""
        if torch.compiler.is_compiling() and self.method != "finite_difference":
            # Derivatives inside the loss can't be traced: a break in the graph.
            return torch.compiler.disable(self._term)(batch)
        return self._term(batch)

    def _term(self, batch: Batch) -> tuple[Tensor, str]:
        method = self.method
        if method == "auto":
            situation = (batch.call, batch.x, self.slicing)
            method = choose_method(*situation)
            try:
                return self._by(method, batch, auto=True)
            except NoClosedForm:  # the model is not what it was when this was chosen
                method = choose_method(*situation, again=True)
            except MixedSamples:
                method = choose_method(*situation, again=True, mixed=True)
        return self._by(method, batch)

    def _by(self, method: str, batch: Batch, *, auto: bool = False) -> tuple[Tensor, str]:
        """``auto`` does not go to unit vectors where dimensions are many."""
        if method == "exact":
            closed = auto and not few_dimensions(batch.x, self.slicing)
            chunk_size = None if closed else self.chunk_size
            return score_matching_term(batch, chunk_size, closed=closed), method
        return METHODS[method](batch, self.slicing).mean(), method


class SSMOptions(LossOptions, total=False):
    """The options of sliced score matching."""

    projections: Annotated[int, Option(1, "M, at least 1.")]
    distribution: Annotated[
        str,
        Option(
            "rademacher",
            """of v: "rademacher" (the least variance of those with independent entries),
            "gaussian", or "sphere" of radius sqrt(d).""",
        ),
    ]
    variance_reduced: Annotated[bool, Option(True, "SSM-VR or SSM, see above.")]
    method: Annotated[
        str, Option("auto", '"auto", "forward", "reverse", "finite_difference" or "exact".')
    ]
    epsilon: Annotated[
        float | None,
        Option(
            None,
            """of finite differences; by default sqrt(d) times the cube root of the dtype's machine
            epsilon.""",
        ),
    ]
    chunk_size: Annotated[
        int | None,
        Option(None, 'for "exact" without a closed form, how many unit vectors one pass carries.'),
    ]


class _EveryOption(SSMOptions, DrawOptions, total=False):
    """Those of the loss and those of each call."""


def _estimation(fn: str, options: SSMOptions) -> Estimation:
    """The options that say how a term is computed, checked."""
    method, distribution = options["method"], options["distribution"]
    count, epsilon = options["projections"], options["epsilon"]
    variance_reduced = options["variance_reduced"]
    check_int(fn, "projections", count, minimum=1)
    check_choice(fn, "distribution", distribution, DISTRIBUTIONS)
    check_choice(fn, "method", method, ("auto", *METHODS, "exact"))
    if not isinstance(variance_reduced, bool):
        fail_type(fn, "variance_reduced", "True or False", variance_reduced)
    if epsilon is not None:
        check_number(fn, "epsilon", epsilon, positive=True)
    slicing = Slicing(count, distribution, variance_reduced, epsilon)
    return Estimation(method, slicing, check_chunk_size(fn, options["chunk_size"]))


@documents(SSMOptions)
class SSMLoss(ScoreMatchingModule):
    r"""Sliced score matching with its noise levels prepared once: :func:`ssm_loss` as a module.

    Args:
        sigmas: noise levels, (L,), positive and strictly decreasing; None for clean data.

    Attributes:
        chosen_method: the method that the last call used; None before the first.

    The levels move with ``.to(device)``; they stay float64 under ``.half()`` and the like. They are
    not part of the ``state_dict``: the arguments say all.

    Example:
        >>> import torch, fastscore
        >>> from fastscore.losses import SSMLoss
        >>> loss_fn = SSMLoss(projections=4)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
        ... )
        >>> loss = loss_fn(model, torch.randn(128, 2), seed=0)
        >>> loss.shape, loss_fn.chosen_method
        (torch.Size([]), 'exact')
    """

    @takes_options(SSMOptions)
    def __init__(
        self, sigmas: Tensor | Sequence[float] | None = None, **options: Unpack[SSMOptions]
    ) -> None:
        super().__init__(sigmas, options)
        self.options = _estimation("SSMLoss", options)
        self.chosen_method: str | None = None

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        slicing = self.options.slicing
        return (
            f"projections={slicing.count}, distribution={slicing.distribution!r}, "
            f"variance_reduced={slicing.variance_reduced}, method={self.options.method!r}, "
            + super().extra_repr()
        )

    def _estimate(self, batch: Batch) -> Tensor:
        term, self.chosen_method = self.options.term(batch)
        return term


@takes_options(_EveryOption)
def ssm_loss(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    sigmas: Tensor | Sequence[float] | None = None,
    **options: Unpack[_EveryOption],
) -> Tensor:
    r"""Sliced score matching loss, on clean data or over the noise levels ``sigmas``.

    Every sample gets M projections v with E[v v'] = I. With the score s = model(x) and its Jacobian
    J, its loss is the mean over them of

        v'J v + 1/2 |s|^2      variance_reduced=True (SSM-VR)
        v'J v + 1/2 (v's)^2    variance_reduced=False (SSM)

    (Song, Garg, Shi and Ermon 2019, https://arxiv.org/abs/1905.07088), with v'J v and v's summed
    over all dimensions of a sample, averaged over the batch. With ``sigmas`` it is that at
    perturbed data x + sigma_i z, weighted by lambda(sigma_i), with a level i for each sample: what
    NCSN may be trained with in place of denoising (Song and Ermon 2019, section 3.2).

    The methods have the same expectation, that of score matching (but for the error of finite
    differences, of the order of ``epsilon`` squared), and differ in cost and variance:

    ``"forward"``
        J v by forward-mode differentiation, :func:`fastscore.jvps`: one pass, which shares the
        score over all projections. Of an energy J is symmetric, and reverse mode takes its place.
    ``"reverse"``
        J'v by differentiating v's, the usual code. Same v'J v as "forward", up to rounding.
    ``"finite_difference"``
        FD-SSM (Pang et al. 2020, https://arxiv.org/abs/2007.03317): scores at x + u and x - u with
        u = v epsilon/sqrt(d), so that a Rademacher or sphere projection has \|u\| = epsilon; times
        sigma with ``sigmas``. Of a model with dropout both scores see the same masks, but for
        compiled steps, which can't look at the generator. Not in half precision, nor under
        autocast.
    ``"exact"``
        tr J + 1/2 \|s\|^2 with no projections: the mean over all of them and, with
        ``variance_reduced=False`` too, no variance. See :func:`score_matching_loss`. Not where
        samples depend on one another, as they do under batch normalisation in training.
    ``"auto"``
        Whichever of "exact" (with ``variance_reduced=True`` only), "forward" and "reverse" takes
        the fewest operations for this network, dimension, M and the first batch: later batches are
        estimated likewise. Give a method where shards of a batch, in processes of their own, must
        have the losses of the whole (but for the last bits of a network, which may hang on the
        number of its rows). What was chosen is in ``SSMLoss.chosen_method`` and in the
        debug log of the logger "fastscore".

    All of them work for images and data of any rank, for energies
    (:class:`fastscore.scores.EnergyScore`), for compiled models (which run uncompiled where they
    are differentiated) and, from PyTorch 2.11 on and with a break in the graph but for
    "finite_difference", in compiled steps. In a training loop with ``sigmas`` prefer
    :class:`SSMLoss`, which checks and prepares them once.

    Args:
        model: called ``model(x)`` or, with ``sigmas``, ``model(x, sigma)`` with sigma of shape
            (batch,); returns the score in x's shape. Other ways of calling: see ``conditioning``.
        x: data, (batch, ...), float32, float64, bfloat16 or float16; never changed, nor is its
            ``requires_grad``.
        sigmas: noise levels, (L,), positive and strictly decreasing; None for clean data.

    Returns:
        A scalar, or (batch,) for ``reduction="none"``: float32, or float64 where the model's output
        is float64. Differentiable once, in the model's parameters and x.

    Raises:
        ValueError: an argument out of its range, a model output of another shape, half precision
            with "finite_difference", samples that depend on one another with "exact", NaN or
            infinity in x on the CPU.
        TypeError: an argument of the wrong type.

    Example:
        Data from N(0, I) in 3 dimensions, and their score -x: E[tr J + 1/2 |s|^2] = -d/2.

        >>> import torch, fastscore
        >>> from fastscore.losses import ssm_loss
        >>> x = fastscore.random.normal(fastscore.random.key(0), (20_000, 3))
        >>> for distribution in ("rademacher", "gaussian", "sphere"):
        ...     loss = ssm_loss(lambda x: -x, x, distribution=distribution, seed=1)
        ...     assert abs(loss + 1.5) < 0.05
    """
    fn = "ssm_loss"
    check_floating(fn, "x", x, min_dim=1)
    levels = prepare_levels(fn, sigmas, options)
    estimation = _estimation(fn, options)
    return expected_term(
        fn,
        lambda batch: estimation.term(batch)[0],
        model,
        x,
        to_device(levels, x),
        How.of(fn, options, clean=levels is None),
        options,
    )
