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
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_floating,
    check_int,
    check_number,
    fail_type,
)
from fastscore.derivatives.closed_form import NoClosedForm
from fastscore.derivatives.mixing import MixedSamples
from fastscore.derivatives.projections import DISTRIBUTIONS, METHODS, Batch, Slicing
from fastscore.losses._choice import choose_method, few_dimensions
from fastscore.losses._levels import (
    ScoreMatchingModule,
    check_conditioning,
    expected_term,
    prepare_levels,
    to_device,
)
from fastscore.losses.dsm import Weighting
from fastscore.losses.score_matching import score_matching_term


class Options(NamedTuple):
    """How the term of a sample is computed."""

    method: str
    slicing: Slicing
    chunk_size: int | None

    def term(self, fn: str, model: Callable[..., Tensor], batch: Batch) -> tuple[Tensor, str]:
        """The term of each sample, (batch,), and the method that it was computed by."""
        if torch.compiler.is_compiling() and self.method != "finite_difference":
            # Derivatives inside the loss can't be traced: a break in the graph.
            return torch.compiler.disable(self._term)(fn, model, batch)
        return self._term(fn, model, batch)

    def _term(self, fn: str, model: Callable[..., Tensor], batch: Batch) -> tuple[Tensor, str]:
        method = self.method
        if method == "auto":
            situation = (fn, model, batch.x, batch.args, self.slicing)
            method = choose_method(*situation)
            try:
                return self._by(method, fn, model, batch, auto=True)
            except NoClosedForm:  # the model is not what it was when this was chosen
                method = choose_method(*situation, again=True)
            except MixedSamples:
                method = choose_method(*situation, again=True, mixed=True)
        return self._by(method, fn, model, batch)

    def _by(
        self,
        method: str,
        fn: str,
        model: Callable[..., Tensor],
        batch: Batch,
        *,
        auto: bool = False,
    ) -> tuple[Tensor, str]:
        """``auto`` does not go to unit vectors where dimensions are many."""
        if method == "exact":
            closed = auto and not few_dimensions(batch.x, self.slicing)
            chunk_size = None if closed else self.chunk_size
            return score_matching_term(fn, model, batch, chunk_size, closed=closed), method
        return METHODS[method](fn, model, batch, self.slicing).mean(), method


def _options(
    fn: str,
    projections: int,
    distribution: str,
    variance_reduced: bool,
    method: str,
    epsilon: float | None,
    chunk_size: int | None,
) -> Options:
    check_int(fn, "projections", projections, minimum=1)
    check_choice(fn, "distribution", distribution, DISTRIBUTIONS)
    check_choice(fn, "method", method, ("auto", *METHODS, "exact"))
    if not isinstance(variance_reduced, bool):
        fail_type(fn, "variance_reduced", "True or False", variance_reduced)
    if epsilon is not None:
        check_number(fn, "epsilon", epsilon, positive=True)
    if chunk_size is not None:
        check_int(fn, "chunk_size", chunk_size, minimum=1)
    return Options(
        method, Slicing(projections, distribution, variance_reduced, epsilon), chunk_size
    )


class SSMLoss(ScoreMatchingModule):
    r"""Sliced score matching with its noise levels prepared once: :func:`ssm_loss` as a module.

    Args:
        sigmas: noise levels, (L,), positive and strictly decreasing; None for clean data.
        projections, distribution, variance_reduced, method, weighting, conditioning, reduction,
            epsilon, chunk_size: see :func:`ssm_loss`.

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

    def __init__(
        self,
        sigmas: Tensor | Sequence[float] | None = None,
        *,
        projections: int = 1,
        distribution: str = "rademacher",
        variance_reduced: bool = True,
        method: str = "auto",
        weighting: Weighting = "sigma2",
        conditioning: str | None = None,
        reduction: str = "mean",
        epsilon: float | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(
            sigmas, weighting=weighting, conditioning=conditioning, reduction=reduction
        )
        self.options = _options(
            "SSMLoss", projections, distribution, variance_reduced, method, epsilon, chunk_size
        )
        self.chosen_method: str | None = None

    def extra_repr(self) -> str:
        slicing = self.options.slicing
        return (
            f"projections={slicing.count}, distribution={slicing.distribution!r}, "
            f"variance_reduced={slicing.variance_reduced}, method={self.options.method!r}, "
            + super().extra_repr()
        )

    def _estimate(self, fn: str, model: Callable[..., Tensor], batch: Batch) -> Tensor:
        term, self.chosen_method = self.options.term(fn, model, batch)
        return term


def ssm_loss(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    projections: int = 1,
    distribution: str = "rademacher",
    variance_reduced: bool = True,
    method: str = "auto",
    sigmas: Tensor | Sequence[float] | None = None,
    labels: Tensor | None = None,
    weighting: Weighting = "sigma2",
    conditioning: str | None = None,
    reduction: str = "mean",
    epsilon: float | None = None,
    chunk_size: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
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
        have the losses of the whole. What was chosen is in ``SSMLoss.chosen_method`` and in the
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
        projections: M, at least 1.
        distribution: of v: "rademacher" (default; the least variance of those with independent
            entries), "gaussian", or "sphere" of radius sqrt(d).
        sigmas: noise levels, (L,), positive and strictly decreasing; None for clean data.
        labels: with sigmas, the level of each sample, (batch,), int64 in [0, L); drawn uniformly
            when None.
        weighting: with sigmas, lambda(sigma): "sigma2" (default), "none", "likelihood", or a
            function of the float64 tensor of sigmas that returns the L weights; see ``dsm_loss``.
        conditioning: "sigma", "index" for ``model(x, labels)``, "log_sigma" or "none"; by default
            "sigma" with sigmas and "none" without.
        reduction: "mean" or "sum" over the batch, or "none" for the loss of each sample.
        epsilon: of finite differences; by default sqrt(d) times the cube root of the dtype's
            machine epsilon.
        chunk_size: for "exact" without a closed form, how many unit vectors one pass carries.
        seed: governs projections, labels and noise; None draws one from PyTorch's default
            generator.
        generator: where to draw the seed from instead.
        key: int64 tensor [seed, draw] on x's device (``fastscore.random.key``) in place of ``seed``
            and ``generator``.
        sample_offset: number of the first sample in a larger batch, as when a batch is split over
            processes: the shards then meet the projections, labels and noise of the whole.

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
    levels = prepare_levels(fn, sigmas, weighting)
    options = _options(fn, projections, distribution, variance_reduced, method, epsilon, chunk_size)
    return expected_term(
        fn,
        lambda fn, model, batch: options.term(fn, model, batch)[0],
        model,
        x,
        to_device(levels, x),
        labels=labels,
        conditioning=check_conditioning(fn, conditioning, levels),
        reduction=reduction,
        seed=seed,
        generator=generator,
        key=key,
        sample_offset=sample_offset,
    )
