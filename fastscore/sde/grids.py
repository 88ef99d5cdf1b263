"""The times at which samplers look: where the points lie, and nothing else.

==============  =====================================================================
``grid``        points
==============  =====================================================================
``"uniform"``   evenly spaced in t
``"karras"``    s^(1/7) evenly spaced, s = sigma/alpha (Karras et al. 2022, eq. 5)
``"log"``       log s evenly spaced
a sequence      these times
==============  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_int,
    check_number,
    describe,
    fail,
    fail_type,
)
from fastscore.sde._process import Process

GRIDS = ("uniform", "karras", "log")
RHO = 7.0


def time_grid(
    fn: str,
    process: Process,
    grid: str | Tensor | Sequence[float],
    points: int | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
) -> Tensor:
    """Times from noise to data: (points,), float64 on the CPU, strictly decreasing.

    Args:
        fn: the public function on whose behalf this is asked, for messages.
        process: whose times they are.
        grid: "uniform", "karras" or "log", or the times themselves, rising or falling.
        points: how many, at least 2, the ends counted: one more than there are steps. With times
            given, None or their number.
        t_start: the first; the process's ``t_max`` by default, and instead of anything later.
        t_end: the last; the process's ``t_min`` by default.

    Raises:
        ValueError, TypeError: a grid that is not monotone, that leaves the process, or of fewer
            than 2 points; ends that lie the wrong way round; more points than can be told apart; a
            "log" grid that ends without noise.

    Song et al. 2021 (uniform); Karras et al. 2022, https://arxiv.org/abs/2206.00364.

    Example:
        >>> from fastscore.sde import VE
        >>> time_grid("reverse_sde", VE(), "uniform", 3)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
        >>> VE().sigma(time_grid("reverse_sde", VE(), "karras", 3))
        tensor([5.0000e+01, 2.4013e+00, 1.0000e-02], dtype=torch.float64)
    """
    if not isinstance(grid, str):
        return _given(fn, process, grid, points, t_start, t_end)
    check_choice(fn, "grid", grid, GRIDS, other="a sequence of times")
    if points is None:
        fail(fn, "points", f"given for grid={grid!r}", None)
    count = check_int(fn, "points", points, minimum=2)
    start, end = _ends(fn, process, t_start, t_end)
    if not bool(torch.isfinite(process.noise_level(start))):
        expected = "a process whose noise level sigma/alpha is finite where sampling begins"
        fail(fn, "sde", expected, f"alpha = {float(process.alpha(start)):.3g} at t = {start:g}")
    part = torch.arange(count, dtype=torch.float64) / (count - 1)
    if grid == "uniform":
        times = torch.lerp(start, end, part)
    else:
        times = process.time_of(_levels(fn, process, grid, start, end, part))
    times[0], times[-1] = start, end
    if not bool((times[1:] < times[:-1]).all()):
        fail(fn, "points", "so few that the times can be told apart", count)
    return times


def _levels(
    fn: str, process: Process, grid: str, start: Tensor, end: Tensor, part: Tensor
) -> Tensor:
    """Noise levels from the first to the last."""
    first, last = process.noise_level(start), process.noise_level(end)
    if grid == "karras":
        return torch.lerp(first ** (1 / RHO), last ** (1 / RHO), part) ** RHO
    if float(last) <= 0:
        fail(fn, "t_end", 'later than the time without noise for grid="log"', float(end))
    return torch.lerp(first.log(), last.log(), part).exp()


def _ends(
    fn: str, process: Process, t_start: float | None, t_end: float | None
) -> tuple[Tensor, Tensor]:
    start = _time(fn, "t_start", process.t_max if t_start is None else t_start)
    end = _time(fn, "t_end", process.t_min if t_end is None else t_end)
    start = min(start, process.t_max)
    if end >= start:
        fail(fn, "t_start", f"later than t_end = {end}", start)
    return torch.tensor(start, dtype=torch.float64), torch.tensor(end, dtype=torch.float64)


def _time(fn: str, arg: str, value: Any) -> float:
    time = check_number(fn, arg, value, minimum=0.0)
    if time > 1:
        fail(fn, arg, "in [0, 1]", time)
    return time


def _given(
    fn: str,
    process: Process,
    grid: Any,
    points: int | None,
    t_start: float | None,
    t_end: float | None,
) -> Tensor:
    """Times that the caller has chosen, falling."""
    expected = "a name, or a tensor or a sequence of times"
    try:
        times = torch.as_tensor(grid, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError):
        fail_type(fn, "grid", expected, grid)
    if times.dim() != 1 or len(times) < 2:
        fail(fn, "grid", "at least 2 times in one dimension", describe(times))
    if float(times[0]) < float(times[-1]):
        times = times.flip(0)
    shown = times.tolist()[:8]
    if not bool((times[1:] < times[:-1]).all()):  # NaN is not
        fail(fn, "grid", "strictly monotone, and finite", shown)
    if float(times[0]) > process.t_max or float(times[-1]) < 0:
        fail(fn, "grid", f"inside the process, in [0, {process.t_max:.6g}]", shown)
    for arg, value, own in (("t_start", t_start, times[0]), ("t_end", t_end, times[-1])):
        if value is not None and float(value) != float(own):
            fail(fn, arg, f"left out, or the grid's own {float(own):.6g}", value)
    if points is not None and points != len(times):
        fail(fn, "points", f"left out, or the {len(times)} of the grid", points)
    return times
