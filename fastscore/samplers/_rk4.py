"""The classical Runge-Kutta method on a fixed grid of s: four calls of the model a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastscore.samplers._continuous import ContinuousPlan
from fastscore.samplers._frame import Frame
from fastscore.samplers._plan import OPEN
from fastscore.samplers._rows import Levels, Rows, denoising_row
from fastscore.samplers._runge_kutta import (
    CLASSICAL,
    MemoryUsedAgain,
    StagedChain,
    coefficients_of,
    data_coefficients,
    flow_coefficients,
    matrix,
    rk_stage,
)
from fastscore.sde import Process

STAGES = 4


def rk4_rows(process: Process, levels: Levels) -> Rows:
    """When the model is asked, a row each: four times a step, and once in a step to the data."""
    whole = levels[:-1] if float(levels.s[-1]) == 0 else levels
    at, to = whole[:-1], whole[1:]
    middle = (at.s + to.s) / 2
    halfway = Levels(process.time_of(middle), middle)
    asked = [at, halfway, halfway, to]
    led = [halfway, halfway, to, to]
    rows = Rows.between(joined(asked), joined(led))
    if len(whole.s) == len(levels.s):
        return rows
    return rows.then(denoising_row(process, whole.t[-1]))


def joined(stages: Sequence[Levels]) -> Levels:
    """The stages of each step after one another."""
    return Levels(
        torch.stack([levels.t for levels in stages], dim=1).flatten(),
        torch.stack([levels.s for levels in stages], dim=1).flatten(),
    )


def with_stages(plan: ContinuousPlan, frame: Frame, rows: Rows) -> ContinuousPlan:
    """The plan with rows of a stage's coefficients: of w, of four outputs, and kappa."""
    clips = plan.clip != OPEN
    of = replace(frame, prediction="x0") if clips else frame
    data = data_coefficients(frame, rows.t, rows.s)
    whole = len(rows) // STAGES
    s, t, after = (column[: whole * STAGES].view(whole, STAGES).T for column in
                   (rows.s, rows.t, rows.s_after))  # fmt: skip
    one = torch.ones_like(s)
    _, p, q, g = flow_coefficients(of, t, s, one, one, 0.0)
    steps = after[-1] - s[0]
    table = coefficients_of(CLASSICAL, matrix(CLASSICAL), steps, p, q, torch.cat([g, g[-1:]]))
    stages = table[1:].transpose(0, 1).reshape(-1, 1 + STAGES)
    if len(rows) > whole * STAGES:
        final = data[-1:] if not clips else torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        stages = torch.cat([stages, torch.nn.functional.pad(final, (0, STAGES - 1))])
    bound = frame.scale(rows.t_after, rows.s_after).unsqueeze(-1)
    plan.table = torch.cat([stages, bound, data], dim=-1)
    plan.multistep = False
    plan.make_chain = partial(ClassicalChain, whole=whole)
    return plan


@dataclass
class ClassicalChain(StagedChain):
    """A chain of which every row is one stage: columns c_0 to c_4, kappa, and d and e of D."""

    whole: int = 0  # steps that are not to the data
    sigma_of: Tensor = field(init=False)  # (4, B): the levels of a whole step
    labels_at: Tensor = field(init=False)  # (4, B) int64

    def __post_init__(self) -> None:
        """Buffers for a whole step."""
        super().__post_init__()
        self.sigma_of = self.sigma.new_empty(STAGES, len(self.sigma))
        self.labels_at = self.labels.new_empty(STAGES, len(self.labels))

    def set_level_of(self, row: int) -> None:
        """Of this row; and for a CUDA graph of all four in its step."""
        super().set_level_of(row)
        if not self.static or row // STAGES >= self.whole:
            return
        for stage in range(STAGES):
            level = row // STAGES * STAGES + stage
            label = level if self.labels_of is None else self.labels_of[level]
            self.labels_at[stage].fill_(label)
            self.sigma_of[stage].fill_(self.levels[level])

    def take(self, rows: Sequence[int], graph: Any) -> None:
        """The step of these rows."""
        if graph is not None and rows[0] // STAGES < self.whole:
            self.set_level_of(rows[0])
            graph.replay()
            return
        try:
            self.take_each(rows)
        except MemoryUsedAgain:
            self.begin_again(rows[0])
            self.take_each(rows)

    def take_each(self, rows: Sequence[int]) -> None:
        """Stage by stage."""
        for row in rows:
            self.set_level_of(row)
            self.take_stage(row % STAGES, final=row == rows[-1], coefficients=self.table[row])

    def begin_again(self, row: int) -> None:
        """Go back to where a step began, and copy what the model returns from now on."""
        self.copies, self.row = True, row
        if self.host_key is None:
            self.draw.fill_(row)
        else:
            self.host_key[1] = row

    def take_stage(self, stage: int, *, final: bool, coefficients: Tensor) -> None:
        """Ask the model, and make the next stage of all that it has returned in this step."""
        if stage == 0:
            self.keep()
        w = self.x if stage == 0 else self.stage
        self.output_at(w, coefficients[-2:] if self.clips else None)
        out = self.x if final else self.stage
        own = coefficients[: len(self.kept) + 1]
        rk_stage(self.unknown_part(self.x), self.kept, own, out=out)
        if self.mask is not None:
            torch.where(self.mask, self.known_now(), out, out=out)
        if final:
            low, high = self.clamp
            kappa = coefficients[STAGES + 1]
            if low is not None:
                out.clamp_(min=low * kappa)
            if high is not None:
                out.clamp_(max=high * kappa)
        self.count_row()

    def captured_step(self) -> None:
        """A whole step, on memory that stays where it is."""
        try:
            self.take_captured()
        except MemoryUsedAgain:
            self.draw.sub_(len(self.kept))
            self.copies = True
            self.take_captured()
        self.keep()

    def take_captured(self) -> None:
        """The four stages, with the row of the table that the device counts."""
        for stage in range(STAGES):
            self.tell(self.sigma_of[stage], self.labels_at[stage])
            row = self.table.index_select(0, self.draw.reshape(-1)[:1])[0]
            self.take_stage(stage, final=stage == STAGES - 1, coefficients=row)

    def can_capture(self) -> bool:
        """Where there is a whole step to come."""
        return self.row // STAGES < self.whole
