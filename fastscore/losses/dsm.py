r"""Denoising score matching over many noise levels.

For data x and a level sigma_i, with z ~ N(0, I) and x~ = x + sigma_i z, the loss of a sample is

    1/2 lambda(sigma_i) |s(x~, sigma_i) + z / sigma_i|^2

(Vincent 2011; Song and Ermon 2019). For a model that predicts the noise, s = -eps(x~, sigma_i) /
sigma_i, it is 1/2 lambda(sigma_i) / sigma_i^2 |eps(x~, sigma_i) - z|^2.

The noise is never stored: the kernel that perturbs and the kernel that takes the residual, and its
gradient, draw the same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.buffers import ExactBuffers
from fastscore._support.checks import (
    check_choice,
    check_device,
    check_finite,
    check_floating,
    check_int,
    check_shape,
    check_sigmas,
    check_tensor,
    describe,
    fail,
    fail_type,
)
from fastscore.conditioning import CONDITIONINGS, call_model
from fastscore.ops import dsm_residual, perturb
from fastscore.ops._library import traced
from fastscore.ops.dsm import REDUCTIONS

Weighting = str | Callable[[Tensor], Tensor]

WEIGHTINGS = ("sigma2", "none", "likelihood")
PREDICTIONS = ("score", "eps")


def likelihood_weighting(sigmas: Tensor) -> Tensor:
    r"""lambda = g(t)^2 of the variance-exploding SDE that runs through ``sigmas``.

    With lambda dt = g(t)^2 dt = d(sigma^2) the expected loss is, up to a constant that does not
    depend on the model, a bound on the Kullback-Leibler divergence of the model from the data
    perturbed by sigma_L (Song, Durkan, Murray and Ermon 2021, "Maximum likelihood training of
    score-based diffusion models", theorem 1). With L labels drawn uniformly dt is 1/L, and
    d(sigma^2) = sigma^2 d(log sigma^2) is taken by the trapezoidal rule in log sigma:

        lambda_i = L sigma_i^2 (log sigma_{i-1}^2 - log sigma_{i+1}^2) / 2,

    with the one interval that there is at either end. For a geometric sequence that is
    sigma_i^2 times 2 log(sigma_1/sigma_L) L/(L-1), half of it at the ends: but for the ends, the
    "sigma2" weighting times a constant.

    Args:
        sigmas: (L,), float64, at least two levels.

    Example:
        >>> weights = likelihood_weighting(torch.tensor([4.0, 2.0, 1.0]).double())
        >>> [round(float(weight / torch.log(torch.tensor(2.0))), 4) for weight in weights]
        [48.0, 24.0, 3.0]
    """
    steps = -sigmas.square().log().diff()
    padded = torch.cat([steps.new_zeros(1), steps, steps.new_zeros(1)])
    return len(sigmas) * sigmas.square() * (padded[1:] + padded[:-1]) / 2


def weights(fn: str, sigmas: Tensor, weighting: Weighting) -> Tensor:
    """lambda(sigma) for every level, (L,), float64."""
    if callable(weighting):
        values = weighting(sigmas)
        if not isinstance(values, Tensor):
            fail_type(fn, "weighting", "a function that returns a tensor", values)
        check_shape(fn, "weighting", values, sigmas.shape, "one weight for each sigma")
        values = values.detach().to(sigmas)
        if torch.compiler.is_compiling():
            return values
        if not bool((torch.isfinite(values) & (values >= 0)).all()):
            fail(fn, "weighting", "finite and at least 0 for every sigma", values.tolist()[:8])
        return values
    check_choice(fn, "weighting", weighting, WEIGHTINGS, other="a function of the sigmas")
    if weighting == "sigma2":
        return sigmas.square()
    if weighting == "none":
        return torch.ones_like(sigmas)
    if len(sigmas) < 2:
        fail(fn, "sigmas", 'at least 2 levels for weighting="likelihood"', len(sigmas))
    return likelihood_weighting(sigmas)


def dsm_tables(
    fn: str, sigmas: Tensor, weighting: Weighting, prediction: str
) -> tuple[Tensor, Tensor]:
    """The tables of ``perturb``, (L, 2), and of ``dsm_residual``, (L, 3), in float64.

    The loss of a sample at a level is w/2 |p out + q z|^2: (p, q, w) is
    (sigma, 1, lambda/sigma^2) for a score and (-1, 1, lambda/sigma^2) for predicted noise.
    """
    check_choice(fn, "prediction", prediction, PREDICTIONS)
    one = torch.ones_like(sigmas)
    p = sigmas if prediction == "score" else -one
    w = weights(fn, sigmas, weighting) / sigmas.square()
    return torch.stack([one, sigmas], dim=-1), torch.stack([p, one, w], dim=-1)


class Loss(ExactBuffers):
    """A loss as a module."""

    if TYPE_CHECKING:
        __call__: Callable[..., Tensor]


class DSMLoss(Loss):
    r"""Denoising score matching with its noise levels prepared once: :func:`dsm_loss` as a module.

    Args:
        sigmas: noise levels, (L,), positive and strictly decreasing.
        weighting, reduction, prediction, conditioning: see :func:`dsm_loss`.

    The tables move with ``.to(device)``; they stay float64 under ``.half()`` and the like. They are
    not part of the ``state_dict``: the arguments say all.

    Example:
        >>> import torch, fastscore
        >>> loss_fn = fastscore.DSMLoss(fastscore.geometric_sigmas(1.0, 0.01, 10))
        >>> model = fastscore.scores.GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0)
        >>> loss = loss_fn(model, torch.randn(128, 2), seed=0)
        >>> loss.shape
        torch.Size([])

        Three networks trained at once, each with noise of its own:

        >>> from torch.func import functional_call, grad, stack_module_state, vmap
        >>> networks = [fastscore.nn.ScoreMLP(2, hidden=(16,)) for _ in range(3)]
        >>> parameters, buffers = stack_module_state(networks)
        >>> def loss_of(parameters, buffers, key, x):
        ...     state = (parameters, buffers)
        ...     return loss_fn(lambda *at: functional_call(networks[0], state, at), x, key=key)
        >>> keys = torch.stack([fastscore.random.key(seed) for seed in range(3)])
        >>> losses = vmap(loss_of, (0, 0, 0, None))(parameters, buffers, keys, torch.randn(8, 2))
        >>> gradients = vmap(grad(loss_of), (0, 0, 0, None))(
        ...     parameters, buffers, keys, torch.randn(8, 2)
        ... )
        >>> losses.shape
        torch.Size([3])
    """

    sigmas: Tensor
    perturb_table: Tensor
    residual_table: Tensor

    def __init__(
        self,
        sigmas: Tensor | Sequence[float],
        *,
        weighting: Weighting = "sigma2",
        reduction: str = "mean",
        prediction: str = "score",
        conditioning: str = "sigma",
    ) -> None:
        super().__init__()
        fn = "DSMLoss"
        checked = check_sigmas(fn, sigmas).detach()
        values = checked.double()
        tables = dsm_tables(fn, values, weighting, prediction)
        self.reduction = check_choice(fn, "reduction", reduction, REDUCTIONS)
        self.conditioning = check_choice(fn, "conditioning", conditioning, CONDITIONINGS)
        self.weighting = weighting
        self.prediction = prediction
        self.register_buffer("sigmas", values, persistent=False)
        self.register_buffer("perturb_table", tables[0], persistent=False)
        self.register_buffer("residual_table", tables[1], persistent=False)

    def extra_repr(self) -> str:
        return (
            f"levels={len(self.sigmas)}, weighting={self.weighting!r}, "
            f"reduction={self.reduction!r}, prediction={self.prediction!r}, "
            f"conditioning={self.conditioning!r}"
        )

    def forward(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        *,
        labels: Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        """The loss of ``model`` on ``x``; see :func:`dsm_loss` for the arguments."""
        return _loss(
            "DSMLoss",
            model,
            x,
            (self.sigmas, self.perturb_table, self.residual_table),
            labels=labels,
            reduction=self.reduction,
            conditioning=self.conditioning,
            seed=seed,
            generator=generator,
            key=key,
            sample_offset=sample_offset,
        )


def dsm_loss(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    labels: Tensor | None = None,
    weighting: Weighting = "sigma2",
    reduction: str = "mean",
    prediction: str = "score",
    conditioning: str = "sigma",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
) -> Tensor:
    r"""Denoising score matching loss over the noise levels ``sigmas``.

    Every sample gets a level i, drawn uniformly unless ``labels`` are given, and normals z; with
    x~ = x + sigma_i z its loss is

        1/2 lambda(sigma_i) |s(x~, sigma_i) + z / sigma_i|^2

    (Vincent 2011; Song and Ermon 2019), summed over dimensions, averaged over the batch. Beyond
    what the model needs, the only arrays of the size of ``x`` are x~ and, in the backward pass, the
    gradient with respect to the model's output: the noise is drawn again where it is needed.

    In a training loop prefer :class:`DSMLoss`, which checks and prepares the sigmas once. Here they
    are checked in every call, for which the host waits when they lie on a GPU.

    Args:
        model: called ``model(x~, sigma)`` with sigma of shape (batch,); returns the score (or the
            noise, see ``prediction``) in x's shape. Other ways of calling: see ``conditioning``.
        x: data, (batch, ...), float32, float64, bfloat16 or float16; never changed. May require
            grad.
        sigmas: noise levels, (L,), positive and strictly decreasing.
        labels: the level of each sample, (batch,), int64 in [0, L).
        weighting: lambda(sigma): "sigma2" (default), sigma^2; "none", 1; "likelihood", g(t)^2 of
            the variance-exploding SDE (Song, Durkan et al. 2021; exact form:
            ``fastscore.losses.dsm.likelihood_weighting``); or a function of the float64 tensor of
            sigmas that returns the L weights.
        reduction: "mean" or "sum" over the batch, or "none" for the loss of each sample.
        prediction: "score" (default), or "eps" for a model that returns an estimate of z; sample
            from that one as ``fastscore.scores.EpsScore(model)`` (with ``conditioning="index"``
            give it the sigmas too).
        conditioning: "sigma"; "index" for NCSN's ``model(x~, labels)``; "log_sigma"; or "none".
        seed: governs labels and noise; None draws one from PyTorch's default generator.
        generator: where to draw the seed from instead.
        key: int64 tensor [seed, draw] on x's device (``fastscore.random.key``) in place of ``seed``
            and ``generator``: for ``torch.compile(fullgraph=True)``, and for CUDA graphs, where
            adding 1 to ``key[1]`` inside the graph gives fresh noise at each replay.
        sample_offset: number of the first sample in a larger batch, as when a batch is split over
            processes: the shards then meet the labels and noise of the whole.

    Returns:
        A scalar, or (batch,) for ``reduction="none"``: float32, or float64 where the model's output
        is float64.

    Raises:
        ValueError: an argument out of its range, or a model output of another shape. On the CPU
            also NaN or infinity in ``x`` and labels out of range; on a GPU, where looking would
            make the host wait, such samples have the loss NaN.
        TypeError: an argument of the wrong type.

    Example:
        Data from N(0, I) in 2 dimensions: the exact score -x/(1 + sigma^2) has the expected loss
        d/2 * 1/(1 + sigma^2).

        >>> import torch, fastscore
        >>> x = fastscore.random.normal(fastscore.random.key(0), (20_000, 2))
        >>> score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)
        >>> loss = fastscore.dsm_loss(score, x, [1.0], seed=1)
        >>> bool((loss - 0.5).abs() < 0.02)
        True
    """
    fn = "dsm_loss"
    check_floating(fn, "x", x, min_dim=1)
    checked = check_sigmas(fn, sigmas).detach()
    values = checked.double()
    tables = dsm_tables(fn, values, weighting, prediction)
    return _loss(
        fn,
        model,
        x,
        tuple(table.to(x.device) for table in (values, *tables)),
        labels=labels,
        reduction=reduction,
        conditioning=conditioning,
        seed=seed,
        generator=generator,
        key=key,
        sample_offset=sample_offset,
    )


def _loss(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    tables: tuple[Tensor, ...],
    *,
    labels: Tensor | None,
    reduction: str,
    conditioning: str,
    seed: int | None,
    generator: torch.Generator | None,
    key: Tensor | None,
    sample_offset: int,
) -> Tensor:
    sigmas, perturb_table, residual_table = tables
    check_choice(fn, "reduction", reduction, REDUCTIONS)
    check_choice(fn, "conditioning", conditioning, CONDITIONINGS)
    check_int(fn, "sample_offset", sample_offset, minimum=0)
    _check_data(fn, x, sigmas)
    if labels is not None:
        _check_labels(fn, labels, x, len(sigmas))
    key = random.noise_key(fn, x, key, seed, generator)

    noisy, levels = perturb(x, perturb_table, key, labels=labels, sample_offset=sample_offset)
    valid = levels
    if labels is not None and labels.device.type != "cpu":
        # A label out of range, unseen so far, has made its sample NaN; it must not read past the
        # sigmas, nor past an embedding of the model's, as well.
        valid = levels.clamp(0, len(sigmas) - 1)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sigma = sigmas.index_select(0, valid).to(dtype)
    output = call_model(fn, model, noisy, sigma, valid, conditioning)
    return dsm_residual(
        output, residual_table, levels, key, reduction=reduction, sample_offset=sample_offset
    )


# ---- checks ------------------------------------------------------------------------------------


def _values_can_be_read(x: Tensor) -> bool:
    """Not on a GPU, where the host would wait, nor in a traced graph or a function transform."""
    return x.device.type == "cpu" and not traced()


def _check_data(fn: str, x: Any, sigmas: Tensor) -> None:
    check_floating(fn, "x", x, min_dim=1)
    check_device(fn, "x", x, sigmas.device, "where the loss and its sigmas are")
    if _values_can_be_read(x):
        check_finite(fn, "x", x)


def _check_labels(fn: str, labels: Any, x: Tensor, levels: int) -> None:
    check_tensor(fn, "labels", labels)
    if labels.dtype != torch.int64:
        fail(fn, "labels", "a tensor of torch.int64", describe(labels))
    check_shape(fn, "labels", labels, x.shape[:1], "one label for each sample")
    check_device(fn, "labels", labels, x.device, "where x is")
    if _values_can_be_read(labels) and bool(((labels < 0) | (labels >= levels)).any()):
        lo, hi = int(labels.min()), int(labels.max())
        fail(fn, "labels", f"in [0, {levels})", f"labels from {lo} to {hi}")
