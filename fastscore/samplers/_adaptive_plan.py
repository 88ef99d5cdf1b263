"""What a run with step control is asked for, checked, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_int, check_number, fail
from fastscore._support.wrappers import said_by
from fastscore.samplers._adaptive import AdaptiveChain, Method
from fastscore.samplers._angle import DATA_SCALE, Angle
from fastscore.samplers._frame import Frame
from fastscore.samplers._inputs import check_clamp
from fastscore.samplers._plan import OPEN, Plan

DEFAULTS: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3, "max_steps": 10_000, "failed": "raise"}


def method_of(
    fn: str, *, rtol: float, atol: float, max_steps: int, failed: str, denoise: bool
) -> Method:
    """The settings, checked."""
    rtol = check_number(fn, "rtol", rtol, minimum=0.0)
    atol = check_number(fn, "atol", atol, positive=True)
    max_steps = check_int(fn, "max_steps", max_steps, minimum=1)
    check_choice(fn, "failed", failed, ("raise", "return"))
    return Method(rtol, atol, max_steps, denoise, returns_failed=failed == "return")


@dataclass
class AdaptivePlan(Plan):
    """A plan of a run that has as many steps as it takes."""

    def recorded(self, fn: str, trajectory: Sequence[int] | None) -> list[int] | None:
        """No trajectory."""
        if trajectory is not None:
            expected = 'None with solver="rk45", whose samples are not at the same time'
            fail(fn, "trajectory", expected, trajectory)
        return None


def data_scale(fn: str, model: Any, given: float | None = None, *, otherwise: float = 0.0) -> float:
    """About the data's standard deviation: as given, as the model says, otherwise, or a guess."""
    if given is not None:
        return check_number(fn, "sigma_data", given, positive=True)
    scale = said_by(model, "sigma_data")
    if scale is None:
        return otherwise if otherwise > 0 else DATA_SCALE
    return check_number(fn, "the model's sigma_data", scale, positive=True)


def adaptive_plan(
    fn: str,
    model: Any,
    frame: Frame,
    t: Tensor,
    method: Method,
    options: dict[str, Any],
    *,
    from_start: bool,
) -> Plan:
    """The plan of a run with step control from one time to another: most is found on the way."""
    clip = check_clamp(fn, options["clip_denoised"], "clip_denoised")
    first, last = t.tolist()
    angle = Angle(frame, first, last, clip != OPEN, data_scale(fn, model))
    process = frame.process
    s = process.noise_level(t)
    alpha, own_alpha = process.alpha(t), frame.alpha(t, s)
    own, of_state = frame.output_coefficients(t, s)
    variance = float((own_alpha * s).square()[0])
    start = float((alpha * s)[0])
    return AdaptivePlan(
        torch.zeros(1, 4, dtype=torch.float64),
        frame.told(t, s)[:1],
        steps=method.max_steps,
        steps_per_level=method.max_steps,
        init_scale=start,
        known_scale=start,
        known_part=float(alpha[0]),
        step_size=f"rtol={method.rtol:g}, atol={method.atol:g}",
        conditioning=frame.conditioning,
        records_steps=True,
        labels=frame.labels(s[:1]),
        scales=frame.scale(t, s).tolist(),
        clip=clip,
        known_table=torch.zeros(1, 4, dtype=torch.float64),
        continuous=True,
        returns_state=bool(options["return_state"]),
        carries_history=True,
        prior=(variance, float(own[0]), float(of_state[0]), float(s[0])) if from_start else None,
        init_mean=options["init_mean"],
        make_chain=partial(AdaptiveChain, method=method, angle=angle),
        graph_by_itself=False,
    )
