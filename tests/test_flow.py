"""The probability flow on fixed grids: closed forms, orders, published updates, every option."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from continuous import (
    MEAN,
    PREDICTIONS,
    PROCESSES,
    VARIANCE,
    InTime,
    every_process,
    flow_of,
    gaussian,
)
from helpers import assert_same_bytes, randn
from torch import Tensor

from fastscore import sde
from fastscore.samplers import SamplerState, probability_flow
from fastscore.sde import Process
from fastscore.sde.grids import time_grid

GRID_SOLVERS = ("euler", "heun", "dpmpp_2m")
every_solver = pytest.mark.parametrize("solver", [*GRID_SOLVERS, "dpmpp_2m_sde"])


def denoiser(y: Tensor, s: float) -> Tensor:
    return y + s**2 * (MEAN - y) / (VARIANCE + s**2)


def published(solver: str, y: Tensor, levels: list[float]) -> Tensor:
    """As the papers have it, in y, with D the denoiser."""
    last: Tensor | None = None
    for i, (s, after) in enumerate(itertools.pairwise(levels)):
        data = denoiser(y, s)
        if after == 0:
            y = data
        elif solver == "euler":
            y = y + (after - s) * (y - data) / s
        elif solver == "heun":
            slope = (y - data) / s
            guess = y + (after - s) * slope
            y = y + (after - s) * (slope + (guess - denoiser(guess, after)) / after) / 2
        else:
            step = math.log(s / after)
            best = data
            if last is not None:
                r = math.log(levels[i - 1] / s) / step
                best = (1 + 1 / (2 * r)) * data - last / (2 * r)
            y = after / s * y - math.expm1(-step) * best
            last = data
    return y


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", GRID_SOLVERS)
def test_it_is_the_published_update(
    device: torch.device, solver: str, prediction: str, conditioning: str
) -> None:
    process = sde.VP()
    times = time_grid("test", process, "karras", 6, 1.0, 1e-3)
    alpha, levels = float(process.alpha(times[0])), process.noise_level(times).tolist()
    start = randn(5, 3, dtype=torch.float64).to(device)
    model: Any = InTime(process, prediction)
    if conditioning == "sigma":
        if prediction != "score":
            pytest.skip("predictions are tried in time")
        model = gaussian
    got = probability_flow(model, process, start, solver=solver, steps=6, conditioning=conditioning)
    expected = published(solver, start / alpha, [*levels, 0.0])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@every_process
@pytest.mark.parametrize("solver", GRID_SOLVERS)
def test_it_follows_the_flow_of_gaussian_data(process: Process, solver: str) -> None:
    x = randn(40, dtype=torch.float64) * float(process.sigma(0.6))
    end = probability_flow(
        InTime(process, "eps"), process, x, solver=solver, steps=200, t_start=0.6, denoise=False,
        grid="log",
    )  # fmt: skip
    exact = flow_of(process, x, 0.6, process.t_min)
    tolerance = 0.02 if solver == "euler" else 6e-4
    torch.testing.assert_close(end, exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_its_order(solver: str, order: int) -> None:
    process, x = sde.VE(0.05, 5.0), randn(20, dtype=torch.float64) * 5
    exact = flow_of(process, x, 1.0, 0.0)
    errors = [
        float(
            (probability_flow(gaussian, process, x, solver=solver, steps=n, denoise=False,
                              grid="log") - exact).abs().max()
        )
        for n in (40, 80)
    ]  # fmt: skip
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_vp_of_normal_data_stands_still() -> None:
    process, x = sde.VP(), randn(50, 3)
    flow = probability_flow(
        lambda x, t: -x, process, x, solver="heun", steps=100, grid="log", denoise=False
    )
    torch.testing.assert_close(flow, x, rtol=0, atol=5e-3)


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
@pytest.mark.parametrize("process", PROCESSES[:2], ids=["VE", "VP"])
def test_data_are_encoded_and_decoded(process: Process, conditioning: str) -> None:
    model: Any = gaussian if conditioning == "sigma" else InTime(process, "v")
    x = randn(30, 2, dtype=torch.float64) * 0.5 + MEAN
    how: dict[str, Any] = {"solver": "heun", "steps": 200, "conditioning": conditioning}
    how["grid"] = "log"
    noise = probability_flow(model, process, x, encode=True, **how)
    torch.testing.assert_close(noise, flow_of(process, x, process.t_min, 1.0), rtol=1e-2, atol=1e-2)
    again = probability_flow(model, process, noise, denoise=False, **how)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-3)
    half = probability_flow(model, process, x, encode=True, t_start=0.5, **how)
    torch.testing.assert_close(half, flow_of(process, x, process.t_min, 0.5), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_the_marginals_are_right_with_and_without_noise(churn: float) -> None:
    process = sde.VE(0.01, 20.0)
    how: dict[str, Any] = {"shape": (20_000,), "seed": 0, "conditioning": "sigma"}
    x = probability_flow(gaussian, process, solver="heun", steps=80, churn=churn, **how)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(x.var()) == pytest.approx(VARIANCE, rel=0.05)
    y = probability_flow(gaussian, process, solver="heun", steps=80, **{**how, "seed": 0})
    assert torch.equal(x, y) == (churn == 0)
    z = probability_flow(gaussian, process, solver="dpmpp_2m_sde", steps=40, **how)
    assert float(z.var()) == pytest.approx(VARIANCE, rel=0.05)


def test_churn_is_noise_up_to_the_level_that_the_model_is_told() -> None:
    """One data point at 0: the state is noise of exactly the level, whatever the churn."""
    spreads: list[float] = []

    def point(y: Tensor, s: Tensor) -> Tensor:
        spreads.append(float(y.std() / s[0]))
        return -y / s.reshape(-1, 1) ** 2

    probability_flow(
        point, sde.VE(0.01, 20.0), shape=(4000, 4), solver="heun", steps=12, churn=6.0,
        churn_range=(0.05, 5.0), seed=0,
    )  # fmt: skip
    assert len(spreads) == 23
    # Heun's step is exact for a straight path: none of its rows has another spread.
    assert max(abs(spread - 1) for spread in spreads) < 0.03


def test_the_sde_form_without_noise_is_the_ode() -> None:
    process, x = sde.VP(), randn(6, 2, dtype=torch.float64)
    model = InTime(process, "x0")
    ode = probability_flow(model, process, x, solver="dpmpp_2m", steps=7)
    calm = probability_flow(model, process, x, solver="dpmpp_2m_sde", eta=0.0, steps=7)
    torch.testing.assert_close(calm, ode, rtol=1e-12, atol=1e-12)


def test_the_sde_form_keeps_the_noise_of_one_data_point() -> None:
    def point(y: Tensor, s: Tensor) -> Tensor:
        spreads.append(float(y.std() / s[0]))
        return -y / s.reshape(-1, 1) ** 2

    for eta in (0.5, 1.0):
        spreads: list[float] = []
        probability_flow(
            point, sde.VE(0.01, 20.0), shape=(4000, 4), solver="dpmpp_2m_sde", eta=eta, steps=12
        )
        assert max(abs(spread - 1) for spread in spreads) < 0.03


@pytest.mark.parametrize(
    ("solver", "denoise", "calls"),
    [
        ("euler", True, 5),
        ("euler", False, 5),
        ("heun", True, 9),
        ("heun", False, 10),
        ("dpmpp_2m", True, 5),
        ("dpmpp_2m_sde", None, 5),
    ],
)
def test_its_evaluations(solver: str, denoise: bool | None, calls: int) -> None:
    model = InTime(sde.VP())
    state = probability_flow(
        model, sde.VP(), shape=(3, 2), solver=solver, steps=5, denoise=denoise, return_state=True
    )
    assert isinstance(state, SamplerState)
    assert (model.calls, state.evaluations, state.step) == (calls, calls, 5)
    assert f"evaluations={calls}" in repr(state)


def run(x: Any = None, model: Any = None, **options: Any) -> Any:
    process = sde.VP()
    defaults: dict[str, Any] = {"steps": 6, "seed": 3}
    return probability_flow(model or InTime(process), process, x, **{**defaults, **options})


@every_solver
@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_a_run_goes_on_to_the_same_bytes(
    device: torch.device, solver: str, conditioning: str
) -> None:
    how: dict[str, Any] = {"conditioning": conditioning, "solver": solver}
    how["model"] = gaussian if conditioning == "sigma" else None
    whole = run(shape=(4, 3), device=device, **how)
    for stop in (1, 4):
        state = run(
            shape=(4, 3), callback=lambda step, x, stop=stop: step == stop, return_state=True,
            device=device, **how,
        )  # fmt: skip
        assert state.step == stop
        assert_same_bytes(run(state.to(device), **how), whole)
        if conditioning == "sigma" or solver.startswith("dpmpp"):
            with pytest.raises(ValueError, match="x must be a SamplerState"):
                run(state.x, start_step=stop, **how)
        else:
            assert_same_bytes(run(state.x, start_step=stop, **how), whole)


@every_solver
@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_a_sample_is_its_own(device: torch.device, solver: str, conditioning: str) -> None:
    how: dict[str, Any] = {"conditioning": conditioning, "solver": solver, "device": device}
    how["model"] = gaussian if conditioning == "sigma" else None
    whole = run(shape=(7, 5), **how)
    assert_same_bytes(run(shape=(3, 5), sample_offset=4, **how), whole[4:])
    samples = torch.tensor([5, 0], device=device)
    assert_same_bytes(run(shape=(2, 5), samples=samples, **how), whole[[5, 0]])


@every_solver
@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_known_elements_move_along_one_path(
    device: torch.device, solver: str, conditioning: str
) -> None:
    process = sde.VP()
    mask = torch.tensor([True, False, True], device=device)
    noise: list[Tensor] = []

    def watched(state: Tensor, level: Tensor) -> Tensor:
        t = level if conditioning == "time" else process.time_of(level)
        alpha, sigma = (1.0, level[0]) if conditioning == "sigma" else (
            process.alpha(t[0]), process.sigma(t[0]),
        )  # fmt: skip
        noise.append(((state[:, mask].double() - 5.0 * alpha) / sigma).cpu())
        return gaussian(state, level) if conditioning == "sigma" else InTime(process)(state, level)

    x = run(
        shape=(50, 3), model=watched, known=5.0, mask=mask, conditioning=conditioning,
        solver=solver, dtype=torch.float64, device=device,
    )  # fmt: skip
    assert bool((x[:, mask] == 5).all())
    assert bool((x[:, 1] != 5).all())
    for z in noise:
        torch.testing.assert_close(z, noise[0], rtol=1e-5, atol=1e-5)
    assert float(noise[0].std()) == pytest.approx(1, abs=0.2)


@every_solver
def test_what_is_predicted_is_clipped(device: torch.device, solver: str) -> None:
    for how in ({"conditioning": "sigma", "model": gaussian}, {"conditioning": "time"}):
        x = run(shape=(500, 3), clip_denoised=(0.6, 0.8), solver=solver, device=device, **how)
        assert float(x.min()) >= 0.6 - 1e-6
        assert float(x.max()) <= 0.8 + 1e-6
        free = run(shape=(500, 3), solver=solver, device=device, **how)
        loose = run(
            shape=(500, 3), solver=solver, clip_denoised=(-100.0, None), device=device, **how
        )
        torch.testing.assert_close(loose, free, rtol=1e-4, atol=1e-5)


def test_callbacks_and_trajectories(device: torch.device) -> None:
    seen: list[Tensor] = []
    how: dict[str, Any] = {"model": gaussian, "conditioning": "sigma", "device": device}
    how |= {"solver": "heun", "shape": (4, 3)}
    x, states = run(callback=lambda step, x: seen.append(x.clone()), trajectory=[1, 6], **how)
    assert len(seen) == 6
    assert_same_bytes(seen[-1], x)
    assert_same_bytes(states, torch.stack([seen[0], seen[5]]))
    t = time_grid("test", sde.VP(), "karras", 6, 1.0, 1e-3)
    assert float(seen[0].std()) < 3 * float(sde.VP().sigma(t[1]))  # x, not y


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"solver": "rk5"}, ValueError, "solver must be one of 'euler'"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 2.5}, TypeError, "steps must be an integer"),
        ({"grid": "cosine"}, ValueError, "grid must be"),
        ({"grid": [1.0, 0.5, 0.7], "steps": None}, ValueError, "grid must be"),
        ({"grid": [1.0, 0.5, -0.1], "steps": None}, ValueError, "grid must be"),
        ({"grid": [1.0, 0.5], "steps": 3}, ValueError, "grid must be"),
        ({"grid": None, "steps": None}, TypeError, "grid must be a name, or a tensor"),
        (
            {"grid": [1.0, 0.5], "steps": None, "x": torch.zeros(4, 3), "t_start": 0.5},
            ValueError,
            "t_start must be left out, or the grid's own 1",
        ),
        ({"churn_noise": 1.1, "solver": "rk4"}, ValueError, "churn_noise must be 1 but with"),
        ({"init_mean": torch.zeros(5)}, ValueError, "init_mean must be of the state's shape"),
        ({"init_mean": 1.0, "x": torch.zeros(4, 3)}, ValueError, "init_mean must be None but"),
        ({"init_mean": torch.nan}, ValueError, "init_mean must be finite"),
        ({"eta": 0.5}, ValueError, 'eta must be 1 but with solver="dpmpp_2m_sde"'),
        ({"churn": 5.0, "solver": "euler"}, ValueError, 'churn must be 0 but with solver="heun"'),
        ({"churn": -1.0}, ValueError, "churn must be at least 0"),
        ({"encode": True}, ValueError, "x must be given, the data"),
        ({"t_start": 0.5}, ValueError, "x must be given, the state at t_start=0.5"),
        ({"encode": True, "x": torch.zeros(2, 3), "denoise": True}, ValueError, "denoise must be"),
        (
            {"encode": True, "x": torch.zeros(2, 3), "known": 1.0, "mask": torch.tensor(True)},
            ValueError,
            "known must be None where data are encoded",
        ),
        ({"encode": True, "x": torch.zeros(2, 3), "churn": 5.0}, ValueError, "without noise"),
        ({"churn_range": (2.0, 1.0), "churn": 1.0}, ValueError, "churn_range must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"shape": (4, 3), "solver": "heun", **arguments}
    if "x" in arguments:
        del arguments["shape"]
    with pytest.raises(error, match=f"probability_flow: .*{message}"):
        run(**arguments)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "rk4", "rk45"])
@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_a_state_is_drawn_about_the_mean(
    device: torch.device, conditioning: str, solver: str
) -> None:
    process = sde.VE(0.01, 2.0)
    model: Any = gaussian if conditioning == "sigma" else InTime(process)
    how: dict[str, Any] = {"shape": (4000, 2), "seed": 0, "device": device}
    how["conditioning"] = conditioning
    how |= {"solver": solver} if solver == "rk45" else {"solver": solver, "steps": 30}
    about = probability_flow(model, process, init_mean=MEAN, **how)
    alone = probability_flow(model, process, **how)
    assert float(about.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(alone.mean()) == pytest.approx(0.75 * MEAN, abs=0.03)  # as the flow says
    mean = torch.tensor([MEAN, 0.0], device=device)
    each = probability_flow(model, process, init_mean=mean, **how)
    assert_same_bytes(each[:, 0].contiguous(), about[:, 0].contiguous())


def test_levels_of_a_given_grid() -> None:
    times = [1.0, 0.6, 0.2, 0.05]
    seen: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(round(float(t[0]), 6))
        return InTime(sde.VP())(x, t)

    probability_flow(watched, sde.VP(), shape=(2, 2), solver="euler", grid=times)
    assert seen == times
    seen.clear()
    probability_flow(watched, sde.VP(), torch.zeros(2, 2), solver="euler", grid=times[::-1],
                     encode=True)  # fmt: skip
    assert seen == [0.05, 0.2, 0.6]
    seen.clear()
    probability_flow(watched, sde.VP(), shape=(2, 2), solver="euler", steps=1)
    assert seen == [1.0]


class Straight:
    """Of the name of a rectified flow, which has no noise at t = 0."""

    t_min = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("solver", [*GRID_SOLVERS, "rk45"])
def test_a_grid_that_reaches_the_data_is_refused(solver: str, denoise: bool) -> None:
    """There is nothing to ask the model there; the step to the data is the denoising one."""
    how: dict[str, Any] = {"solver": solver, "denoise": denoise, "shape": (2, 3), "seed": 0}
    how["conditioning"] = "sigma"
    with pytest.raises(ValueError, match="sde must be a process with noise at its t_min"):
        probability_flow(gaussian, Straight(), **how)
    if solver != "rk45":
        with pytest.raises(ValueError, match="grid must be times with noise at the last of them"):
            probability_flow(gaussian, sde.RectifiedFlow(), grid=[0.9, 0.5, 0.0], **how)
