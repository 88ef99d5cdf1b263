"""What is saved: a network, its noise scales or process, and how to sample with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastscore._support.by_name import check_name
from fastscore._support.checks import (
    check_choice,
    check_int,
    check_sequence,
    check_sigmas,
    fail,
    fail_type,
)
from fastscore._support.wrappers import said_by, unwrapped
from fastscore.conditioning import conditioning_of, prediction_of, sigma_range_of, time_scale_of
from fastscore.evaluation import LogLikelihood, log_likelihood
from fastscore.nn import EMA
from fastscore.samplers import (
    annealed_langevin,
    consistent_annealed_langevin,
    langevin,
    probability_flow,
    reverse_sde,
)
from fastscore.samplers._options import Sampler
from fastscore.sde import VE, Process, ProcessScore, as_process

SAMPLERS: dict[str, Sampler[...]] = {
    "annealed_langevin": annealed_langevin,
    "consistent_annealed_langevin": consistent_annealed_langevin,
    "langevin": langevin,
    "reverse_sde": reverse_sde,
    "probability_flow": probability_flow,
}
CONTINUOUS = ("reverse_sde", "probability_flow")  # those that are given a process
DEFAULT_SAMPLES = 64


@dataclass(init=False, repr=False, eq=False)
class Checkpoint:
    """A network, its noise scales or its process, and how to sample with them.

    Args:
        model: any ``torch.nn.Module``, compiled or wrapped for parallel training or not; or a
            moving average, :class:`fastscore.nn.EMA` or
            ``torch.optim.swa_utils.AveragedModel``, whose averaged network it is then.
        sigmas: its noise levels, (L,), positive and strictly decreasing; or, of a network in
            continuous time, its process, such as ``fastscore.sde.VP()``. None only for a model of
            one density, sampled by "langevin".
        sampling: settings of the sampler, such as ``{"steps_per_sigma": 3}``: keywords that are a
            matter of the model. What belongs to a run (``seed``, ``shape``, ``callback``) is given
            to :meth:`sample`.
        sampler: "annealed_langevin", "consistent_annealed_langevin", "langevin", "reverse_sde" or
            "probability_flow". By default the first, or of a process alone the last.
        conditioning: how the model is called, see :func:`annealed_langevin`, and of a process
            :func:`reverse_sde`. By default as its own attribute ``conditioning`` says, else "sigma"
            ("none" where there is no noise level, of a process alone what is its default).
        prediction: what it returns: "score", "eps" (the noise) or "x0" (the data), of a process
            also "v" or "velocity". By default as its own attribute ``prediction`` says, else
            "score".
        data_shape: shape of a sample, (3, 32, 32) say, so that it need not be said when sampling.
            By default the model's own attribute, if it has one.
        builder: "package.module:function", or a class, that makes the network; for
            ``load_checkpoint(path, build=True)``. The networks of :mod:`fastscore.nn` need none.
        arguments: keywords that the builder is called with: numbers, strings, lists and the like.
        process: what samplers in continuous time run on, beside ``sigmas``: by default, for a
            network with noise levels alone, ``VE`` from the lowest to the highest of them, which is
            the range that the network knows.
        time_scale: for ``conditioning="time"``, what the time is multiplied by; by default as the
            model's own attribute says, else 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or out of its range; a
            ``conditioning``, ``prediction`` or ``time_scale`` other than the model's own.

    Example:
        >>> import torch, fastscore
        >>> net = fastscore.nn.ScoreMLP(2, hidden=(8,))
        >>> sigmas = fastscore.geometric_sigmas(1.0, 0.1, 4)
        >>> checkpoint = fastscore.Checkpoint(net, sigmas, {"steps_per_sigma": 3})
        >>> checkpoint
        Checkpoint(ScoreMLP, 4 sigmas from 1 to 0.1, annealed_langevin(steps_per_sigma=3))
        >>> checkpoint.sample(5, seed=0).shape
        torch.Size([5, 2])
        >>> checkpoint.log_likelihood(torch.zeros(5, 2)).log_prob.shape
        torch.Size([5])

        The same network in twelve calls, by another sampler; and a network of a process:

        >>> checkpoint.sample(5, sampler="probability_flow", steps=12, seed=0).shape
        torch.Size([5, 2])
        >>> fastscore.Checkpoint(net, fastscore.sde.VE(0.1, 1.0), {"steps": 12})
        Checkpoint(ScoreMLP, VE(sigma_min=0.1, sigma_max=1.0), probability_flow(steps=12))
    """

    model: nn.Module
    sigmas: Tensor | None
    sampling: dict[str, Any]
    sampler: str
    conditioning: str
    prediction: str
    data_shape: tuple[int, ...] | None
    builder: str | None
    arguments: dict[str, Any]
    process: Process | None
    time_scale: float | None

    def __init__(
        self,
        model: nn.Module | EMA,
        sigmas: Tensor | Sequence[float] | Process | None = None,
        sampling: Mapping[str, Any] | None = None,
        *,
        sampler: str | None = None,
        conditioning: str | None = None,
        prediction: str | None = None,
        data_shape: Sequence[int] | None = None,
        builder: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        process: Process | Any | None = None,
        time_scale: float | None = None,
    ) -> None:
        """See the class."""
        fn = "Checkpoint"
        if isinstance(model, (EMA, AveragedModel)):
            model = model.module
        if not isinstance(model, nn.Module):
            fail_type(fn, "model", "a torch.nn.Module, or an EMA of one", model)
        self.model = model
        self.sigmas, self.process = levels_and_process(fn, sigmas, process)
        if sampler is None:
            in_time_alone = self.sigmas is None and self.process is not None
            sampler = "probability_flow" if in_time_alone else "annealed_langevin"
        self.sampler = check_choice(fn, "sampler", sampler, tuple(SAMPLERS))
        self.sampling = check_mapping(fn, "sampling", sampling)
        refuse_missing(fn, self, sampler)
        self._set_convention(fn, conditioning, prediction, time_scale)
        shape = said_by(model, "data_shape") if data_shape is None else data_shape
        if shape is not None:
            check_sequence(fn, "data_shape", shape, "sizes, such as (3, 32, 32)")
            shape = tuple(check_int(fn, "data_shape", size, minimum=1) for size in shape)
        self.data_shape = shape
        self.builder = None if builder is None else check_name(fn, "builder", builder)
        self.arguments = check_mapping(fn, "arguments", arguments)

    def _set_convention(
        self, fn: str, conditioning: str | None, prediction: str | None, time_scale: float | None
    ) -> None:
        """How the model is called and what it returns, by the caller, itself or default."""
        model, in_time = self.model, self.process is not None
        level = self.sampler != "langevin" or self.sampling.get("sigma") is not None
        default = "sigma" if level else "none"
        if self.process is not None and self.sigmas is None:
            default = self.process.conditioning
        self.conditioning = conditioning_of(fn, model, conditioning, default, in_time=in_time)
        self.prediction = prediction_of(fn, model, prediction, in_time=in_time)
        by_time = self.conditioning == "time"
        if time_scale is not None and not by_time:
            fail(fn, "time_scale", 'None but with conditioning="time"', time_scale)
        self.time_scale = time_scale_of(fn, model, time_scale) if by_time else None

    def __repr__(self) -> str:
        parts = [type(unwrapped(self.model)).__name__]
        if self.sigmas is not None:
            ends = " to ".join(f"{float(sigma):.4g}" for sigma in self.sigmas[[0, -1]])
            parts.append(f"{len(self.sigmas)} sigmas from {ends}")
        if self.process is not None:
            parts.append(repr(self.process))
        settings = ", ".join(f"{name}={value!r}" for name, value in self.sampling.items())
        parts.append(f"{self.sampler}({settings})")
        default = "sigma"
        if self.process is not None and self.sigmas is None:
            default = self.process.conditioning
        if self.conditioning != default:
            parts.append(f"conditioning={self.conditioning!r}")
        if self.prediction != "score":
            parts.append(f"prediction={self.prediction!r}")
        if self.time_scale not in (None, 1):
            parts.append(f"time_scale={self.time_scale:g}")
        if self.builder is not None:
            parts.append(f"builder={self.builder!r}")
        return f"Checkpoint({', '.join(parts)})"

    @overload
    def sample(
        self,
        num_samples: int | None = None,
        *,
        sampler: str | None = None,
        sde: Process | Any | None = None,
        trajectory: Sequence[int],
        **options: Any,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def sample(
        self,
        num_samples: int | None = None,
        *,
        sampler: str | None = None,
        sde: Process | Any | None = None,
        trajectory: None = None,
        **options: Any,
    ) -> Tensor: ...
    def sample(
        self,
        num_samples: int | None = None,
        *,
        sampler: str | None = None,
        sde: Process | Any | None = None,
        **options: Any,
    ) -> Any:
        """Draw samples with the sampler and the settings that the checkpoint names, or others.

        Args:
            num_samples: how many; 64 by default. Not together with ``x`` or ``shape``.
            sampler: another one than the checkpoint names, whose settings are not handed to it.
            sde: for "reverse_sde" and "probability_flow", another process than the checkpoint has.
                A network that is told the time is asked at the time of the same noise level.
            options: more keywords of the sampler (``seed``, ``device``, ``progress``, ``x``,
                ``trajectory``); they come before what is stored.

        Returns:
            What the sampler returns: samples, (num_samples, *data_shape).

        Raises:
            TypeError, ValueError: as the sampler; a sampler of noise levels where there are none,
                or ``sde`` for one that takes no process.
        """
        name = self.sampler if sampler is None else sampler
        check_choice("Checkpoint.sample", "sampler", name, tuple(SAMPLERS))
        args, settings = call_of(self, name, sde)
        settings.update(options)
        if options.get("x") is not None:
            if "dtype" not in options:
                settings.pop("dtype", None)  # x has one of its own
            settings["num_samples"] = num_samples
        elif self.data_shape is None or options.get("shape") is not None:
            settings["num_samples"] = num_samples
        else:
            count = DEFAULT_SAMPLES if num_samples is None else num_samples
            count = check_int(name, "num_samples", count, minimum=0)
            settings["shape"] = (count, *self.data_shape)
        return SAMPLERS[name](*args, **settings)

    def log_likelihood(
        self, x: Tensor, *, sde: Process | Any | None = None, **options: Any
    ) -> LogLikelihood:
        """The log density of each sample under the network: :func:`fastscore.log_likelihood`.

        Args:
            x: data, (batch, ...).
            sde: another process than the checkpoint has, as in :meth:`sample`.
            options: more keywords of :func:`fastscore.log_likelihood` (``probes``, ``seed``).

        Returns:
            A :class:`fastscore.evaluation.LogLikelihood`, whose ``log_prob`` is in nats.

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`fastscore.log_likelihood`; a network of
                neither a process nor noise levels.
        """
        fn = "Checkpoint.log_likelihood"
        refuse_no_process(fn, self, "a density", sde)
        on_process, call = in_time(fn, self, sde)
        return log_likelihood(on_process[0], x, on_process[1], **{**call, **options})


FIELDS = tuple(entry.name for entry in fields(Checkpoint))


def call_of(
    checkpoint: Checkpoint, sampler: str | None = None, sde: Any = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a sampler, its own by default, is called with: arguments in order, and by name."""
    fn, own = "Checkpoint.sample", checkpoint.sampler
    name = own if sampler is None else sampler
    settings = dict(checkpoint.sampling) if name == own else {}
    if sde is not None and name not in CONTINUOUS:
        fail(fn, "sde", f"None for {name}, which takes no process", sde)
    refuse_missing(fn, checkpoint, name, sde)
    if name in CONTINUOUS:
        on_process, call = in_time(fn, checkpoint, sde)
        return on_process, {**settings, **call}
    model, call = model_for(checkpoint, in_time=False)
    args = (model,) if name == "langevin" else (model, checkpoint.sigmas)
    return args, {**settings, **call}


def in_time(
    fn: str, checkpoint: Checkpoint, sde: Any = None
) -> tuple[tuple[Any, Process], dict[str, Any]]:
    """Model and process of what runs in continuous time, and how the model is called."""
    process = process_of(checkpoint) if sde is None else as_process(fn, sde)
    other = sde is not None and process != checkpoint.process
    model, call = model_for(checkpoint, in_time=not other)
    if call.get("conditioning") == "time":
        call["time_scale"] = checkpoint.time_scale
    if call.get("conditioning") == "index" and checkpoint.sigmas is not None:
        call["sigmas"] = checkpoint.sigmas
    call["sigma_range"] = known_range(fn, checkpoint)
    return (model, process), call


def model_for(checkpoint: Checkpoint, *, in_time: bool) -> tuple[Any, dict[str, Any]]:
    """The model and how it is called; where its own process is not at hand, as a score of sigma."""
    how, what = checkpoint.conditioning, checkpoint.prediction
    of_process = how == "time" or what in ("v", "velocity")
    if in_time or not of_process or checkpoint.process is None:
        return checkpoint.model, {"conditioning": how, "prediction": what}
    levels = checkpoint.sigmas if how == "index" else None
    score = ProcessScore(
        checkpoint.model,
        checkpoint.process,
        conditioning=how,
        prediction=what,
        time_scale=checkpoint.time_scale,
        sigmas=levels,
    )
    return score, {}


def process_of(checkpoint: Checkpoint) -> Process:
    """What samplers in continuous time run on: given, or VE on the levels that the network knows.

    Raises:
        ValueError: there is neither, or a single level.
    """
    if checkpoint.process is not None:
        return checkpoint.process
    levels = checkpoint.sigmas
    assert levels is not None
    return VE(float(levels[-1]), float(levels[0]))


def refuse_missing(fn: str, checkpoint: Checkpoint, sampler: str, sde: Any = None) -> None:
    """That a sampler has the noise levels or the process that it runs on."""
    sigmas, process = checkpoint.sigmas, checkpoint.process if sde is None else sde
    if sampler in CONTINUOUS:
        refuse_no_process(fn, checkpoint, f"{sampler=}", sde)
    elif sampler != "langevin" and sigmas is None:
        expected = f"given for {sampler=}"
        if process is not None:
            way = " and ".join(map(repr, CONTINUOUS))
            expected += f", which does not run on a process ({way} do)"
        fail(fn, "sigmas", expected, None)


def refuse_no_process(fn: str, checkpoint: Checkpoint, what: str, sde: Any = None) -> None:
    """That there is a process, or levels enough to make one."""
    sigmas, process = checkpoint.sigmas, checkpoint.process if sde is None else sde
    if process is None and (sigmas is None or len(sigmas) < 2):
        expected = f"given for {what}, two noise levels or more or a process"
        fail(fn, "sigmas", expected, None if sigmas is None else "one noise level")


def levels_and_process(fn: str, sigmas: Any, process: Any) -> tuple[Tensor | None, Process | None]:
    """The noise levels and the process, which may stand in their place."""
    in_place = sigmas is not None and not isinstance(sigmas, (Tensor, Sequence))
    if in_place and hasattr(sigmas, "alpha"):
        if process is not None:
            fail(fn, "process", "None where the second argument is one", process)
        sigmas, process = None, sigmas
    levels = None if sigmas is None else check_sigmas(fn, sigmas).detach()
    return levels, None if process is None else as_process(fn, process, "process")


def known_range(fn: str, checkpoint: Checkpoint) -> tuple[float, float] | None:
    """The noise levels that the network knows: as it says, or those that it was trained on."""
    said, sigmas = sigma_range_of(checkpoint.model, fn=fn), checkpoint.sigmas
    if said is not None or checkpoint.conditioning == "none":
        return said
    if sigmas is not None:
        return None if len(sigmas) < 2 else (float(sigmas[-1]), float(sigmas[0]))
    return None if checkpoint.process is None else checkpoint.process.sigma_range


def check_mapping(fn: str, arg: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        fail_type(fn, arg, "a dictionary of keyword arguments", value)
    return dict(value)
