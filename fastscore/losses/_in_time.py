"""Data perturbed at a time of each sample: what the losses of a process begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from fastscore._support.checks import check_choice, check_number, fail, fail_type
from fastscore.conditioning import CONDITIONINGS
from fastscore.losses._perturbed import numbering, values_can_be_read
from fastscore.losses._sde_options import CalledOptions, SDEDrawOptions, TimesOptions
from fastscore.losses._times import Times, stratified, uniform
from fastscore.ops import perturb
from fastscore.random import Stream
from fastscore.sde import Process, as_process
from fastscore.sde._frame import Frame, Levels, index_levels, levels_of_process
from fastscore.sde._process import check_time

SLACK = 1e-6  # by which a time may have been rounded out of its range


class _Options(TimesOptions, CalledOptions, total=False):
    """Those that say at what times a model is called, and how."""


@dataclass(frozen=True)
class InTime:
    """The times of a process, and what is known of how its models are called; checked."""

    times: Times
    stratified: bool
    levels: Levels | None  # of an index, as given
    process_levels: Levels | None  # and those of the process

    @classmethod
    def of(cls, fn: str, sde: Any, options: _Options) -> Self:
        """As the options say."""
        process = as_process(fn, sde)
        if options["conditioning"] is not None:
            check_choice(fn, "conditioning", options["conditioning"], CONDITIONINGS)
        if not isinstance(options["stratified"], bool):
            fail_type(fn, "stratified", "True or False", options["stratified"])
        if options["time_scale"] is not None:
            check_number(fn, "time_scale", options["time_scale"], positive=True)
        mean, std = options["log_mean"], options["log_std"]
        return cls(
            Times.of(fn, process, options["times"], mean, std),
            options["stratified"],
            index_levels(fn, options["sigmas"], options["betas"]),
            levels_of_process(process),
        )

    @property
    def process(self) -> Process:
        """The process itself."""
        return self.times.process

    def tensors(self) -> dict[str, Tensor]:
        """What has to be where the data are, under names of its own."""
        named = (("levels", self.levels), ("process_levels", self.process_levels))
        return {name: levels.s for name, levels in named if levels is not None}

    def with_tensors(self, moved: Mapping[str, Any]) -> InTime:
        """With these in their place."""
        levels, own = self.levels, self.process_levels
        levels = levels and Levels(moved["levels"], levels.kind)
        own = own and Levels(moved["process_levels"], own.kind)
        return InTime(self.times, self.stratified, levels, own)

    def drawn(self, fn: str, x: Tensor, key: Tensor, draws: SDEDrawOptions) -> Tensor:
        """The time of each sample, float64 (batch,): given and checked, or drawn."""
        times, t = self.times, draws["t"]
        if t is None:
            numbers = draws["sample_offset"], draws["samples"]
            if self.stratified:
                return times.of_uniform(stratified(key, len(x), *numbers))
            return times.of_uniform(uniform(key, len(x), Stream.TIME, *numbers))
        t = check_time(fn, x, t).expand(len(x))
        low, high = times.process.t_eps * (1 - SLACK), times.process.t_max * (1 + SLACK)
        inside = (t >= low) & (t <= high)
        if values_can_be_read(t) and not bool(inside.all()):
            ends = f"from t_eps = {times.process.t_eps:g} to t_max = {times.process.t_max:g}"
            fail(fn, "t", f"{ends} of the process", f"{float(t[~inside][0]):.7g}")
        return t.where(inside, torch.nan)


class PerturbedInTime(NamedTuple):
    """What a model is called with, at a time of each sample; numbers are float64 (batch,)."""

    x: Tensor  # alpha x + sigma z, (batch, ...)
    level: Tensor  # s, and
    number: Tensor  # the index of the nearest of the model's own levels, int64, and
    time: Tensor | None  # time_scale t, as the model is told them
    t: Tensor
    s: Tensor
    alpha: Tensor  # of the variable that the model is called with
    sigma: Tensor
    rows: Tensor  # int64: the row of each sample in tables of its own


def perturbed_in_time(
    frame: Frame, x: Tensor, t: Tensor, key: Tensor, draws: SDEDrawOptions
) -> PerturbedInTime:
    """Perturb ``x`` at the times t, in the variable that the model is called with."""
    s = frame.process.noise_level(t)
    alpha = frame.alpha(t, s)
    sigma = alpha * s
    rows = torch.arange(len(x), device=x.device)
    noisy, _ = perturb(x, table_of(alpha, sigma), key, labels=rows, **numbering(draws))
    told = torch.float64 if x.dtype == torch.float64 else torch.float32
    time = (t * frame.time_scale).to(told) if frame.conditioning == "time" else None
    number = frame.index(s) if frame.conditioning == "index" else rows
    return PerturbedInTime(noisy, s.to(told), number, time, t, s, alpha, sigma, rows)


def table_of(*columns: Tensor) -> Tensor:
    """A row of each sample's own; a kernel wants one of no samples, too."""
    table = torch.stack(columns, dim=-1)
    return table if len(table) else table.new_ones((1, len(columns)))
