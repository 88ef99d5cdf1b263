r"""Denoising score matching in continuous time.

A process perturbs data to x_t = alpha(t) x_0 + sigma(t) z, and the loss of a sample at its time is

    1/2 lambda(t) |score(x_t, t) + z / sigma(t)|^2

(Song et al. 2021). Whatever a network predicts, with w = lambda/sigma^2 it is
w/2 |p output + q z + h x_0|^2, the squared error of the noise that it amounts to: a row of the
kernel's table for each sample, and noise that is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
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
from fastscore._support.options import declared, documents, takes_options
from fastscore.conditioning import PREDICTIONS, call_model
from fastscore.losses._dropped import Dropping
from fastscore.losses._in_time import InTime, perturbed_in_time, table_of
from fastscore.losses._options import shown
from fastscore.losses._perturbed import (
    beside,
    check_data,
    given_weights,
    noise_key,
    numbering,
    values_can_be_read,
)
from fastscore.losses._sde_options import WEIGHTINGS, SDEDrawOptions, SDELossOptions
from fastscore.losses.dsm import Loss
from fastscore.ops import dsm_residual
from fastscore.ops.dsm import REDUCTIONS
from fastscore.sde import Process
from fastscore.sde._frame import Frame


class _EveryOption(SDELossOptions, SDEDrawOptions, total=False):
    """Those of the loss and those of each call."""


@dataclass
class Prepared:
    """What does not change from call to call, checked."""

    in_time: InTime
    options: SDELossOptions
    dropping: Dropping

    def tensors(self) -> dict[str, Tensor]:
        """What has to be where the data are, under names of its own."""
        return {**self.dropping.tensors(), **self.in_time.tensors()}

    def with_tensors(self, moved: Mapping[str, Any]) -> Prepared:
        """With these in their place."""
        if not moved:
            return self
        in_time, dropping = self.in_time.with_tensors(moved), self.dropping.with_tensors(moved)
        return Prepared(in_time, self.options, dropping)


@documents(SDELossOptions)
class SDELoss(Loss):
    r"""Denoising score matching in continuous time, prepared once: :func:`sde_loss` as a module.

    Args:
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)`` and ``sigma(t)``.

    What it holds moves with ``.to(device)`` and is not part of the ``state_dict``: the arguments
    say all. A call never waits for a GPU.

    Example:
        >>> import torch, fastscore
        >>> loss_fn = fastscore.SDELoss(fastscore.sde.VP(), prediction="eps", times="log_uniform")
        >>> net = torch.nn.Linear(3, 2)
        >>> model = lambda x, t: net(torch.cat([x, t[:, None]], dim=1))
        >>> loss = loss_fn(model, torch.randn(128, 2), seed=0)
        >>> loss.shape
        torch.Size([])

        For classifier-free guidance one sample of ten is of no class, here of number 3:

        >>> loss_fn = fastscore.SDELoss(fastscore.sde.VE(), drop=0.1, null={"label": 3})
        >>> table = torch.nn.Embedding(4, 2)
        >>> model = lambda x, sigma, label: (table(label) - x) / (1 + sigma[:, None] ** 2)
        >>> labels = torch.randint(3, (128,))
        >>> loss_fn(model, torch.randn(128, 2), model_kwargs={"label": labels}).shape
        torch.Size([])
    """

    @takes_options(SDELossOptions)
    def __init__(self, sde: Process | Any, **options: Unpack[SDELossOptions]) -> None:
        super().__init__()
        host = _prepare("SDELoss", sde, options)
        self.sde, self._host = host.in_time.process, host
        for name, tensor in host.tensors().items():
            self.register_buffer(name, tensor, persistent=False)

    def extra_repr(self) -> str:
        """The process, and the options that are not left at their defaults, for ``repr``."""
        defaults = declared_defaults()
        options = self._host.options.items()
        changed = {n: v for n, v in options if n in SHOWN or v is not defaults[n]}
        return f"{self.sde!r}, {shown(**changed)}"

    @takes_options(SDEDrawOptions)
    def forward(
        self, model: Callable[..., Tensor], x: Tensor, **draws: Unpack[SDEDrawOptions]
    ) -> Tensor:
        """The loss of ``model`` on ``x``; see :func:`sde_loss` for the arguments."""
        return _loss("SDELoss", model, x, self._host.with_tensors(self._buffers), draws)


@takes_options(_EveryOption)
def sde_loss(
    model: Callable[..., Tensor],
    x: Tensor,
    sde: Process | Any,
    **options: Unpack[_EveryOption],
) -> Tensor:
    r"""Denoising score matching loss of a process in continuous time.

    Every sample gets a time t, drawn unless ``t`` is given, and normals z; with
    x_t = alpha(t) x + sigma(t) z its loss is

        1/2 lambda(t) |score(x_t, t) + z / sigma(t)|^2

    (Song et al. 2021, https://arxiv.org/abs/2011.13456), summed over dimensions, averaged over the
    batch. In other words, w/2 of the squared error of the predicted noise, w = lambda/sigma^2.
    Noise is drawn again where it is needed, never stored.

    A model may be called with x_t or x_t/alpha, with the time, the noise level s = sigma/alpha or
    an index, and return the score, or what the score follows from: see ``conditioning`` and
    ``prediction``. lambda is always of the score of x_t: the same weighting is the same loss for
    all of them, "output" apart.

    In a training loop prefer :class:`SDELoss`, which checks and prepares once.

    Args:
        model: as ``conditioning`` and ``prediction`` say, or its own attributes of these names.
        x: data, (batch, ...), float32, float64, bfloat16 or float16; never changed. May require
            grad.
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)`` and ``sigma(t)``.

    Returns:
        A scalar, or (batch,) for ``reduction="none"``: float32, or float64 where the model's output
        is float64.

    Raises:
        ValueError: an argument out of its range, or a model output of another shape; names or
            shapes in ``null`` that do not fit ``model_kwargs``. On the CPU also NaN or infinity in
            ``x``, times out of range and weights that are not finite or negative; on a GPU, where
            looking would make the host wait, such samples have the loss NaN.
        TypeError: an argument of the wrong type; noise levels in place of a process.

    Papers: weighting "likelihood", Song, Durkan, Murray and Ermon 2021,
    https://arxiv.org/abs/2101.09258; "edm" and "log_normal" times, Karras et al. 2022,
    https://arxiv.org/abs/2206.00364; "min_snr", Hang et al. 2023,
    https://arxiv.org/abs/2303.09556; times that are spread, Kingma et al. 2021,
    https://arxiv.org/abs/2107.00630.

    Example:
        Data from N(0, I) in 2 dimensions: under VP they stay that, with the score -x. Its loss is
        d/2 alpha^2.

        >>> import torch, fastscore
        >>> process = fastscore.sde.VP()
        >>> x = fastscore.random.normal((20_000, 2), seed=0)
        >>> t = torch.full((20_000,), 0.2)
        >>> loss = fastscore.sde_loss(lambda x, t: -x, x, process, t=t, seed=1)
        >>> bool((loss - process.alpha(0.2) ** 2).abs() < 0.02)
        True
    """
    fn = "sde_loss"
    check_floating(fn, "x", x, min_dim=1)
    return _loss(fn, model, x, _prepare(fn, sde, options), options)


# ---- what does not change ------------------------------------------------------------------------

SHOWN = ("times", "weighting", "reduction")


def declared_defaults() -> dict[str, Any]:
    """Of the options of the loss."""
    return declared(SDELossOptions).defaults


def _prepare(fn: str, sde: Any, options: SDELossOptions) -> Prepared:
    """Check what does not change from call to call."""
    in_time = InTime.of(fn, sde, options)
    check_choice(fn, "reduction", options["reduction"], REDUCTIONS)
    if options["prediction"] is not None:
        check_choice(fn, "prediction", options["prediction"], PREDICTIONS)
    if not callable(options["weighting"]):
        other = "a function of the times"
        check_choice(fn, "weighting", options["weighting"], WEIGHTINGS, other=other)
    for name in ("sigma_data", "gamma"):
        check_number(fn, name, options[name], positive=True)
    dropping = Dropping.of(fn, options)
    own: SDELossOptions = {name: options[name] for name in declared_defaults()}  # type: ignore
    own["drop"] = dropping.part
    return Prepared(in_time, own, dropping)


# ---- a call --------------------------------------------------------------------------------------


def _loss(
    fn: str, model: Callable[..., Tensor], x: Tensor, prepared: Prepared, draws: SDEDrawOptions
) -> Tensor:
    check_data(fn, x)
    check_callable(fn, "model", model)
    options, in_time = prepared.options, prepared.in_time
    frame = Frame.of(
        fn,
        model,
        in_time.process,
        conditioning=options["conditioning"],
        prediction=options["prediction"],
        time_scale=options["time_scale"],
        levels=in_time.levels,
        process_levels=in_time.process_levels,
    )
    model_kwargs = check_model_kwargs(fn, draws["model_kwargs"])
    key, numbers = noise_key(fn, x, draws), numbering(draws)
    model_kwargs = prepared.dropping(fn, model_kwargs, len(x), key, numbers)
    t = in_time.drawn(fn, x, key, draws)
    at = perturbed_in_time(frame, x, t, key, draws)
    p, q, h = frame.residual_coefficients(t, at.alpha, at.sigma)
    w = _weights(fn, prepared, t, at.s, p)
    how = frame.conditioning
    output = call_model(fn, model, at.x, at.level, at.number, how, model_kwargs, time=at.time)
    table, clean = table_of(p, q, w), None
    if h is not None:
        table, clean = table_of(p, q, w, h), beside(output, x)
    reduction = options["reduction"]
    return dsm_residual(output, table, at.rows, key, noisy=clean, reduction=reduction, **numbers)


def _weights(fn: str, prepared: Prepared, t: Tensor, s: Tensor, p: Tensor) -> Tensor:
    """w = lambda/sigma^2, float64 (batch,): what the predicted noise's error is weighted with."""
    options, times = prepared.options, prepared.in_time.times
    weighting = options["weighting"]
    if callable(weighting):
        return _given_weights(fn, weighting, t) / times.process.sigma(t).square()
    if weighting == "likelihood":
        importance = times.importance(t, s)
        if importance is not None:
            return 2 * importance
        return times.process.diffusion_squared(t) / times.process.sigma(t).square()
    if weighting == "edm":
        variance = options["sigma_data"] ** 2
        return (s.square() + variance) / variance
    if weighting == "min_snr":
        return (options["gamma"] * s.square()).clamp(max=1)
    return p.square().reciprocal() if weighting == "output" else torch.ones_like(s)


def _given_weights(fn: str, weighting: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """lambda(t) of a function of the caller's."""
    values, good = given_weights(fn, weighting, t, "time")
    if values_can_be_read(values) and not bool(good.all()):
        fail(fn, "weighting", "finite and at least 0 for every time", values[~good].tolist()[:8])
    return values.where(good, torch.nan)
