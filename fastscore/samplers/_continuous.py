"""What the samplers in continuous time share: their options, and from rows to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from torch import Tensor

from fastscore._support.checks import check_int, check_number, fail
from fastscore._support.explain import parameter_dtypes
from fastscore._support.options import Option
from fastscore._support.warn import warn_caller
from fastscore.samplers._frame import Frame, process_alpha
from fastscore.samplers._inputs import check_clamp
from fastscore.samplers._options import SamplerOptions
from fastscore.samplers._plan import OPEN, Clamp, Plan
from fastscore.samplers._rows import Rows, check_rows
from fastscore.sde import VE, Process
from fastscore.sde.grids import time_grid

Grid = str | Sequence[float] | Tensor
SLACK = 1e-6  # a level that is so little outside the model's range is at its end


class NetworkInTime(TypedDict, total=False):
    """How a network is called along a process, and what it returns."""

    conditioning: Annotated[
        str | None,
        Option(
            None,
            """how the model is called: "time" for ``model(x, time_scale t)``; "sigma" for
            ``model(x/alpha, s)``, s = sigma/alpha; "log_sigma" for log s; "index" for the nearest
            of its own levels, int64. By default as the model's own attribute ``conditioning`` says,
            else as the process's: "sigma" of ``VE``, "time" of the others.""",
        ),
    ]
    prediction: Annotated[
        str | None,
        Option(
            None,
            """what the model returns: "score", of the variable that it is called with; "eps", the
            noise; "x0", the data; "v", (alpha eps - sigma x_0)/n, called with x/n,
            n = sqrt(alpha^2 + sigma^2); or "velocity", alpha' x_0 + sigma' eps. By default what its
            own attribute ``prediction`` says, else "score".""",
        ),
    ]
    time_scale: Annotated[
        float | None,
        Option(
            None,
            """what the time is multiplied by for a model of conditioning="time": 999 for networks
            of score_sde and, with 1000 steps, DDPM. By default what its own attribute
            ``time_scale`` says, else 1.""",
        ),
    ]
    sigmas: Annotated[
        Tensor | Sequence[float] | None,
        Option(
            None,
            """for conditioning="index", the noise levels (L,) that the network's index counts; it
            is given the index of the level that is nearest in log s. By default the model's own
            attribute.""",
        ),
    ]
    betas: Annotated[
        Tensor | Sequence[float] | None,
        Option(
            None,
            """the same for networks of DDPM: its betas (L,); by default the model's own, or the
            process's.""",
        ),
    ]
    sigma_range: Annotated[
        tuple[float, float] | None,
        Option(
            None,
            """the noise levels s = sigma/alpha (lowest, highest) that the model knows: a run stays
            within. By default what its own attribute ``sigma_range`` says, else all that the
            process has.""",
        ),
    ]


class ContinuousOptions(SamplerOptions, NetworkInTime, total=False):
    """Keyword arguments of every sampler in continuous time.

    There are more ways to call a model, and more that it may return, than with levels alone.
    """

    init_mean: Annotated[
        Tensor | float | None,
        Option(
            None,
            """the mean of the data, about which a state is drawn, N(alpha mean, sigma^2): a number
            or a tensor that broadcasts to the state's shape. Without it the state is noise alone,
            as published, and a deterministic solver never loses what that is off: with a highest
            noise level that is not many times the norm of the mean, all samples are.""",
        ),
    ]
    clip_denoised: Annotated[
        Clamp | None,
        Option(
            None,
            """``(lo, hi)``, either may be None: the data that the model predicts, x_0, are clipped
            to this interval in every step.""",
        ),
    ]
    return_state: Annotated[
        bool,
        Option(
            False,
            """return a :class:`SamplerState` in place of x: the samples, how many calls of the
            model they took, and all that a run which was stopped is resumed from, as ``x``.""",
        ),
    ]


@dataclass
class ContinuousPlan(Plan):
    """A plan whose steps are several rows, made for one model's frame."""

    boundaries: Sequence[int] = field(default_factory=list)

    def table_for(self, prediction: str) -> Tensor:
        """The table, made for what the model returns already."""
        return self.table

    @property
    def rows(self) -> Sequence[int]:
        """How many rows come before each step, and before the end."""
        return self.boundaries


def plan_of(
    fn: str,
    frame: Frame,
    rows: Rows,
    boundaries: Sequence[int],
    options: dict[str, Any],
    *,
    model: Any,
    settings: str,
    multistep: bool = False,
    carries_history: bool = False,
    one_noise: bool = False,
    from_start: bool = True,
) -> ContinuousPlan:
    """The plan of rows that are checked and turned into what the model sees and returns.

    ``multistep`` says that rows need the history, ``carries_history`` that steps do, ``one_noise``
    that known elements keep one noise for the whole run, ``from_start`` that a state that is drawn
    is noise at the highest level.
    """
    rows = check_rows(fn, rows)
    clip = check_clamp(fn, options["clip_denoised"], "clip_denoised")
    multistep = multistep or clip != OPEN
    process = frame.process
    alpha, s = process_alpha(process, rows.t[:1], rows.s[:1]), rows.s[:1]
    start = float(alpha * s)
    own, of_state = frame.output_coefficients(rows.t[:1], s)
    variance = (frame.alpha(rows.t[:1], s) * s).square()
    table = frame.table(rows, multistep=multistep)
    if one_noise:  # known elements come with their noise, from the table of their own
        table[:, 3], table[:, 4] = 0, 1
    ends = frame.scale(rows.t_after, rows.s_after).tolist()
    return ContinuousPlan(
        table,
        frame.told(rows.t, rows.s),
        steps=len(boundaries) - 1,
        steps_per_level=1,
        init_scale=start,
        known_scale=start,
        known_part=float(alpha),
        step_size=f"the step between two times ({settings})",
        settings=f"{settings}, conditioning={frame.conditioning!r}",
        conditioning=frame.conditioning,
        records_steps=True,
        labels=frame.labels(rows.s),
        scales=[*frame.scale(rows.t[:1], s).tolist(), *ends],
        multistep=multistep,
        clip=clip,
        known_table=frame.known_table(rows) if one_noise else None,
        continuous=True,
        returns_state=bool(options["return_state"]),
        carries_history=carries_history,
        prior=(float(variance), float(own), float(of_state), float(s)) if from_start else None,
        boundaries=boundaries,
        init_mean=options["init_mean"],
    )


def times_for(
    fn: str,
    model: Any,
    frame: Frame,
    x: Any,
    grid: Grid,
    points: int | None,
    t_start: float,
    t_end: float | None = None,
) -> Tensor:
    """The times of a run, falling, on the part of the process that the model knows: float64.

    To ``t_end``, or to where sampling stops.
    """
    process = frame.process
    t_start = check_number(fn, "t_start", t_start, positive=True)
    if t_start > 1:
        fail(fn, "t_start", "at most 1", t_start)
    if t_start < 1 and x is None:
        fail(fn, "x", f"given, the state at t_start={t_start}", None)
    first, last = min(t_start, process.t_max), process.t_min if t_end is None else t_end
    known = sigma_range_for(fn, model, frame)
    if isinstance(grid, str):
        if known is not None:
            whole, (first, last) = first, part_within(fn, process, known, first, last)
            if t_start < 1 and first < whole:
                expected = f"at most {first:.6g}, where the levels that the model knows end"
                fail(fn, "t_start", expected, t_start)
        if not last < first:
            expected = f"later than the end of sampling, t = {last:.4g}"
            fail(fn, "t_start", expected, f"{first:.4g} (where the model's range ends, or given)")
        if float(process.noise_level(last)) <= 0:
            expected = "a process with noise where its flow ends (from its t_min denoise leads to "
            expected += "the data, and without any these have no density)"
            fail(fn, "sde", expected, f"none at t = {last:g}")
        return time_grid(fn, process, grid, points, first, last)
    times = time_grid(fn, process, grid)
    s = process.noise_level(times)
    if float(s[-1]) <= 0:
        expected = "times with noise at the last of them: from there denoise leads to the data"
        fail(fn, "grid", expected, f"none at t = {float(times[-1]):g}")
    if t_start != 1 and abs(float(times[0]) - t_start) > SLACK:
        fail(fn, "t_start", f"left out, or the grid's own {float(times[0]):.6g}", t_start)
    if points is not None and len(times) != points:
        fail(fn, "grid", f"{points} times for so many steps", f"{len(times)}")
    lo, hi = float(s.min()), float(s.max())
    if known is not None and (hi > known[1] * (1 + SLACK) or lo < known[0] * (1 - SLACK)):
        warn_caller(
            f"{fn}: the grid has noise levels from {lo:.4g} to {hi:.4g}, the model knows those "
            f"from {known[0]:.4g} to {known[1]:.4g} (its sigma_range).",
            UserWarning,
        )
    return times


def part_within(
    fn: str, process: Process, known: tuple[float, float], first: float, last: float
) -> tuple[float, float]:
    """From when to when the process has levels that the model knows, between these times."""
    lo, hi = float(process.noise_level(last)), float(process.noise_level(process.t_max))
    if known[0] >= hi * (1 - SLACK) or known[1] <= lo * (1 + SLACK):
        expected = f"one that knows some of the process's noise levels, {lo:.4g} to {hi:.4g}"
        fail(fn, "model", expected, f"a sigma_range of {known[0]:.4g} to {known[1]:.4g}")
    return (
        min(first, time_within(process, known[1], first, (lo, hi))),
        max(last, time_within(process, known[0], last, (lo, hi))),
    )


def time_within(
    process: Process, level: float, otherwise: float, levels: tuple[float, float] | None = None
) -> float:
    """When the noise level is ``level``; ``otherwise`` where that is near, or not in ``levels``.

    Which are those that sampling has, unless others are given.
    """
    s = float(process.noise_level(otherwise))
    if abs(s - level) < SLACK * level:
        return otherwise
    if levels is None:
        lo, hi = (float(process.noise_level(t)) for t in (process.t_min, process.t_max))
    else:
        lo, hi = levels
    return float(process.time_of(level)) if lo < level < hi else otherwise


def sigma_range_for(fn: str, model: Any, frame: Frame) -> tuple[float, float] | None:
    """The noise levels that the model knows; of a network that does not say, a word."""
    if frame.sigma_range is not None:
        return frame.sigma_range
    process = frame.process
    own = frame.kind == "y" and not isinstance(process, VE) and bool(parameter_dtypes(model))
    if own:
        lo, hi = (float(process.noise_level(t)) for t in (process.t_min, process.t_max))
        warn_caller(
            f"{fn}: the model does not say which noise levels it knows (sigma_range=, a pair, here "
            f"or as an attribute), and {process!r} has those from {lo:.4g} to {hi:.4g}.",
            UserWarning,
        )
    return None


def check_steps(fn: str, steps: Any) -> int:
    return check_int(fn, "steps", steps, minimum=1)


def ends_of(steps: int, rows: int, last: int) -> list[int]:
    """How many rows come before each of ``steps`` steps of ``rows`` rows, and the ``last`` ones."""
    ends = [step * rows for step in range(steps + 1)]
    return [*ends, ends[-1] + last] if last else ends
