"""The step size of the corrector: of the level alone, from norms of the score, or of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.checks import (
    check_choice,
    check_number,
    check_shape,
    check_tensor,
    fail,
)
from fastscore._support.model_kwargs import check_model_kwargs, per_batch
from fastscore.random import Stream
from fastscore.samplers._continuous import SLACK, ContinuousPlan, plan_of, time_within
from fastscore.samplers._frame import Frame
from fastscore.samplers._inputs import sample
from fastscore.samplers._loop import Chain
from fastscore.samplers._plan import Setting
from fastscore.samplers._rows import (
    Rows,
    annealed_size,
    denoising_row,
    langevin_size,
    predictor_rows,
    step_ratio,
)
from fastscore.sde import Process
from fastscore.sde.grids import time_grid

CORRECTORS = ("annealed", "langevin")
NORMS = ("pilot", "batch")
PILOT_SAMPLES = 64
PILOT_SEED = 0
PILOT_STEPS = 32  # from noise alone to where a run begins that is given a state on its way


@dataclass
class Corrector:
    """A corrector as it was asked for; its rows are "annealed" until it says otherwise."""

    fn: str
    name: str
    snr: float
    norms: str | Tensor
    process: Process
    times: Tensor

    @classmethod
    def of(
        cls,
        fn: str,
        name: str | None,
        snr: float,
        norms: str | Tensor,
        process: Process,
        times: Tensor,
    ) -> Corrector | None:
        """Checked; None where there is none."""
        snr = check_number(fn, "snr", snr, positive=True)
        if name is not None:
            check_choice(fn, "corrector", name, CORRECTORS, other="None")
        if name != "langevin" and norms is not NORMS[0] and norms != NORMS[0]:
            fail(fn, "norms", '"pilot" but with corrector="langevin"', "another")
        if isinstance(norms, str):
            check_choice(fn, "norms", norms, NORMS, other="a tensor")
        else:
            check_tensor(fn, "norms", norms)
            check_shape(fn, "norms", norms, (len(times) - 1,), "one for each step")
            norms = norms.detach().double().cpu()
            if not bool((torch.isfinite(norms) & (norms > 0)).all()):
                fail(fn, "norms", "positive and finite", norms.tolist()[:8])
        return None if name is None else cls(fn, name, snr, norms, process, times)

    def first_size(self) -> Tensor:
        """The step size of each interval, of "langevin" until its own is known."""
        return annealed_size(self.process, self.times, self.snr)

    def set_up(
        self,
        plan: ContinuousPlan,
        frame: Frame,
        model: Any,
        rows_with: Callable[[Tensor], Rows],
        each: int,
    ) -> None:
        """Arrange for the step sizes of the corrector "langevin".

        ``rows_with`` makes the rows of step sizes (intervals,), ``each`` of them a step.
        """
        if self.name != "langevin":
            return

        def resize(mean_square: Tensor, dimension: int) -> None:
            size = langevin_size(self.process, self.times, self.snr, mean_square, dimension)
            plan.table = frame.table(rows_with(size), multistep=plan.multistep)

        if self.norms == "batch":
            plan.adjust = self._batch_norms(frame, rows_with(self.first_size()), each)
            return

        def prepare(setting: Setting) -> None:
            known = self.norms
            mean_square = known if isinstance(known, Tensor) else self._pilot(frame, model, setting)
            resize(mean_square, setting.shape[1:].numel())

        plan.prepare = prepare

    def _pilot(self, frame: Frame, model: Any, setting: Setting) -> Tensor:
        """The mean of |S|^2 after each step, of samples of a fixed seed that only are predicted."""
        self._refuse_own_arguments(setting)
        way = self._way_to_the_start(frame)
        times = torch.cat([way, self.times])
        rows = predictor_rows(self.process, times, "ancestral", 1.0)
        rows = rows.then(denoising_row(self.process, self.times[-1]))
        steps, alpha = len(rows), frame.alpha(rows.t, rows.s)
        own, of_state = frame.output_coefficients(rows.t, rows.s)
        found: list[Tensor] = []

        def measure(chain: Chain, output: Tensor) -> None:
            score = chain.total(output) * own[chain.row] + chain.x * of_state[chain.row]
            found.append(score.double().square().flatten(1).sum(1).mean())

        words = f"steps={steps}"
        options = {**setting.options, "clip_denoised": None, "return_state": False}
        plan = plan_of(
            self.fn, frame, rows, range(steps + 1), options, model=model, settings=words,
            from_start=False,
        )  # fmt: skip
        plan.adjust = measure
        options |= {
            "shape": (PILOT_SAMPLES, *setting.shape[1:]),
            "num_samples": None,
            "dtype": setting.dtype,
            "device": setting.device,
            "seed": PILOT_SEED,
            "generator": None,
            "samples": None,
            "sample_offset": 0,
            "start_step": 0,
            "known": None,
            "mask": None,
            "init": "normal",
            "progress": False,
            "callback": None,
            "cuda_graph": False,
        }
        sample(self.fn, model, None, plan, options, None)  # type: ignore[arg-type]
        squares = torch.stack(found).cpu() * alpha.square()  # of the score of y
        if not bool((torch.isfinite(squares) & (squares > 0)).all()):
            expected = "a score whose norms are positive and finite, to be measured"
            fail(self.fn, "model", f'{expected} for corrector="langevin"', squares.tolist()[:8])
        return squares[len(way) + 1 :]

    def _way_to_the_start(self, frame: Frame) -> Tensor:
        """Times from noise alone, where samples can be drawn, to where the run begins."""
        start, top, known = float(self.times[0]), self.process.t_max, frame.sigma_range
        if known is not None:
            top = time_within(self.process, known[1], top)
        if start >= top - SLACK:
            return self.times[:0]
        return time_grid(self.fn, self.process, "log", PILOT_STEPS + 1, top, start)[:-1]

    def _refuse_own_arguments(self, setting: Setting) -> None:
        """What belongs to the samples of the run can't go with those of the pilot."""
        given = check_model_kwargs(self.fn, setting.options["model_kwargs"])
        own: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            own.append(value)
            return value

        mean = setting.options["init_mean"]
        if isinstance(mean, Tensor) and mean.dim() == len(setting.shape) and len(mean) > 1:
            own.append(mean)
        if given:
            per_batch(given, setting.shape[0], keep)
        if own:
            expected = "a tensor (steps,), for each sample has its own model_kwargs or init_mean"
            fail(self.fn, "norms", expected, '"pilot"')

    def _batch_norms(self, frame: Frame, rows: Rows, each: int) -> Callable[[Chain, Tensor], None]:
        """e = 2 a (snr |z|/|s|)^2, the norms means over the batch, written to the chain's table."""
        corrected = (len(self.times) - 1) * each
        ratio = step_ratio(self.process, self.times)
        own, of_state = frame.output_coefficients(rows.t, rows.s)

        def adjust(chain: Chain, output: Tensor) -> None:
            row = chain.row
            if row >= corrected or row % each == 0:
                return
            score = chain.total(output) * own[row] + chain.x * of_state[row]
            z = random.normal(
                chain.key,
                chain.x.shape,
                dtype=chain.x.dtype,
                stream=Stream.LANGEVIN,
                sample_offset=chain.sample_offset,
                samples=chain.samples,
            )
            size = 2 * ratio[row // each] * (self.snr * mean_norm(z) / mean_norm(score)).square()
            entries = (1 + size * of_state[row], size * own[row], (2 * size).sqrt())
            chain.table[row, :3] = torch.stack([e.to(chain.table) for e in entries])

        return adjust


def mean_norm(x: Tensor) -> Tensor:
    return x.double().flatten(1).norm(dim=1).mean()
