r"""Classifier-free guidance: a conditional score, away from the unconditional one.

One network is trained with conditions and, now and then, without (``drop=`` of the losses). Its two
scores s_c and s_u say what a classifier of noisy data would, by Bayes' rule:
grad log p(c | y, s) = s_c - s_u (Ho and Salimans 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_number, fail, fail_type
from fastscore._support.model_kwargs import per_batch
from fastscore._support.null import EXPECTED, check_null, without_conditions
from fastscore._support.terms import Terms
from fastscore.conditioning import check_sigma_range
from fastscore.derivatives.mixing import mixes_samples
from fastscore.guidance._guided import Guided
from fastscore.ops._library import traced


class ClassifierFreeGuidance(Guided):
    r"""A conditional score, guided away from the unconditional one of the same network.

        S(y, s | c) = (1 + w) s(y, s, c) - w s(y, s, null),    w = ``scale``

    (Ho and Salimans 2021, https://arxiv.org/abs/2207.12598; diffusers' ``guidance_scale`` is 1 + w,
    and so is the weight of many a paper.) It is the score of p(y | c) p(c | y)^w where the network
    knows both scores; exact for the class's data with ``w = 0``, which returns the network's
    conditional score, evaluated once, to the byte. At other weights the levels do not belong to the
    perturbed data of any one distribution: samples are more typical of their class, and less
    diverse. w = -1 is the unconditional score.

    With ``sigma_interval=(lo, hi)`` samples of levels lo < s <= hi are guided, the others get the
    conditional score alone (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724, who find
    that guidance harms at high noise and does little at low). Each sample's own level counts, as
    in adaptive solvers. Where none of a batch lies inside, the network is evaluated once; on a GPU
    the host, which would have to wait for the levels, does not know, and it is evaluated twice with
    weights of each sample's own. The score jumps at the ends of the interval, where an adaptive
    solver has to take small steps: on a mixture in 4 dimensions it asked for 171 scores, where
    guidance everywhere asks for 110. A grid's steps take no notice.

    Called ``model(x, sigma, label=labels)``, or by whatever names ``null`` has; it goes into every
    sampler, with ``model_kwargs={"label": labels}``. The samplers' kernels add the two scores as
    they read them.

    Args:
        score: of (x, sigma, **conditions), trained with ``drop=`` and ``null=`` of
            :func:`fastscore.sde_loss` or :func:`fastscore.dsm_loss`; or an adapter, or a network
            that says how it is called. :class:`fastscore.nn.ScoreMLP` with ``classes=10`` is one,
            whose null label is 10.
        null: what stands for no condition, by the names of the conditions: a number, or a tensor of
            a sample's shape.
        scale: w, a number.
        sigma_interval: (lo, hi), the noise levels between which there is guidance; None for all.
        batched: evaluate the network once, for twice the samples. By default twice, which is right
            for every network (one whose samples depend on one another, too), keeps the closed forms
            of derivatives, and holds half the activations. Which is faster hangs on the network:
            on a CPU a small perceptron gains by it, a convolutional network does not.

    Attributes:
        data_shape, sigma_range: those of ``score``, None where it has none.
        conditioning, prediction: "sigma" and "score": how it is called, what it returns.

    Raises:
        ValueError: a name in ``null`` that is not among the conditions, a null value that is none
            of its samples'; an interval that is none; an output that has not the shape of x;
            ``batched`` for a network with a BatchNorm in training.
        TypeError: an argument of the wrong type, a condition that is not a tensor (batch, ...).

    Example:
        Classes 0 and 1, N(-2, 1) and N(2, 1), of equal weight; 2 is no class:

        >>> import torch, fastscore
        >>> both = fastscore.scores.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 1.0)
        >>> means = torch.tensor([[-2.0], [2.0]])
        >>> def score(x, sigma, label):
        ...     one = (means[label.clamp(max=1)] - x) / (1 + sigma[:, None] ** 2)
        ...     return torch.where(label[:, None] == 2, both(x, sigma), one)
        >>> guided = ClassifierFreeGuidance(score, null={"label": 2}, scale=0.5)
        >>> x, labels = torch.zeros(2, 1), torch.tensor([0, 1])
        >>> guided(x, 1.0, label=labels).total()
        tensor([[-1.5000],
                [ 1.5000]])
        >>> sigmas = fastscore.geometric_sigmas(4.0, 0.1, 10)
        >>> fastscore.annealed_langevin(
        ...     guided, sigmas, shape=(2, 1), model_kwargs={"label": labels}
        ... ).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        score: Callable[..., Any],
        *,
        null: Mapping[str, Tensor | float],
        scale: float = 1.0,
        sigma_interval: tuple[float, float] | None = None,
        batched: bool = False,
    ) -> None:
        """See the class."""
        super().__init__(score)
        name = type(self).__name__
        checked = check_null(name, null)
        if not checked:
            fail(name, "null", EXPECTED, "an empty one")
        self._null = checked
        for i, value in enumerate(checked.values()):
            if isinstance(value, Tensor):
                self.register_buffer(f"null_{i}", value, persistent=False)
        self.scale = check_number(name, "scale", scale)
        self.sigma_interval: tuple[float, float] | None = None
        if sigma_interval is not None:
            self.sigma_interval = check_sigma_range(name, "sigma_interval", sigma_interval)
        if not isinstance(batched, bool):
            fail_type(name, "batched", "True or False", batched)
        self.batched = batched
        self._reuses_memory = False  # whether the network was seen to return the same memory again

    @property
    def null(self) -> dict[str, Tensor | float]:
        """What stands for no condition, by name."""
        own = self._buffers
        return {n: own.get(f"null_{i}", v) for i, (n, v) in enumerate(self._null.items())}  # type: ignore[misc]

    def extra_repr(self) -> str:
        """The weight, and where it holds, for ``repr``."""
        parts = [f"scale={self.scale:g}", f"null={self._plain_null()}"]
        if self.sigma_interval is not None:
            parts.append(f"sigma_interval={self.sigma_interval}")
        return ", ".join(parts + ["batched=True"] * self.batched)

    def convention(self) -> dict[str, Any]:
        """The weight, where it holds, and what stands for no condition, in plain values."""
        interval = self.sigma_interval
        return {
            "scale": self.scale,
            "null": self._plain_null(),
            "sigma_interval": None if interval is None else list(interval),
        }

    def _plain_null(self) -> dict[str, Any]:
        return {n: v.tolist() if isinstance(v, Tensor) else v for n, v in self.null.items()}

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor | Terms:
        """The score at ``x``, shape (batch, ...), of noise level ``sigma``, shape (batch,).

        What is given by name goes to the network, the conditions among it.
        """
        level = self._levels(x, sigma)
        weight = self._weight(sigma, level)
        if weight is None:
            return self._score_at(x, level, model_kwargs)
        name = type(self).__name__
        unconditional = without_conditions(name, model_kwargs, self.null, len(x))
        if self.batched:
            given, free = self._both(x, level, model_kwargs, unconditional)
        else:
            given, free = self._one_after_the_other(x, level, model_kwargs, unconditional)
        return Terms([(given, 1 + weight), (free, -weight)])

    def _weight(self, sigma: Tensor | float, level: Tensor) -> Tensor | float | None:
        """w, or that of each sample's level; None where it is known to be 0."""
        if self.sigma_interval is None or self.scale == 0:
            return self.scale or None
        low, high = self.sigma_interval
        if not isinstance(sigma, Tensor):
            return self.scale if low < sigma <= high else None
        inside = (level > low) & (level <= high)
        if level.device.type == "cpu" and not traced() and not bool(inside.any()):
            return None
        return self.scale * inside.to(level.dtype)

    def _one_after_the_other(
        self, x: Tensor, level: Tensor, conditional: dict[str, Any], free: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The two scores, of two calls; copied where the network uses its memory again."""
        first = self._score_at(x, level, conditional)
        if self._reuses_memory:
            first = first.clone()
        second = self._score_at(x, level, free)
        if traced() or type(first) is not Tensor or not _share_memory(first, second):
            return first, second
        self._reuses_memory = True
        return self._one_after_the_other(x, level, conditional, free)

    def _both(
        self, x: Tensor, level: Tensor, conditional: dict[str, Any], free: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The two scores, of one call for twice the samples."""
        batch = len(x)
        if mixes_samples(self.score):
            got = "True, for one with a BatchNorm layer that takes the statistics of its batch"
            fail(type(self).__name__, "batched", "False for a network that mixes its batch", got)
        twice = per_batch(conditional, batch, lambda value: torch.cat([value, value]))
        for name in self._null:
            twice[name] = torch.cat([conditional[name], free[name]])
        both = self._score_at(torch.cat([x, x]), torch.cat([level, level]), twice)
        return both[:batch], both[batch:]


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in one piece of memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0
