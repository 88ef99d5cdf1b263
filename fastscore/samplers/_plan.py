"""What makes one sampler differ from another: a table of coefficients and the levels it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_int, check_sequence, check_sigmas, fail
from fastscore.samplers._measured import Projection

Model = Callable[..., Tensor]
Callback = Callable[[int, Tensor], Any]
Clamp = tuple[float | None, float | None]
OPEN: Clamp = (None, None)
Prior = tuple[float, float, float, float]  # sigma^2, A, B and s: the score is A output + B x


@dataclass
class Setting:
    """What a plan may ask for that measures something before the run."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    options: dict[str, Any]


@dataclass
class Plan:
    """The steps of a sampler, on the CPU in float64.

    A step is ``x <- a x + b s(x, sigma) + c z`` with z ~ N(0, I), and known elements are set to
    ``known + k z``. In continuous time a step may be several rows, and a row has more columns: see
    :mod:`fastscore.ops.langevin` and :mod:`fastscore.ops.multistep`.
    """

    table: Tensor  # (rows, 4): a, b, c, k of each step; the last row serves all steps after it
    sigmas: Tensor  # (L,): what the model is conditioned on
    steps: int  # model calls from start to end
    steps_per_level: int  # consecutive steps that see the same sigma
    init_scale: float  # standard deviation of a normal initial state
    known_scale: float  # standard deviation of the noise that known elements have at the start
    step_size: str  # in words, with its convention: the first suspect where a chain diverges
    conditioning: str = "sigma"  # how the model is called unless the caller says
    device: torch.device | None = None  # where to sample when nothing else says so
    records_steps: bool = False  # whether a trajectory counts steps, not levels
    labels: Sequence[int] | None = None  # the model's own index of each level, where it has one
    scales: Sequence[float] | None = None  # the state over x, before each row and at the end
    multistep: bool = (
        False  # whether rows have ten columns, and a history goes from one to the next
    )
    clip: Clamp = OPEN  # of the predicted data, where rows are multistep
    known_table: Tensor | None = None  # (rows, 4): known elements are a known + b z, one z for all
    known_part: float = 1.0  # and what of the known values they have at the start
    init_mean: Any = None  # of the data, about which a normal initial state is drawn
    continuous: bool = False  # whether a SamplerState can be given
    returns_state: bool = False  # whether a SamplerState is what is returned
    carries_history: bool = False  # whether a run can be resumed with its history only
    prior: Prior | None = None  # of the first score, where it is about -x/sigma^2
    prepare: Callable[[Setting], None] | None = None  # what is measured before the run
    adjust: Callable[[Any, Tensor], None] | None = None  # changes the table's row, given a score
    make_chain: Callable[..., Any] | None = None  # a chain of another kind
    projection: Projection | None = None  # to a measurement, before each row and at the end
    settings: str = ""  # in words, what a run that is resumed has to have alike
    graph_by_itself: bool = True  # whether "auto" may mean a CUDA graph

    @property
    def rows(self) -> Sequence[int]:
        """How many rows of the table, model calls, come before each step, and before the end."""
        return range(self.steps + 1)

    def table_for(self, prediction: str) -> Tensor:
        """The table of a model that returns ``prediction``, whose conversion to a score it holds.

        a x + b s is a x - b/sigma eps for predicted noise, (a - b/sigma^2) x + b/sigma^2 D for
        predicted data.
        """
        if prediction == "score":
            return self.table
        level = torch.arange(len(self.table)) // self.steps_per_level
        sigma = self.sigmas[level.clamp(max=len(self.sigmas) - 1)]
        a, b, c, k = self.table.unbind(-1)
        if prediction == "eps":
            return torch.stack([a, -b / sigma, c, k], dim=-1)
        b = b / sigma.square()
        return torch.stack([a - b, b, c, k], dim=-1)

    def held(self) -> Tensor:
        """By what known values and their noise are multiplied before each row, and at the end.

        In the variable of the state: (rows + 1, 2), m and k.
        """
        scales = [1.0, 1.0] if self.scales is None else self.scales
        first = self.table.new_tensor([[self.known_part, self.known_scale]]) * scales[0]
        held = torch.cat([first, self.table[:, [4, 3]]])
        held[-1] = held.new_tensor([scales[-1], 0.0])
        return held

    def recorded(self, fn: str, trajectory: Sequence[int] | None) -> list[int] | None:
        """After how many steps the state is recorded, sorted; None where nothing is asked for."""
        if trajectory is None:
            return None
        if self.records_steps:
            return recorded_steps(fn, trajectory, self.steps)
        levels = recorded_levels(fn, trajectory, self.levels)
        return [(level + 1) * self.steps_per_level for level in levels]

    @property
    def levels(self) -> int:
        """How many levels there are to record."""
        return min(len(self.sigmas), -(-self.steps // self.steps_per_level))


def read_sigmas(
    fn: str, sigmas: Tensor | Sequence[float], *, minimum_levels: int = 1
) -> tuple[Tensor, torch.device | None]:
    """The noise levels, checked, on the CPU in float64; and where they lay, if anywhere."""
    levels = check_sigmas(fn, sigmas, minimum_levels=minimum_levels).detach().double().cpu()
    return levels, sigmas.device if isinstance(sigmas, Tensor) else None


def recorded_steps(fn: str, trajectory: Sequence[int], steps: int) -> list[int]:
    """Step counts from 1 to ``steps``, sorted."""
    check_sequence(fn, "trajectory", trajectory, "step counts, such as range(1, 100)")
    counts = sorted({check_int(fn, "trajectory", count, minimum=1) for count in trajectory})
    if counts and counts[-1] > steps:
        fail(fn, "trajectory", f"step counts of at most {steps}", counts[-1])
    return counts


def recorded_levels(fn: str, trajectory: Sequence[int], levels: int) -> list[int]:
    """Level numbers, sorted, negative ones counted from the end."""
    check_sequence(fn, "trajectory", trajectory, "level numbers, such as range(0, 10)")
    chosen = set()
    for level in trajectory:
        check_int(fn, "trajectory", level, minimum=-levels)
        if level >= levels:
            fail(fn, "trajectory", f"levels below {levels}", level)
        chosen.add(level % levels)
    return sorted(chosen)
