r"""Denoising score matching over many noise levels.

For data x and a level sigma_i, with z ~ N(0, I) and x~ = x + sigma_i z, the loss of a sample is

    1/2 lambda(sigma_i) |s(x~, sigma_i) + z / sigma_i|^2

(Vincent 2011; Song and Ermon 2019). For a model that predicts the noise, s = -eps(x~, sigma_i) /
sigma_i, it is 1/2 lambda(sigma_i) / sigma_i^2 |eps(x~, sigma_i) - z|^2. For one that predicts the
data, it is 1/2 lambda(sigma_i) / sigma_i^4 |D(x~, sigma_i) - x|^2, and is written like that,
so that nothing cancels: the kernel meets x, and no noise.

The noise is never stored: the kernel that perturbs and the kernel that takes the residual, and its
gradient, draw the same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.buffers import ExactBuffers
from fastscore._support.checks import (
    check_choice,
    check_floating,
    check_sigmas,
    fail,
)
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.options import documents, takes_options
from fastscore.conditioning import (
    PREDICTIONS,
    call_model,
    conditioning_of,
    prediction_of,
)
from fastscore.losses._dropped import DropOptions, Dropping
from fastscore.losses._options import DrawOptions, LossOptions, Weighting, check_call, shown
from fastscore.losses._perturbed import (
    beside,
    check_data,
    check_levels,
    given_weights,
    noise_key,
    numbering,
    perturbed,
    with_levels,
)
from fastscore.ops import dsm_residual
from fastscore.ops.dsm import REDUCTIONS
from fastscore.sde.conversions import residual_coefficients

WEIGHTINGS = ("sigma2", "none", "likelihood")


def likelihood_weighting(sigmas: Tensor) -> Tensor:
    r"""lambda = g(t)^2 of the variance-exploding SDE that runs through ``sigmas``.

    With lambda dt = g(t)^2 dt = d(sigma^2) the expected loss is, up to a constant that does not
    depend on the model, a bound on the Kullback-Leibler divergence of the model from the data
    perturbed by sigma_L (Song, Durkan, Murray and Ermon 2021, "Maximum likelihood training of
    score-based diffusion models", theorem 1). With L levels drawn uniformly dt is 1/L, and
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
        values, good = given_weights(fn, weighting, sigmas, "sigma")
        if torch.compiler.is_compiling():
            return values
        if not bool(good.all()):
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
    """The tables of ``perturb``, (L, 2), and of ``dsm_residual`` in float64."""
    check_choice(fn, "prediction", prediction, PREDICTIONS)
    w = weights(fn, sigmas, weighting) / sigmas.square()
    noise = torch.stack([torch.ones_like(sigmas), sigmas], dim=-1)
    return noise, _residual_table(prediction, sigmas, w)


def _residual_table(prediction: str, sigmas: Tensor, w: Tensor) -> Tensor:
    """The table of ``dsm_residual``, (L, 3), or (L, 4) for predicted data.

    The loss of a sample at a level is w/2 |p out + q z + h x|^2 with w = lambda/sigma^2: (p, q, h)
    is (sigma, 1, 0) for a score, (-1, 1, 0) for noise and (1/sigma, 0, -1/sigma) for data.
    """
    p, q, h = residual_coefficients(prediction, torch.ones_like(sigmas), sigmas)
    return torch.stack([p, q, w] if h is None else [p, q, w, h], dim=-1)


class Loss(ExactBuffers):
    """A loss as a module."""

    if TYPE_CHECKING:
        __call__: Callable[..., Tensor]


class DSMOptions(LossOptions, DropOptions, total=False):
    """The options of denoising score matching."""


class _EveryOption(DSMOptions, DrawOptions, total=False):
    """Those of the loss and those of each call."""


@documents(DSMOptions)
class DSMLoss(Loss):
    r"""Denoising score matching with its noise levels prepared once: :func:`dsm_loss` as a module.

    Args:
        sigmas: noise levels, (L,), positive and strictly decreasing.

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

    @takes_options(DSMOptions)
    def __init__(self, sigmas: Tensor | Sequence[float], **options: Unpack[DSMOptions]) -> None:
        super().__init__()
        prepared = _prepare("DSMLoss", sigmas, options)
        self._dropping = Dropping.of("DSMLoss", options)
        self.reduction = options["reduction"]
        self.conditioning = options["conditioning"]
        self.weighting = options["weighting"]
        self.prediction = options["prediction"]
        for name, table in {**prepared._asdict(), **self._dropping.tensors()}.items():
            self.register_buffer(name, table, persistent=False)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return shown(
            levels=len(self.sigmas),
            weighting=self.weighting,
            conditioning=self.conditioning,
            prediction=self.prediction,
            reduction=self.reduction,
        )

    @takes_options(DrawOptions)
    def forward(
        self, model: Callable[..., Tensor], x: Tensor, **draws: Unpack[DrawOptions]
    ) -> Tensor:
        """The loss of ``model`` on ``x``; see :func:`dsm_loss` for the arguments."""
        tables = Tables(self.sigmas, self.perturb_table, self.residual_table)
        dropping = self._dropping.with_tensors(self._buffers)
        how = self.conditioning, self.prediction, self.reduction, dropping
        return _loss("DSMLoss", model, x, tables, *how, draws)


@takes_options(_EveryOption)
def dsm_loss(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    **options: Unpack[_EveryOption],
) -> Tensor:
    r"""Denoising score matching loss over the noise levels ``sigmas``.

    Every sample gets a level i, drawn uniformly unless ``levels`` are given, and normals z; with
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

    Returns:
        A scalar, or (batch,) for ``reduction="none"``: float32, or float64 where the model's output
        is float64.

    Raises:
        ValueError: an argument out of its range, or a model output of another shape. On the CPU
            also NaN or infinity in ``x`` and levels out of range; on a GPU, where looking would
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
    tables = Tables(*(table.to(x.device) for table in _prepare(fn, sigmas, options)))
    dropping = Dropping.of(fn, options)
    how = options["conditioning"], options["prediction"], options["reduction"], dropping
    return _loss(fn, model, x, tables, *how, options)


class Tables(NamedTuple):
    """Noise levels, prepared: float64 tensors."""

    sigmas: Tensor  # (L,)
    perturb_table: Tensor  # (L, 2), of ``perturb``
    residual_table: Tensor  # (L, 3) or (L, 4), of ``dsm_residual``


def _prepare(fn: str, sigmas: Tensor | Sequence[float], options: DSMOptions) -> Tables:
    """Check what does not change from call to call, and make the tables."""
    values = check_sigmas(fn, sigmas).detach().double()
    check_choice(fn, "reduction", options["reduction"], REDUCTIONS)
    check_call(fn, options)
    tables = dsm_tables(fn, values, options["weighting"], options["prediction"] or "score")
    return Tables(values, *tables)


def _loss(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    tables: Tables,
    conditioning: str | None,
    prediction: str | None,
    reduction: str,
    dropping: Dropping,
    draws: DrawOptions,
) -> Tensor:
    check_data(fn, x, tables.sigmas)
    conditioning = conditioning_of(fn, model, conditioning, "sigma")
    prepared_for, prediction = prediction, prediction_of(fn, model, prediction)
    draws = with_levels(fn, model, conditioning, draws)
    check_levels(fn, draws, x, len(tables.sigmas))
    model_kwargs = check_model_kwargs(fn, draws["model_kwargs"])
    key = noise_key(fn, x, draws)
    model_kwargs = dropping(fn, model_kwargs, len(x), key, numbering(draws))
    at = perturbed(x, tables.sigmas, tables.perturb_table, key, draws)
    output = call_model(fn, model, at.x, at.sigma, at.levels, conditioning, model_kwargs)
    table = tables.residual_table
    if prediction != "score" and prepared_for is None:  # the model has said so itself
        table = _residual_table(prediction, tables.sigmas, table[:, 2])
    clean = beside(output, x) if prediction == "x0" else None
    options = {"noisy": clean, "reduction": reduction, **numbering(draws)}
    return dsm_residual(output, table, at.drawn, key, **options)
