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
    fail_type,
)
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.options import declared, documents, takes_options
from fastscore.conditioning import CONDITIONINGS, PREDICTIONS, call_model
from fastscore.losses._dropped import check_null, dropped
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
from fastscore.losses._times import Times, stratified, uniform
from fastscore.losses.dsm import Loss
from fastscore.ops import dsm_residual, perturb
from fastscore.ops.dsm import REDUCTIONS
from fastscore.random import Stream
from fastscore.sde import Process, as_process
from fastscore.sde._frame import Frame, Levels, index_levels, levels_of_process
from fastscore.sde._process import check_time

SLACK = 1e-6  # by which a time may have been rounded out of its range


class _EveryOption(SDELossOptions, SDEDrawOptions, total=False):
    """Those of the loss and those of each call."""


@dataclass
class Prepared:
    """What does not change from call to call, checked."""

    times: Times
    options: SDELossOptions
    levels: Levels | None  # of an index, as given
    process_levels: Levels | None  # and those of the process
    null: dict[str, Tensor | float]

    def tensors(self) -> dict[str, Tensor]:
        """What has to be where the data are, under names of its own."""
        numbered = {f"null_{i}": value for i, value in enumerate(self.null.values())}
        found = {name: value for name, value in numbered.items() if isinstance(value, Tensor)}
        for name, levels in (("levels", self.levels), ("process_levels", self.process_levels)):
            if levels is not None:
                found[name] = levels.s
        return found

    def with_tensors(self, moved: Mapping[str, Any]) -> Prepared:
        """With these in their place."""
        if not moved:
            return self
        null = {n: moved.get(f"null_{i}", value) for i, (n, value) in enumerate(self.null.items())}
        levels, own = self.levels, self.process_levels
        levels = levels and Levels(moved["levels"], levels.kind)
        own = own and Levels(moved["process_levels"], own.kind)
        return Prepared(self.times, self.options, levels, own, null)


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
        self.sde, self._host = host.times.process, host
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
    process = as_process(fn, sde)
    check_choice(fn, "reduction", options["reduction"], REDUCTIONS)
    conditioning, prediction = options["conditioning"], options["prediction"]
    if conditioning is not None:
        check_choice(fn, "conditioning", conditioning, CONDITIONINGS)
    if prediction is not None:
        check_choice(fn, "prediction", prediction, PREDICTIONS)
    if not callable(options["weighting"]):
        other = "a function of the times"
        check_choice(fn, "weighting", options["weighting"], WEIGHTINGS, other=other)
    if not isinstance(options["stratified"], bool):
        fail_type(fn, "stratified", "True or False", options["stratified"])
    for name in ("sigma_data", "gamma"):
        check_number(fn, name, options[name], positive=True)
    if options["time_scale"] is not None:
        check_number(fn, "time_scale", options["time_scale"], positive=True)
    drop, null = check_null(fn, options["drop"], options["null"])
    own: SDELossOptions = {name: options[name] for name in declared_defaults()}  # type: ignore
    own["drop"] = drop
    mean, std = options["log_mean"], options["log_std"]
    return Prepared(
        Times.of(fn, process, options["times"], mean, std),
        own,
        index_levels(fn, options["sigmas"], options["betas"]),
        levels_of_process(process),
        null,
    )


# ---- a call --------------------------------------------------------------------------------------


def _loss(
    fn: str, model: Callable[..., Tensor], x: Tensor, prepared: Prepared, draws: SDEDrawOptions
) -> Tensor:
    check_data(fn, x)
    check_callable(fn, "model", model)
    options, process = prepared.options, prepared.times.process
    frame = Frame.of(
        fn,
        model,
        process,
        conditioning=options["conditioning"],
        prediction=options["prediction"],
        time_scale=options["time_scale"],
        levels=prepared.levels,
        process_levels=prepared.process_levels,
    )
    model_kwargs = check_model_kwargs(fn, draws["model_kwargs"])
    key, numbers = noise_key(fn, x, draws), numbering(draws)
    if options["drop"]:
        without = uniform(key, len(x), Stream.DROP, **numbers) < options["drop"]
        model_kwargs = dropped(fn, model_kwargs, prepared.null, without)
    t = _times(fn, x, prepared, key, draws)
    s = process.noise_level(t)
    alpha = frame.alpha(t, s)
    sigma = alpha * s
    p, q, h = frame.residual_coefficients(t, alpha, sigma)
    w = _weights(fn, prepared, t, s, p)
    labels = torch.arange(len(x), device=x.device)  # a row of each sample's own
    noisy, _ = perturb(x, _table(alpha, sigma), key, labels=labels, **numbers)
    told = torch.float64 if x.dtype == torch.float64 else torch.float32
    time = (t * frame.time_scale).to(told) if frame.conditioning == "time" else None
    index = frame.index(s) if frame.conditioning == "index" else labels
    output = call_model(
        fn, model, noisy, s.to(told), index, frame.conditioning, model_kwargs, time=time
    )
    table, clean = _table(p, q, w), None
    if h is not None:
        table, clean = _table(p, q, w, h), beside(output, x)
    reduction = options["reduction"]
    return dsm_residual(output, table, labels, key, noisy=clean, reduction=reduction, **numbers)


def _table(*columns: Tensor) -> Tensor:
    """A row of each sample's own; a kernel wants one of no samples, too."""
    table = torch.stack(columns, dim=-1)
    return table if len(table) else table.new_ones((1, len(columns)))


def _times(fn: str, x: Tensor, prepared: Prepared, key: Tensor, draws: SDEDrawOptions) -> Tensor:
    """The time of each sample, float64 (batch,): given and checked, or drawn."""
    times, t = prepared.times, draws["t"]
    if t is None:
        numbers = draws["sample_offset"], draws["samples"]
        if prepared.options["stratified"]:
            return times.of_uniform(stratified(key, len(x), *numbers))
        return times.of_uniform(uniform(key, len(x), Stream.TIME, *numbers))
    t = check_time(fn, x, t).expand(len(x))
    low, high = times.process.t_eps * (1 - SLACK), times.process.t_max * (1 + SLACK)
    inside = (t >= low) & (t <= high)
    if values_can_be_read(t) and not bool(inside.all()):
        ends = f"from t_eps = {times.process.t_eps:g} to t_max = {times.process.t_max:g}"
        fail(fn, "t", f"{ends} of the process", f"{float(t[~inside][0]):.7g}")
    return t.where(inside, torch.nan)


def _weights(fn: str, prepared: Prepared, t: Tensor, s: Tensor, p: Tensor) -> Tensor:
    """w = lambda/sigma^2, float64 (batch,): what the predicted noise's error is weighted with."""
    options, times = prepared.options, prepared.times
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
