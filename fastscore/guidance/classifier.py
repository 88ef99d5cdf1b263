r"""Classifier guidance: the score of a class, by a classifier of noisy data.

Bayes' rule for the data perturbed by s, in logarithms and differentiated, is

    grad_y log p(y | c, s) = grad_y log p(y | s) + grad_y log p(c | y, s)

(Song et al. 2021, section 5; Dhariwal and Nichol 2021, with a weight before the last term).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastscore._support.alike import alike_everywhere
from fastscore._support.checks import (
    check_callable,
    check_int,
    check_number,
    describe,
    fail,
    fail_type,
    largest,
    per_sample,
)
from fastscore._support.inference import is_captured, recordable
from fastscore._support.known import known_of
from fastscore._support.model_kwargs import check_model_kwargs, rebuilt
from fastscore._support.rewind import Rewind
from fastscore._support.terms import Terms
from fastscore._support.warn import warn_caller
from fastscore._support.wrappers import said_by
from fastscore.conditioning import sigma_range_of
from fastscore.derivatives.gradients import gradient_of_values
from fastscore.derivatives.mixing import far_apart, mixes_samples, modes_of
from fastscore.guidance._guided import Guided
from fastscore.ops._library import traced
from fastscore.sde import VE, Process, as_process
from fastscore.sde._classifier import (
    check_classes,
    check_labels,
    frame_of_classifier,
    log_probabilities,
    logits_of,
)
from fastscore.sde._frame import X, Y, index_levels
from fastscore.sde._levels import nearest_level

SLACK = 1.01  # by which ranges of noise levels may differ


class ClassifierGuidance(Guided):
    r"""The score of a class: that of the data, and the gradient of a classifier's log probability.

        S(y, s | c) = S(y, s) + scale grad_y log p(c | y, s)

    With the true probabilities of the classes at every noise level and ``scale=1`` it is the exact
    score of the class's data (Bayes; Song et al. 2021, section 5, https://arxiv.org/abs/2011.13456).
    A larger scale, of p(c | y, s)^scale, samples what is typical of the class, and less diverse
    (Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233): at no scale but 1 and 0 do the
    levels belong to the perturbed data of any one distribution. With ``scale=0`` the score is that
    of the data, to the byte, and the classifier is not asked.

    The classifier is trained on noisy data: :func:`fastscore.classifier_loss`. It returns logits,
    (batch, classes). One that knows the time of a process is told it, and sees x_t = alpha y, where
    ``sde`` says of which.

    Called ``model(x, sigma, label=...)``, it goes into every sampler, with
    ``model_kwargs={"label": labels}``. The classifier's gradient costs one pass forward and one
    back, and no pass of its own over memory: the samplers' kernels add it. While gradients are
    recorded the score can be differentiated, so that it has a likelihood.

    Args:
        score: of (x, sigma); or an adapter, or a network that says how it is called.
        classifier: a module or function, called ``classifier(x, sigma)`` with sigma of shape
            (batch,), or otherwise: see ``conditioning``. Its samples must not depend on one
            another, as they do in a BatchNorm in training.
        scale: of the classifier's gradient, a number.
        label: the class of all samples, where it is one for all: a whole number from 0 on.
        conditional: whether the score is told the label as well, by this name: of a network that
            was trained with classes, as Dhariwal and Nichol's best.
        sde: the process that the classifier was trained on, of :mod:`fastscore.sde`, or any object
            with ``alpha(t)`` and ``sigma(t)``; only needed for one that is told the time, or DDPM's
            index.
        conditioning: what the classifier is given beside x: "sigma" or "log_sigma", called with y;
            "time", called with alpha y and ``time_scale`` t; "index", the nearest of its own
            levels; or "none", called with y alone. By default what its own attribute says, else the
            process's ``conditioning``, and "sigma" without one.
        time_scale: by what the time is multiplied; the classifier's own attribute, or 1.
        sigmas: for "index", the noise levels that the index counts, falling or rising,
        betas: or the betas of its chain, of a classifier of x_t/sqrt(alpha^2 + sigma^2).

    Attributes:
        data_shape, sigma_range: those of ``score``, None where it has none.
        conditioning, prediction: "sigma" and "score": how it is called, what it returns.
        net_conditioning: that of the classifier.

    Raises:
        ValueError: a classifier whose output is not (batch, classes), has no gradient in x, or
            whose samples depend on one another (looked at once); a label that is missing, or none
            of its classes (on a GPU looked at once, for the host waits; from then on the score of
            such a sample is NaN); a convention that is unknown, or not the classifier's own.
        TypeError: an argument of the wrong type.

    Example:
        Two classes, N(-2, 1) and N(2, 1): what they are made of is drawn to 2.

        >>> import torch, fastscore
        >>> both = fastscore.scores.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 1.0)
        >>> def classifier(x, sigma):
        ...     return torch.cat([-2 * x, 2 * x], dim=1) / (1 + sigma[:, None] ** 2)
        >>> guided = ClassifierGuidance(both, classifier)
        >>> x, labels = torch.zeros(2, 1), torch.tensor([0, 1])
        >>> guided(x, 1.0, label=labels).total().detach()
        tensor([[-1.],
                [ 1.]])
        >>> sigmas = fastscore.geometric_sigmas(4.0, 0.1, 10)
        >>> fastscore.annealed_langevin(
        ...     guided, sigmas, num_samples=2, model_kwargs={"label": labels}
        ... ).shape
        torch.Size([2, 1])
    """

    net_conditioning: str
    levels: Tensor | None

    def __init__(
        self,
        score: Callable[..., Any],
        classifier: Callable[..., Tensor],
        *,
        scale: float = 1.0,
        label: int | None = None,
        conditional: bool = False,
        sde: Process | Any = None,
        conditioning: str | None = None,
        time_scale: float | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        betas: Tensor | Sequence[float] | None = None,
    ) -> None:
        """See the class."""
        super().__init__(score)
        name = type(self).__name__
        check_callable(name, "classifier", classifier)
        self.scale = check_number(name, "scale", scale)
        if isinstance(label, Tensor) and label.dim():
            way = 'one number for all (model_kwargs={"label": labels} has one of each sample)'
            fail(name, "label", way, describe(label))
        self.label = None if label is None else check_int(name, "label", label, minimum=0)
        if not isinstance(conditional, bool):
            fail_type(name, "conditional", "True or False", conditional)
        self.conditional = conditional
        self.process = None if sde is None else as_process(name, sde)
        if self.process is None and "time" in (conditioning, said_by(classifier, "conditioning")):
            fail(name, "sde", "given, the process of a classifier that is told the time", None)
        frame = frame_of_classifier(
            name,
            classifier,
            self.process or VE(),  # of which y alone is asked
            conditioning=conditioning,
            time_scale=time_scale,
            levels=index_levels(name, sigmas, betas),
        )
        self.net_conditioning, self.time_scale = frame.conditioning, frame.time_scale
        self._frame = replace(frame, levels=None)  # which are a buffer
        self.register_buffer("levels", frame.levels, persistent=False)
        self.classifier = classifier
        self._warn_of_levels()

    def _warn_of_levels(self) -> None:
        """Say so where the classifier does not know all the noise levels that the score does."""
        name = type(self).__name__
        own, known = self.sigma_range, sigma_range_of(self.classifier, fn=name)
        if own is None or known is None:
            return
        if known[0] > own[0] * SLACK or known[1] * SLACK < own[1]:
            warn_caller(
                f"{name}: the classifier was trained on noise levels from {known[0]:.4g} to "
                f"{known[1]:.4g}, the score on those from {own[0]:.4g} to {own[1]:.4g}: outside of "
                "its own the classifier guesses.",
                UserWarning,
            )

    @property
    def differentiates_energy(self) -> bool:
        """Whether a gradient is taken inside: tangents need another way."""
        return self.scale != 0

    def extra_repr(self) -> str:
        """The scale, and how the classifier is called, for ``repr``."""
        parts = [f"scale={self.scale:g}", f"conditioning={self.net_conditioning!r}"]
        if self.label is not None:
            parts.append(f"label={self.label}")
        if self.conditional:
            parts.append("conditional=True")
        return ", ".join(parts + [repr(self.process)] * (self.process is not None))

    def convention(self) -> dict[str, Any]:
        """How the classifier is called, and its weight, in plain values."""
        constants = {} if self.process is None else self.process.constants()
        return {
            "scale": self.scale,
            "label": self.label,
            "conditional": self.conditional,
            "conditioning": self.net_conditioning,
            "time_scale": self.time_scale,
            "levels": None if self.levels is None else self.levels.tolist(),
            **{n: list(v) if isinstance(v, tuple) else v for n, v in constants.items()},
        }

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        *,
        label: Tensor | int | None = None,
        classifier_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> Tensor | Terms:
        """The score at ``x``, shape (batch, ...), of noise level ``sigma``, shape (batch,).

        Args:
            x, sigma: as of any score.
            label: the class of each sample, int64 (batch,), or of all; that of the constructor
                where it is left out.
            classifier_kwargs: what else the classifier is given, by name.
            model_kwargs: what else the score of the data is given, by name.
        """
        level = self._levels(x, sigma)
        if self.conditional:
            label = self._labels(x, self.label if label is None else label)
            model_kwargs = {**model_kwargs, "label": label}
        if self.scale == 0:
            return self._score_at(x, level, model_kwargs)
        # First, for whoever returns the score may use its memory again.
        gradient = self.gradient(x, level, label=label, classifier_kwargs=classifier_kwargs)
        score = self._score_at(x, level, model_kwargs)
        dtype = torch.promote_types(score.dtype, gradient.dtype)
        return Terms([(score.to(dtype), 1.0), (gradient.to(dtype), self.scale)])

    def gradient(
        self,
        x: Tensor,
        sigma: Tensor | float,
        *,
        label: Tensor | int | None = None,
        classifier_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """grad_x log p(label | x, sigma), of x's shape; arguments as of the score.

        >>> import torch, fastscore
        >>> both = fastscore.scores.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 1.0)
        >>> guided = ClassifierGuidance(both, lambda x, s: torch.cat([-x, x], 1), label=1)
        >>> guided.gradient(torch.zeros(1, 1), 1.0).detach()
        tensor([[1.]])
        """
        name = type(self).__name__
        level = self._levels(x, sigma)
        labels = self._labels(x, self.label if label is None else label)
        named = check_model_kwargs(name, classifier_kwargs)
        told = self._told(level)
        self._refuse_mixed(x, told, named)

        def values(at: Tensor, labels: Tensor, *told: Tensor) -> Tensor:
            logits = self._logits(at, told, rebuilt(named, _recordable))
            return log_probabilities(logits, labels, checked=self._checked(labels, logits))

        return gradient_of_values(name, "classifier", values, x, (labels, *told))

    def _labels(self, x: Tensor, label: Any) -> Tensor:
        """The class of each sample, int64 (batch,)."""
        name = type(self).__name__
        if label is None:
            fail(name, "label", 'given, as model_kwargs={"label": labels}', None)
        if isinstance(label, Tensor) and label.dim():
            return check_labels(name, "label", label, x)
        if isinstance(label, Tensor) and label.dtype == torch.int64:
            return label.to(x.device).expand(len(x))
        if isinstance(label, (list, tuple)):
            fail_type(name, "label", "an int64 tensor (batch,), or one number for all", label)
        number = check_int(name, "label", label, minimum=0)
        return torch.full((len(x),), number, dtype=torch.int64, device=x.device)

    def _checked(self, labels: Tensor, logits: Tensor) -> bool:
        """Whether labels were found to be classes; on a GPU they are looked at once."""
        if traced():
            return False
        known, situation = known_of(self), ("labels", logits.shape[1])
        wait = situation not in known and not is_captured(logits)
        if wait:
            known[situation] = True
        return check_classes(type(self).__name__, "label", labels, logits.shape[1], wait=wait)

    def _told(self, level: Tensor) -> tuple[Tensor, ...]:
        """Level, index and, where the classifier sees another variable than y, time and alpha."""
        frame = self._frame
        index = level if self.levels is None else self._index(level)
        if frame.kind == Y and frame.conditioning != "time":
            return level, index

        def numbers(s: Tensor) -> tuple[Tensor, ...]:
            time = frame.process.time_of(s) if frame.kind == X else s
            return time * self.time_scale, frame.alpha(time, s)

        time, alpha = alike_everywhere(numbers, level.double())
        return level, index, time.to(level.dtype), alpha

    def _index(self, level: Tensor) -> Tensor:
        """Of the classifier's level that is nearest."""
        assert self.levels is not None
        if self.levels.device != level.device:
            self.levels = self.levels.to(level.device)  # once, not in each step of a sampler
        return nearest_level(self.levels, level)

    def _logits(self, y: Tensor, told: tuple[Tensor, ...], named: dict[str, Any]) -> Tensor:
        """Of the classifier at y, called as it expects."""
        level, index, *rest = told
        time, seen = None, y
        if rest:
            time, alpha = rest
            wide = torch.promote_types(y.dtype, torch.float32)
            seen = (y.to(wide) * per_sample(alpha.to(wide), y)).to(y.dtype)
        how = self.net_conditioning
        return logits_of(type(self).__name__, self.classifier, seen, how, level, index, time, named)

    def _refuse_mixed(self, x: Tensor, told: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        """The gradient of the sum is each sample's own only where none enters another's logits."""
        name, expected = type(self).__name__, "one whose samples do not depend on one another"
        eager = not traced()
        known, situation = {}, ("apart", modes_of(self.classifier) if eager else ())
        if eager and situation in (known := known_of(self)):
            return
        if isinstance(self.classifier, torch.nn.Module) and mixes_samples(self.classifier):
            got = "one with a BatchNorm layer that takes the statistics of its batch (.eval())"
            fail(name, "classifier", expected, got)
        looks = eager and not is_captured(x) and type(x) is Tensor
        if not looks or len(x) < 2 or not x.numel():
            return
        rewind = Rewind(self.classifier, x)
        with torch.no_grad():
            changed = x.clone()
            changed[1::2] = 1 - 2 * x[1::2]
            alone = self._logits(x, told, named).clone()[::2]
            among = self._logits(changed, told, named)[::2]
        drawn = rewind.has_drawn()
        rewind()
        if not drawn and far_apart(alone, among, largest(alone)):
            got = "one whose logits of a sample change with the others in its batch"
            fail(name, "classifier", expected, got)
        known[situation] = True


def _recordable(value: Any) -> Any:
    """Arguments in which autograd can take part, also those made in inference mode."""
    return recordable(value) if isinstance(value, Tensor) else rebuilt(value, _recordable)
