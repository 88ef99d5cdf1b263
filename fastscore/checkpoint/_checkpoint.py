"""What is saved: a network, its noise scales, and how to sample with them."""

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
from fastscore.conditioning import conditioning_of, prediction_of, sigma_range_of
from fastscore.nn import EMA
from fastscore.samplers import annealed_langevin, consistent_annealed_langevin, langevin
from fastscore.samplers._options import Sampler

SAMPLERS: dict[str, Sampler[...]] = {
    "annealed_langevin": annealed_langevin,
    "consistent_annealed_langevin": consistent_annealed_langevin,
    "langevin": langevin,
}
DEFAULT_SAMPLES = 64


@dataclass(init=False, repr=False, eq=False)
class Checkpoint:
    """A network, its noise scales, and how to sample with them.

    Args:
        model: any ``torch.nn.Module``, compiled or wrapped for parallel training or not; or a
            moving average, :class:`fastscore.nn.EMA` or
            ``torch.optim.swa_utils.AveragedModel``, whose averaged network it is then.
        sigmas: its noise levels, (L,), positive and strictly decreasing. None only for a model of
            one density, sampled by "langevin".
        sampling: settings of the sampler, such as ``{"steps_per_sigma": 3}``: keywords that are a
            matter of the model. What belongs to a run (``seed``, ``shape``, ``callback``) is given
            to :meth:`sample`.
        sampler: "annealed_langevin", "consistent_annealed_langevin" or "langevin".
        conditioning: how the model is called, see :func:`annealed_langevin`. By default as its own
            attribute ``conditioning`` says, else "sigma" ("none" where there is no noise level).
        prediction: what it returns: "score", "eps" (the noise) or "x0" (the data). By default as
            its own attribute ``prediction`` says, else "score".
        data_shape: shape of a sample, (3, 32, 32) say, so that it need not be said when sampling.
            By default the model's own attribute, if it has one.
        builder: "package.module:function", or a class, that makes the network; for
            ``load_checkpoint(path, build=True)``. The networks of :mod:`fastscore.nn` need none.
        arguments: keywords that the builder is called with: numbers, strings, lists and the like.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or out of its range; a
            ``conditioning`` or ``prediction`` other than the model's own.

    Example:
        >>> import fastscore
        >>> net = fastscore.nn.ScoreMLP(2, hidden=(8,))
        >>> sigmas = fastscore.geometric_sigmas(1.0, 0.1, 4)
        >>> checkpoint = fastscore.Checkpoint(net, sigmas, {"steps_per_sigma": 3})
        >>> checkpoint
        Checkpoint(ScoreMLP, 4 sigmas from 1 to 0.1, annealed_langevin(steps_per_sigma=3))
        >>> checkpoint.sample(5, seed=0).shape
        torch.Size([5, 2])
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

    def __init__(
        self,
        model: nn.Module | EMA,
        sigmas: Tensor | Sequence[float] | None = None,
        sampling: Mapping[str, Any] | None = None,
        *,
        sampler: str = "annealed_langevin",
        conditioning: str | None = None,
        prediction: str | None = None,
        data_shape: Sequence[int] | None = None,
        builder: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """See the class."""
        fn = "Checkpoint"
        if isinstance(model, (EMA, AveragedModel)):
            model = model.module
        if not isinstance(model, nn.Module):
            fail_type(fn, "model", "a torch.nn.Module, or an EMA of one", model)
        self.model = model
        self.sampler = check_choice(fn, "sampler", sampler, tuple(SAMPLERS))
        self.sampling = check_mapping(fn, "sampling", sampling)
        if sigmas is None and sampler != "langevin":
            fail(fn, "sigmas", f"given for sampler={sampler!r}", None)
        self.sigmas = None if sigmas is None else check_sigmas(fn, sigmas).detach()
        level = sampler != "langevin" or self.sampling.get("sigma") is not None
        default = "sigma" if level else "none"
        self.conditioning = conditioning_of(fn, model, conditioning, default)
        self.prediction = prediction_of(fn, model, prediction)
        shape = said_by(model, "data_shape") if data_shape is None else data_shape
        if shape is not None:
            check_sequence(fn, "data_shape", shape, "sizes, such as (3, 32, 32)")
            shape = tuple(check_int(fn, "data_shape", size, minimum=1) for size in shape)
        self.data_shape = shape
        self.builder = None if builder is None else check_name(fn, "builder", builder)
        self.arguments = check_mapping(fn, "arguments", arguments)

    def __repr__(self) -> str:
        parts = [type(unwrapped(self.model)).__name__]
        if self.sigmas is not None:
            ends = " to ".join(f"{float(sigma):.4g}" for sigma in self.sigmas[[0, -1]])
            parts.append(f"{len(self.sigmas)} sigmas from {ends}")
        settings = ", ".join(f"{name}={value!r}" for name, value in self.sampling.items())
        parts.append(f"{self.sampler}({settings})")
        if self.conditioning != "sigma":
            parts.append(f"conditioning={self.conditioning!r}")
        if self.prediction != "score":
            parts.append(f"prediction={self.prediction!r}")
        if self.builder is not None:
            parts.append(f"builder={self.builder!r}")
        return f"Checkpoint({', '.join(parts)})"

    @overload
    def sample(
        self, num_samples: int | None = None, *, trajectory: Sequence[int], **options: Any
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def sample(
        self, num_samples: int | None = None, *, trajectory: None = None, **options: Any
    ) -> Tensor: ...
    def sample(self, num_samples: int | None = None, **options: Any) -> Any:
        """Draw samples with the sampler and the settings that the checkpoint names.

        Args:
            num_samples: how many; 64 by default. Not together with ``x`` or ``shape``.
            options: more keywords of the sampler (``seed``, ``device``, ``progress``, ``x``,
                ``trajectory``); they come before what is stored.

        Returns:
            What the sampler returns: samples, (num_samples, *data_shape).

        Raises:
            TypeError, ValueError: as the sampler.
        """
        args, settings = call_of(self)
        settings.update(options)
        if options.get("x") is not None:
            if "dtype" not in options:
                settings.pop("dtype", None)  # x has one of its own
            settings["num_samples"] = num_samples
        elif self.data_shape is None or options.get("shape") is not None:
            settings["num_samples"] = num_samples
        else:
            count = DEFAULT_SAMPLES if num_samples is None else num_samples
            count = check_int(self.sampler, "num_samples", count, minimum=0)
            settings["shape"] = (count, *self.data_shape)
        return SAMPLERS[self.sampler](*args, **settings)


FIELDS = tuple(entry.name for entry in fields(Checkpoint))


def call_of(checkpoint: Checkpoint) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What its sampler is called with: the arguments in order, and those by name."""
    args: tuple[Any, ...] = (checkpoint.model,)
    if checkpoint.sampler != "langevin":
        args = (checkpoint.model, checkpoint.sigmas)
    call = {"conditioning": checkpoint.conditioning, "prediction": checkpoint.prediction}
    return args, {**checkpoint.sampling, **call}


def known_range(fn: str, checkpoint: Checkpoint) -> tuple[float, float] | None:
    """The noise levels that the network knows: as it says, or those that it was trained on."""
    said, sigmas = sigma_range_of(checkpoint.model, fn=fn), checkpoint.sigmas
    if said is not None or sigmas is None or len(sigmas) < 2 or checkpoint.conditioning == "none":
        return said
    return float(sigmas[-1]), float(sigmas[0])


def check_mapping(fn: str, arg: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        fail_type(fn, arg, "a dictionary of keyword arguments", value)
    return dict(value)
