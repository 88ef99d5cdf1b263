"""The samplers that quality.py compares, a line of its figure each, and what their runs are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One sampler at several numbers of evaluations: keyword arguments of each run."""

    name: str
    family: str
    marker: str
    runs: tuple[Row, ...]
    dashes: str = "-"
    from_zero: bool = False


def flow(counts: Iterable[int], calls: int = 1, last: int = 1, **options: Any) -> tuple[Row, ...]:
    """Runs of ``probability_flow`` of so many steps, ``calls`` in each but the last."""
    return tuple(
        {"function": "probability_flow", "steps": n, "evaluations": calls * (n - 1) + last}
        | {"grid": "karras"}
        | {name: value(n) if callable(value) else value for name, value in options.items()}
        for n in counts
    )


def sde(counts: Iterable[int], **options: Any) -> tuple[Row, ...]:
    """Runs of ``reverse_sde`` of so many steps, and the denoising one."""
    calls = 2 if "corrector" in options else 1
    return tuple(
        {"function": "reverse_sde", "steps": n, "evaluations": calls * n + 1, "grid": "karras"}
        | options
        for n in counts
    )


def langevin(*counts: tuple[int, int]) -> tuple[Row, ...]:
    """Annealed Langevin dynamics of so many levels with so many steps at each."""
    return tuple(
        {"function": "annealed_langevin", "levels": levels, "steps_per_sigma": steps}
        | {"evaluations": levels * steps + 1}
        for levels, steps in counts
    )


def consistent(*counts: int) -> tuple[Row, ...]:
    """Consistent annealed sampling; its noise is 0.44 of what would be new in every step."""
    return tuple(
        {"function": "consistent_annealed_langevin", "levels": n, "old_noise": 0.9}
        | {"evaluations": n}
        for n in counts
    )


def adaptive(*tolerances: float) -> tuple[Row, ...]:
    return tuple(
        {"function": "probability_flow", "solver": "rk45", "rtol": tol, "atol": tol}
        | {"denoise": True, "evaluations": None}
        for tol in tolerances
    )


def churn(steps: int) -> float:
    """Noise of 0.4 of the level in every step, nearly the most that there may be."""
    return 0.4 * steps


PREDICTORS = {"euler_maruyama": "o", "reverse_diffusion": "s", "ancestral": "^"}
FAMILIES = {  # colours of Okabe and Ito, and of Tol, that the colour-blind can tell apart
    "Langevin": "#0072B2",
    "predictor": "#E69F00",
    "predictor and corrector": "#009E73",
    "flow": "#D55E00",
    "flow with noise": "#882255",
    "started from zero": "#888888",
}
LINES = (
    Line("annealed_langevin", "Langevin", "o", langevin((6, 3), (13, 3), (35, 3), (35, 5))),
    Line("consistent_annealed_langevin", "Langevin", "s", consistent(12, 20, 40)),
    *(
        Line(name, "predictor", marker, sde((11, 19, 39), predictor=name))
        for name, marker in PREDICTORS.items()
    ),
    *(
        Line(
            f"{name}, {corrector}",
            "predictor and corrector",
            marker,
            sde((5, 9, 19), predictor=name, corrector=corrector),
            dashes,
        )
        for corrector, dashes in (("annealed", "-"), ("langevin", "--"))
        for name, marker in PREDICTORS.items()
    ),
    Line("euler", "flow", "o", flow((8, 12, 20, 40), solver="euler")),
    Line("heun", "flow", "s", flow((4, 6, 10, 20), 2, solver="heun")),
    Line("rk4", "flow", "^", flow((3, 5, 10), 4, solver="rk4")),
    Line("dpmpp_2m", "flow", "D", flow((5, 8, 12, 20, 40), solver="dpmpp_2m")),
    Line("rk45", "flow", "v", adaptive(0.3, 0.1, 0.03, 0.01, 0.001), "--"),
    Line("heun, churn", "flow with noise", "s", flow((6, 10, 20), 2, solver="heun", churn=churn)),
    Line(
        "dpmpp_2m_sde", "flow with noise", "D", flow((5, 8, 12, 20, 40), solver="dpmpp_2m_sde")
    ),
    Line("heun from zero", "started from zero", "s", flow((10,), 2, solver="heun"), ":", True),
    Line(
        "dpmpp_2m from zero", "started from zero", "D", flow((12, 20), solver="dpmpp_2m"), ":", True
    ),
    Line(
        "dpmpp_2m_sde from zero",
        "started from zero",
        "o",
        flow((5, 8, 12, 20), solver="dpmpp_2m_sde"),
        ":",
        True,
    ),
)  # fmt: skip
