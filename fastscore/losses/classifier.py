r"""The cross-entropy of a classifier of noisy data.

A process perturbs data to x_t = alpha(t) x_0 + sigma(t) z. A classifier that is to guide along it
has to know the classes of such data, at every time: its loss is -log p(label | x_t, t), over times
that are drawn as those of the score's own loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_floating,
    check_number,
    fail,
)
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.options import Option, declared, documents, takes_options
from fastscore.losses._in_time import InTime, perturbed_in_time
from fastscore.losses._options import shown
from fastscore.losses._perturbed import check_data, noise_key
from fastscore.losses._sde_options import CalledOptions, SDEDrawOptions, TimesOptions
from fastscore.losses.dsm import Loss
from fastscore.ops.dsm import REDUCTIONS, reduced
from fastscore.sde import Process
from fastscore.sde._classifier import (
    check_classes,
    check_labels,
    frame_of_classifier,
    logits_of,
)


class ReductionOptions(TypedDict, total=False):
    """What becomes of the samples' losses."""

    label_smoothing: Annotated[
        float,
        Option(
            0.0,
            """in [0, 1): the part of each label's probability that is spread evenly over all
            classes (Szegedy et al. 2016). What is learnt is then no longer the posterior, which
            guidance is exact for.""",
        ),
    ]
    reduction: Annotated[
        str,
        Option("mean", '"mean" or "sum" over the batch, or "none" for the loss of each sample.'),
    ]


class ClassifierOptions(TimesOptions, CalledOptions, ReductionOptions, total=False):
    """What makes one loss of a classifier differ from another."""


class _EveryOption(ClassifierOptions, SDEDrawOptions, total=False):
    """Those of the loss and those of each call."""


@documents(ClassifierOptions)
class ClassifierLoss(Loss):
    r"""The cross-entropy of a classifier of noisy data: :func:`classifier_loss` as a module.

    Args:
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)`` and ``sigma(t)``.

    What it holds moves with ``.to(device)`` and is not part of the ``state_dict``: the arguments
    say all. A call never waits for a GPU.

    Example:
        >>> import torch, fastscore
        >>> loss_fn = fastscore.ClassifierLoss(fastscore.sde.VE())
        >>> classifier = fastscore.nn.NoisyClassifier(2, classes=3)
        >>> x, labels = torch.randn(128, 2), torch.randint(3, (128,))
        >>> loss_fn(classifier, x, labels, seed=0).shape
        torch.Size([])
    """

    @takes_options(ClassifierOptions)
    def __init__(self, sde: Process | Any, **options: Unpack[ClassifierOptions]) -> None:
        super().__init__()
        self._in_time = _prepare("ClassifierLoss", sde, options)
        self.sde = self._in_time.process
        self._options: ClassifierOptions = {n: options[n] for n in _defaults()}  # type: ignore
        for name, tensor in self._in_time.tensors().items():
            self.register_buffer(name, tensor, persistent=False)

    def extra_repr(self) -> str:
        """The process, and the options that are not left at their defaults, for ``repr``."""
        changed = {n: v for n, v in self._options.items() if v is not _defaults()[n]}
        return ", ".join(filter(None, (repr(self.sde), shown(**changed))))

    @takes_options(SDEDrawOptions)
    def forward(
        self,
        classifier: Callable[..., Tensor],
        x: Tensor,
        labels: Tensor,
        **draws: Unpack[SDEDrawOptions],
    ) -> Tensor:
        """The loss of ``classifier`` on ``x``; see :func:`classifier_loss` for the arguments."""
        in_time = self._in_time.with_tensors(self._buffers) if self._buffers else self._in_time
        return _loss("ClassifierLoss", classifier, x, labels, in_time, self._options, draws)


@takes_options(_EveryOption)
def classifier_loss(
    classifier: Callable[..., Tensor],
    x: Tensor,
    labels: Tensor,
    sde: Process | Any,
    **options: Unpack[_EveryOption],
) -> Tensor:
    r"""Cross-entropy of a classifier of the data that a process has perturbed.

    Every sample gets a time t, drawn as :func:`fastscore.sde_loss` draws it unless ``t`` is given,
    and normals z; with x_t = alpha(t) x + sigma(t) z its loss is

        -log p(label | x_t, t)

    (Song et al. 2021, section 5, https://arxiv.org/abs/2011.13456; Dhariwal and Nichol 2021,
    https://arxiv.org/abs/2105.05233), averaged over the batch. Its minimum is the posterior
    probability of the classes at every noise level, with which
    :class:`fastscore.guidance.ClassifierGuidance` is exact. With the seed of ``sde_loss`` it meets
    the same times and noise.

    In a training loop prefer :class:`ClassifierLoss`, which checks and prepares once.

    Args:
        classifier: a module or function that returns logits (batch, classes), called as
            ``conditioning`` says, or its own attribute of that name: "time" for
            ``classifier(x_t, time_scale t)``; "sigma" for ``classifier(x_t / alpha, s)``, s =
            sigma/alpha, "log_sigma" for log s; "index" for the nearest of its own levels; "none"
            for ``classifier(x_t / alpha)``. :class:`fastscore.nn.NoisyClassifier` is one.
        x: data, (batch, ...), float32, float64, bfloat16 or float16; never changed. May require
            grad.
        labels: the class of each sample, int64 (batch,), from 0 on.
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)`` and ``sigma(t)``.

    Returns:
        A scalar, or (batch,) for ``reduction="none"``: float32, or float64 where the logits are.

    Raises:
        ValueError: an argument out of its range; logits that are not (batch, classes). On the CPU
            also NaN or infinity in ``x``, times out of range and labels that are none of the
            classes; on a GPU, where looking would make the host wait, such samples have the loss
            NaN.
        TypeError: an argument of the wrong type; noise levels in place of a process.

    Example:
        Two classes, N(-2, 1) and N(2, 1): the exact classifier, and one that knows nothing.

        >>> import torch, fastscore
        >>> labels = torch.arange(10_000) % 2
        >>> x = fastscore.random.normal((10_000, 1), seed=0) + 4.0 * labels[:, None] - 2
        >>> def exact(x, sigma):
        ...     return torch.cat([-2 * x, 2 * x], dim=1) / (1 + sigma[:, None] ** 2)
        >>> process = fastscore.sde.VE(sigma_max=10.0)
        >>> loss = fastscore.classifier_loss(exact, x, labels, process, seed=1)
        >>> even = lambda x, sigma: torch.zeros(len(x), 2)
        >>> nothing = fastscore.classifier_loss(even, x, labels, process)
        >>> bool(loss < 0.6 * nothing), round(float(nothing), 3)
        (True, 0.693)
    """
    fn = "classifier_loss"
    check_floating(fn, "x", x, min_dim=1)
    in_time = _prepare(fn, sde, options)
    return _loss(fn, classifier, x, labels, in_time, options, options)


def _defaults() -> dict[str, Any]:
    """Of the options of the loss."""
    return declared(ClassifierOptions).defaults


def _prepare(fn: str, sde: Any, options: ClassifierOptions) -> InTime:
    """Check what does not change from call to call."""
    in_time = InTime.of(fn, sde, options)
    check_choice(fn, "reduction", options["reduction"], REDUCTIONS)
    smoothing = check_number(fn, "label_smoothing", options["label_smoothing"], minimum=0.0)
    if smoothing >= 1:
        fail(fn, "label_smoothing", "below 1", smoothing)
    return in_time


def _loss(
    fn: str,
    classifier: Callable[..., Tensor],
    x: Tensor,
    labels: Tensor,
    in_time: InTime,
    options: ClassifierOptions,
    draws: SDEDrawOptions,
) -> Tensor:
    check_data(fn, x)
    check_callable(fn, "classifier", classifier)
    check_labels(fn, "labels", labels, x)
    frame = frame_of_classifier(
        fn,
        classifier,
        in_time.process,
        conditioning=options["conditioning"],
        time_scale=options["time_scale"],
        levels=in_time.levels,
        process_levels=in_time.process_levels,
    )
    named = check_model_kwargs(fn, draws["model_kwargs"])
    key = noise_key(fn, x, draws)
    at = perturbed_in_time(frame, x, in_time.drawn(fn, x, key, draws), key, draws)
    how = frame.conditioning
    logits = logits_of(fn, classifier, at.x, how, at.level, at.number, at.time, named)
    check_classes(fn, "labels", labels, logits.shape[1])
    inside = (labels >= 0) & (labels < logits.shape[1])
    smoothing = float(options["label_smoothing"])
    losses = F.cross_entropy(logits, labels * inside, reduction="none", label_smoothing=smoothing)
    # Not chosen but multiplied: a sample without a loss has no gradient either.
    return reduced(losses * losses.new_ones(()).where(inside, float("nan")), options["reduction"])
