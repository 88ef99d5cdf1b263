"""The probability-flow ordinary differential equation, on fixed grids and with step control."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import check_choice, check_number, fail, fail_type
from fastscore.samplers._adaptive_plan import DEFAULTS, adaptive_plan, method_of
from fastscore.samplers._continuous import (
    ContinuousOptions,
    Grid,
    check_steps,
    ends_of,
    plan_of,
    times_for,
)
from fastscore.samplers._frame import Frame
from fastscore.samplers._inputs import check_clamp
from fastscore.samplers._options import sampler_with
from fastscore.samplers._plan import OPEN, Model, Plan
from fastscore.samplers._rk4 import STAGES, rk4_rows, with_stages
from fastscore.samplers._rows import Levels, Rows, dpmpp_rows, euler_rows, heun_rows
from fastscore.sde import Process, as_process

SOLVERS = ("euler", "heun", "rk4", "dpmpp_2m", "dpmpp_2m_sde", "rk45")
STEPS = 20


@sampler_with(ContinuousOptions)
def probability_flow(
    model: Model,
    sde: Process | Any,
    x: Tensor | None = None,
    *,
    solver: str = "dpmpp_2m",
    steps: int | None = None,
    grid: Grid = "karras",
    rtol: float = DEFAULTS["rtol"],
    atol: float = DEFAULTS["atol"],
    max_steps: int = DEFAULTS["max_steps"],
    failed: str = DEFAULTS["failed"],
    encode: bool = False,
    denoise: bool | None = None,
    t_start: float = 1.0,
    eta: float = 1.0,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, float("inf")),
    churn_noise: float = 1.0,
    **options: Unpack[ContinuousOptions],
) -> Plan:
    r"""The probability-flow ODE from noise to data, or from data to noise.

    dx/dt = f x - g^2 s/2 moves noise to data with the marginals of the reverse SDE (Song et al.
    2021, section 4.3). In y = x/alpha, data under noise of s = sigma/alpha, it is dy/ds = -s S(y,
    s), for every process the same (Karras et al. 2022), and is solved there:

    - "euler": in s, which is DDIM (Song, Meng and Ermon 2021), one call of the model a step;
    - "heun": second order in s, two calls a step and one in the last (Karras et al. 2022,
      algorithm 2), with fresh noise before each step where ``churn`` is positive;
    - "rk4": the classical fourth order in s, four calls a step and one in the last;
    - "dpmpp_2m": DPM-Solver++(2M), second order in log s from the step before (Lu et al. 2022);
      "dpmpp_2m_sde" its form for the SDE, with noise in every step, one call a step;
    - "rk45": order 5(4) (Dormand and Prince 1980), with steps of each sample's own, so small that
      the error of each is within ``atol + rtol |x|``; a sample that has arrived is not asked for
      any more.

    The last of ``steps`` steps leads from the lowest noise level to the data, by the expected data
    there (``denoise``).

    Args:
        model: as in :func:`reverse_sde`, all ways of calling.
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)``, ``sigma(t)``.
        x: initial state, (batch, ...), taken as it is: of the noise at ``t_start``, or, to be
            encoded, of data. Or a :class:`SamplerState`.
        solver: see above.
        steps: how many, the denoising step included: 20 by default. None for "rk45".
        grid: where the steps lie: "karras", uniform in s^(1/7); "log", uniform in log s; "uniform"
            in t; from ``t_start`` to the process's ``t_min``, within what the model says is its
            ``sigma_range``. Or the times themselves, falling (rising, to encode): as many as there
            are steps, or one more where there is no denoising step.
        rtol, atol: of "rk45", relative and absolute error of a step, in the units of the data.
        encode: from data, taken as they are at ``t_min``, to noise.
        denoise: whether the last step leads to the data; by default it does, but for "rk45" and
            to encode, which goes back and forth without.
        t_start: where to begin, below 1 with ``x`` given; when encoding, where to end.
        max_steps: of "rk45", after how many steps, also those that are made again, a sample is
            given up.
        failed: of "rk45", what is done with samples that can't meet the tolerances: "raise" an
            error, or "return" NaN for them, and the others as they are.
        eta: of "dpmpp_2m_sde", how much noise: 1 for the SDE, 0 for "dpmpp_2m".
        churn: of "heun", S_churn: how much noise there is in all; each step raises it by the share
            min(churn/steps, sqrt(2) - 1).
        churn_range: the levels s at which there is some, (S_tmin, S_tmax).
        churn_noise: S_noise, the standard deviation of that noise.
        trajectory: after how many steps the state is recorded; not for "rk45", whose samples are
            not at the same time.

    Returns:
        Samples, float32 or float64, of the shape asked for; a :class:`SamplerState` with
        ``return_state``, which has the calls of the model; with ``trajectory``, a pair of either
        and the recorded states, (number recorded, batch, ...).

    Raises:
        ValueError: as :func:`reverse_sde`; options of another solver; ``known`` where data are
            encoded.
        TypeError: an argument of the wrong type.
        RuntimeError: "rk45" can't meet its tolerances; the message names sample, time and step.

    Known elements (``known``, ``mask``) move along ``alpha known + sigma z`` with one z for the
    whole run, for a field that changes from step to step has no solution. What is not known is then
    further from its conditional distribution than with :func:`reverse_sde`, whose example of two
    coordinates has mean 0.447 and variance 0.517 here, for 0.9 and 0.19, with any
    solver but "dpmpp_2m_sde" (0.626 and 0.405).

    Example:
        Standard normal data, sampled in 20 calls of the exact score, encoded and decoded:

        >>> import torch, fastscore
        >>> score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)
        >>> sde = fastscore.sde.VE(0.01, 10.0)
        >>> x = fastscore.probability_flow(
        ...     score, sde, solver="dpmpp_2m", steps=20, shape=(4000, 2), seed=0
        ... )
        >>> bool((x.std() - 1).abs() < 0.05)
        True
        >>> noise = fastscore.probability_flow(score, sde, x, solver="heun", steps=50, encode=True)
        >>> again = fastscore.probability_flow(
        ...     score, sde, noise, solver="heun", steps=50, denoise=False
        ... )
        >>> bool((again - x).abs().max() < 0.01)
        True
    """
    fn = "probability_flow"
    process = as_process(fn, sde)
    check_choice(fn, "solver", solver, SOLVERS)
    check_own_options(fn, solver, eta=eta, churn=churn, churn_noise=churn_noise)
    check_adaptive(fn, solver, rtol=rtol, atol=atol, max_steps=max_steps, failed=failed)
    churn_noise = check_number(fn, "churn_noise", churn_noise, minimum=0.0)
    churn_range = check_churn_range(fn, churn_range)
    check_encoding(fn, encode, x, options, denoise, churn, solver)
    frame = Frame.asked(fn, model, process, dict(options))
    if solver == "rk45":
        refuse_grid(fn, steps, grid)
        method = method_of(
            fn, rtol=rtol, atol=atol, max_steps=max_steps, failed=failed, denoise=bool(denoise)
        )
        ends = times_for(fn, model, frame, x, "log", 2, t_start)
        ends = ends.flip(0) if encode else ends
        from_start = t_start == 1 and not encode
        plan = adaptive_plan(fn, model, frame, ends, method, dict(options), from_start=from_start)
        plan.settings = f"{solver=}, rtol={rtol:g}, atol={atol:g}"
        plan.settings += f", conditioning={frame.conditioning!r}, {t_start=}, {encode=}"
        return plan
    to_data = not encode if denoise is None else bool(denoise)
    if steps is None:
        steps = STEPS if isinstance(grid, str) else times_in(fn, grid) - (not to_data)
    steps = check_steps(fn, steps)
    points = steps + 1 if not to_data else steps
    times = grid_of(fn, model, frame, x, grid, points, t_start, encode=encode)
    levels = Levels.of(process, times, to_data=to_data)
    if solver == "heun":
        clips = check_clamp(fn, options["clip_denoised"], "clip_denoised") != OPEN
        noise = (churn, churn_range, churn_noise)
        rows = heun_rows(process, levels, *noise, slopes=not clips)
    elif solver == "rk4":
        rows = rk4_rows(process, levels)
    else:
        rows = rows_of(solver, levels, eta)
    each = {"heun": 2, "rk4": STAGES}.get(solver, 1)
    whole = steps - 1 if to_data else steps
    plan = plan_of(
        fn,
        frame,
        rows,
        ends_of(whole, each, len(rows) - whole * each),
        dict(options),
        model=model,
        settings=f"solver={solver!r}, steps={steps}",
        multistep=solver not in ("euler", "rk4"),
        carries_history=solver.startswith("dpmpp"),
        one_noise=True,
        from_start=t_start == 1 and not encode,
    )
    plan.settings += f", grid={grid!r}" if isinstance(grid, str) else ", grid of times"
    plan.settings += f", {t_start=}, {encode=}"
    return with_stages(plan, frame, rows) if solver == "rk4" else plan


def times_in(fn: str, grid: Any) -> int:
    """How many times are given."""
    try:
        return len(grid)
    except TypeError:
        fail_type(fn, "grid", "a name, or a tensor or a sequence of times", grid)


def rows_of(solver: str, levels: Levels, eta: float) -> Rows:
    """The rows of a solver that asks the model once a step."""
    if solver.startswith("dpmpp"):
        return dpmpp_rows(levels, eta if solver == "dpmpp_2m_sde" else 0.0)
    return euler_rows(levels)


def grid_of(
    fn: str,
    model: Any,
    frame: Frame,
    x: Any,
    grid: Grid,
    points: int,
    t_start: float,
    *,
    encode: bool,
) -> Tensor:
    """The times in the order in which they are gone through."""
    if points == 1 and isinstance(grid, str):  # of a single call, from where sampling begins
        return times_for(fn, model, frame, x, grid, 2, t_start)[:1]
    times = times_for(fn, model, frame, x, grid, points, t_start)
    return times.flip(0) if encode else times


def check_own_options(fn: str, solver: str, **given: float) -> None:
    """Options of one solver are left alone with the others."""
    eta = check_number(fn, "eta", given["eta"], minimum=0.0)
    churn = check_number(fn, "churn", given["churn"], minimum=0.0)
    if eta != 1 and solver != "dpmpp_2m_sde":
        fail(fn, "eta", f'1 but with solver="dpmpp_2m_sde", here {solver!r}', eta)
    for name, value, unused in (("churn", churn, 0), ("churn_noise", given["churn_noise"], 1)):
        if value != unused and solver != "heun":
            fail(fn, name, f'{unused} but with solver="heun", here {solver!r}', value)


def check_churn_range(fn: str, given: Any) -> tuple[float, float]:
    """Two levels, the lower one first; the upper may be infinite."""
    expected = "a pair (S_tmin, S_tmax) of noise levels, the lower one first"
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        fail_type(fn, "churn_range", expected, given)
    lo = check_number(fn, "churn_range", given[0], minimum=0.0)
    hi = given[1] if given[1] == float("inf") else check_number(fn, "churn_range", given[1])
    if lo > hi:
        fail(fn, "churn_range", expected, (lo, hi))
    return lo, hi


def check_adaptive(fn: str, solver: str, **given: Any) -> None:
    """The options of the adaptive solver are left alone with the others."""
    for name, value in given.items():
        if solver != "rk45" and value != DEFAULTS[name]:
            fail(fn, name, f'left out but with solver="rk45", here {solver!r}', value)


def refuse_grid(fn: str, steps: int | None, grid: Grid) -> None:
    """The adaptive solver finds where its steps lie."""
    if steps is not None:
        fail(fn, "steps", 'None with solver="rk45", which finds its own', steps)
    if not isinstance(grid, str) or grid != "karras":
        fail(fn, "grid", 'left out with solver="rk45", which finds its own', grid)


def check_encoding(
    fn: str, encode: bool, x: Any, options: Any, denoise: bool | None, churn: float, solver: str
) -> None:
    """Encoding starts from data, and has no noise of its own."""
    if not encode:
        return
    if x is None:
        fail(fn, "x", "given, the data to be encoded", None)
    for name in ("known", "mask"):
        if options[name] is not None:
            fail(fn, name, "None where data are encoded, which are known", "a value")
    if denoise:
        fail(fn, "denoise", "None or False where data are encoded", denoise)
    if churn or solver == "dpmpp_2m_sde":
        fail(fn, "solver", "one without noise where data are encoded", f"{solver!r}, {churn=}")
