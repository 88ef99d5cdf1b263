"""The adaptive solver: each sample as accurate as asked, at its own cost, whoever is beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_graphs
import pytest
import torch
from continuous import (
    BETAS,
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

import fastscore
from fastscore import sde
from fastscore._support.terms import Terms
from fastscore.samplers import SamplerState, probability_flow
from fastscore.sde import Process

VE = PROCESSES[0]
TIGHT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
MEANS = torch.tensor([[-1.0, 0.5, 0.2], [1.0, -0.5, 0.0], [0.3, 1.2, -0.8]], dtype=torch.float64)
MASK = torch.tensor([True, False, False])


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """The score of three narrow Gaussians; no row depends on how many others there are."""
    y, variance = x.double(), (0.01 + sigma.double() ** 2)[:, None]
    weights = [-((y - mean) ** 2) / (2 * variance) for mean in MEANS]
    powers = torch.stack([(w[:, 0] + w[:, 1]) + w[:, 2] for w in weights])
    shares = (powers - powers.amax(0)).exp()
    total = (shares[0] + shares[1]) + shares[2]
    mean = (shares[0, :, None] * MEANS[0] + shares[1, :, None] * MEANS[1]) + (
        shares[2, :, None] * MEANS[2]
    )
    return ((mean / total[:, None] - y) / variance).to(x.dtype)


def flow(model: Callable[..., Tensor], process: Any, *args: Any, **options: Any) -> Any:
    return probability_flow(model, process, *args, **{"solver": "rk45", **options})


def state_of(model: Callable[..., Tensor], process: Any, *args: Any, **options: Any) -> Any:
    return flow(model, process, *args, return_state=True, **options)


def noise(batch: int = 5, process: Process = VE, seed: int = 0) -> Tensor:
    x = randn(batch, 3, dtype=torch.float64, seed=seed)
    return x * float(process.sigma(process.t_max))


# ---- accuracy ------------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_as_accurate_as_asked(process: Process, prediction: str) -> None:
    x, model = noise(process=process), InTime(process, prediction)
    want = flow_of(process, x, process.t_max, process.t_min)
    options: dict[str, Any] = {"conditioning": "time", "prediction": prediction}
    calls = 0
    for tolerance in (1e-3, 1e-6):
        tolerances = {"rtol": tolerance, "atol": tolerance}
        state = state_of(model, process, x, **options, **tolerances)
        assert float((state.x - want).abs().max()) < tolerance
        assert calls < int(state.evaluations.max()) < 60
        calls = int(state.evaluations.max())
    there = flow(model, process, state.x, encode=True, **options, **TIGHT)
    back = flow(model, process, there, **options, **TIGHT)
    assert float((back - state.x).abs().max()) < 1e-6


@pytest.mark.parametrize("conditioning", ["sigma", "log_sigma"])
def test_against_scipy(conditioning: str) -> None:
    integrate = pytest.importorskip("scipy.integrate")

    def model(x: Tensor, level: Tensor) -> Tensor:
        return mixture(x, level if conditioning == "sigma" else level.exp())

    x, process = noise(3), sde.VP()
    start, end = float(process.noise_level(1.0)), float(process.noise_level(process.t_min))
    got = flow(model, process, x, conditioning=conditioning, rtol=1e-7, atol=1e-7)
    scale = float(process.alpha(1.0))
    for ours, first in zip(got, x / scale, strict=True):

        def slope(log_s: float, y: Any) -> Any:
            s = torch.tensor([log_s], dtype=torch.float64).exp()
            return (-(s**2) * mixture(torch.tensor(y)[None], s)[0]).numpy()

        logs = torch.tensor([start, end], dtype=torch.float64).log().tolist()
        found = integrate.solve_ivp(slope, logs, first.numpy(), rtol=1e-10, atol=1e-10)
        want = torch.tensor(found.y[:, -1]) * float(process.alpha(process.t_min))
        assert float((ours - want).abs().max()) < 3e-6


def test_a_network_of_indices() -> None:
    """Told the nearest of many levels, it is nearly what is told the level itself."""
    process = sde.DDPM(BETAS)
    levels = process.noise_level(torch.linspace(0, 1, 1000, dtype=torch.float64))

    def eps(x: Tensor, index: Tensor) -> Tensor:
        s = levels[index]
        return -s[:, None] * gaussian(x * torch.sqrt(1 + s**2)[:, None], s)

    x = noise(process=process)
    options: dict[str, Any] = {"conditioning": "index", "prediction": "eps", "betas": BETAS}
    want = flow_of(process, x, process.t_max, process.t_min)
    got = flow(eps, process, x, rtol=1e-2, atol=1e-2, **options)
    assert float((got - want).abs().max()) < 0.03


def test_denoised_when_asked() -> None:
    before, after = state_of(gaussian, VE, noise()), state_of(gaussian, VE, noise(), denoise=True)
    assert torch.equal(after.evaluations, before.evaluations + 1)
    level = torch.full((5,), 0.01, dtype=torch.float64)
    want = before.x + 1e-4 * gaussian(before.x, level)
    assert torch.allclose(after.x, want, rtol=0, atol=1e-12)


# ---- cost ----------------------------------------------------------------------------------------


def test_data_that_do_not_move_cost_next_to_nothing() -> None:
    """VP on N(0, I) has no drift, nor has the angle for data of the scale that it is told."""

    class Normal:
        conditioning, sigma_data, calls = "sigma", 1.0, 0

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            self.calls += 1
            return -x / (1 + sigma[:, None] ** 2)

    x = randn(4, 3, dtype=torch.float64)
    for tolerances in ({}, TIGHT):
        state = state_of(Normal(), sde.VP(), x, **tolerances)
        assert torch.allclose(state.x, x, rtol=1e-7)
        assert int(state.evaluations.max()) <= (13 if not tolerances else 25)


def test_an_outlier_costs_the_others_nothing() -> None:
    x = noise(6)
    alone = state_of(mixture, VE, x, rtol=1e-5, atol=1e-5)
    x_beside = torch.cat([x, MEANS[:1] * 0 + torch.tensor([[3e3, 1.0, -8e2]])])
    beside = state_of(mixture, VE, x_beside, rtol=1e-5, atol=1e-5)
    assert torch.equal(beside.evaluations[:6], alone.evaluations)
    assert_same_bytes(beside.x[:6], alone.x)
    assert len(set(beside.evaluations.tolist())) > 1


def test_evaluations_are_those_that_were_made() -> None:
    rows = 0

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return mixture(x, sigma)

    state = state_of(counted, VE, noise(7), rtol=1e-5, atol=1e-5)
    assert rows == int(state.evaluations.sum())  # nobody is asked of who has arrived
    assert state.evaluations.dtype == torch.int64


# ---- identity of samples -------------------------------------------------------------------------


OPTIONS: list[dict[str, Any]] = [
    {},
    {"denoise": True},
    {"clip_denoised": (-0.9, 1.0)},
    {"clamp": (-20.0, 20.0)},
    {"known": 0.5, "mask": MASK},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("process", [VE, sde.VP(), sde.Cosine(), sde.DDPM(BETAS)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bytes_alone_and_among_others(
    process: Process, options: dict[str, Any], dtype: torch.dtype
) -> None:
    given = {"seed": 3, "conditioning": "sigma", "dtype": dtype, **options}
    given |= {"rtol": 1e-4, "atol": 1e-4}
    whole = state_of(mixture, process, shape=(37, 3), **given)
    for choice in ([0], [36], [9, 3], list(range(36, 20, -1))):
        samples = torch.tensor(choice)
        some = state_of(mixture, process, shape=(len(choice), 3), samples=samples, **given)
        assert_same_bytes(some.x, whole.x[samples])
        assert torch.equal(some.evaluations, whole.evaluations[samples])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_same_bytes_of_every_prediction(prediction: str) -> None:
    process = sde.VP()
    x, model = noise(11, process), InTime(process, prediction)
    given: dict[str, Any] = {"conditioning": "time", "prediction": prediction}
    whole = flow(model, process, x, **given)
    for row in (0, 4, 10):
        assert_same_bytes(flow(model, process, x[row : row + 1], **given), whole[row : row + 1])


def test_what_belongs_to_samples_goes_with_them() -> None:
    table = torch.tensor([0.0, 0.7, -1.3], dtype=torch.float64)

    def model(x: Tensor, sigma: Tensor, labels: Tensor, table: Tensor, scales: Any) -> Tensor:
        assert len(table) == 3
        assert len(labels) == len(x) == len(scales["of"])
        shift = table[labels][:, None]
        return mixture((x - shift).to(x.dtype), sigma) * scales["of"][:, None]

    x = noise(8, seed=2)
    labels, scales = torch.arange(8) % 3, torch.ones(8, dtype=torch.float64)
    kwargs = {"labels": labels, "table": table, "scales": {"of": scales}}
    options: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    whole = state_of(model, VE, x, model_kwargs=kwargs, **options)
    assert len(set(whole.evaluations.tolist())) > 2  # so that three are left at some time, as many
    for row in range(8):  # as the table has
        one = {"labels": labels[row : row + 1], "table": table, "scales": {"of": scales[:1]}}
        alone = flow(model, VE, x[row : row + 1], model_kwargs=one, **options)
        assert_same_bytes(alone, whole.x[row : row + 1])


def test_calls_of_a_fixed_size() -> None:
    sizes = set()

    def model(x: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
        sizes.add(len(x))
        assert len(weight) == len(x)
        hidden = torch.tanh(x.float() @ torch.linspace(-1, 1, 96).reshape(3, 32))
        rough = hidden @ torch.linspace(1, -1, 96).reshape(32, 3)
        return mixture(x, sigma) + (rough * weight[:, None] / (1 + sigma[:, None] ** 2)).to(x.dtype)

    x, weight = noise(7), torch.linspace(0.0, 0.1, 7)
    options: dict[str, Any] = {"batch_size": 1}
    whole = flow(model, VE, x, model_kwargs={"weight": weight}, **options)
    assert sizes == {1}
    for row in (0, 6):
        one = slice(row, row + 1)
        alone = flow(model, VE, x[one], model_kwargs={"weight": weight[one]}, **options)
        assert_same_bytes(alone, whole[one])
    sizes.clear()
    flow(model, VE, x, model_kwargs={"weight": weight}, **options | {"batch_size": 4})
    assert sizes == {4}


# ---- resuming and watching -----------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("process", [VE, sde.VP()], ids=repr)
def test_resumed_at_any_step(process: Process, options: dict[str, Any]) -> None:
    given = {"seed": 4, "conditioning": "sigma", "rtol": 1e-4, "atol": 1e-4, **options}
    want = state_of(mixture, process, shape=(9, 3), **given)
    assert want.step > 5
    for stop in range(1, want.step + 1):
        state = state_of(
            mixture,
            process,
            shape=(9, 3),
            callback=lambda step, x, stop=stop: step == stop,
            **given,
        )
        assert isinstance(state, SamplerState)
        assert state.step == stop
        rest = {name: value for name, value in given.items() if name != "seed"}
        got = state_of(mixture, process, state.to("cpu"), **rest)
        assert_same_bytes(got.x, want.x)
        assert torch.equal(got.evaluations, want.evaluations)
        assert got.step == want.step


def test_callbacks_see_the_whole_batch() -> None:
    seen: list[Tensor] = []
    got = flow(
        mixture, sde.VP(), noise(6, sde.VP()), conditioning="sigma", rtol=1e-5, atol=1e-5,
        callback=lambda step, x: seen.append(x.clone()),
    )  # fmt: skip
    assert_same_bytes(seen[-1], got)
    assert all(x.shape == (6, 3) for x in seen)


def test_what_a_callback_writes_goes_into_the_chain() -> None:
    x = noise(4)

    def moved(step: int, x: Tensor) -> None:
        if step == 1:
            x.neg_()

    got = flow(gaussian, VE, x, callback=moved, **TIGHT)
    first: list[Tensor] = []
    flow(gaussian, VE, x, callback=lambda step, x: first.append(x.clone()) or step == 1, **TIGHT)
    assert not torch.allclose(got, flow(gaussian, VE, x, **TIGHT), atol=1e-3)
    spread = (float(VE.sigma(0.0)) ** 2 + VARIANCE) ** 0.5
    assert float(got.abs().max()) < 1 + 10 * spread


# ---- known elements, bounds ----------------------------------------------------------------------


def test_known_elements_move_with_their_noise() -> None:
    """Elements that do not meet: the unknown ones go where they would have gone."""
    options: dict[str, Any] = {"seed": 1, "shape": (5, 3), "dtype": torch.float64, **TIGHT}
    free = flow(gaussian, VE, **options)
    got = flow(gaussian, VE, known=0.25, mask=MASK, **options)
    assert_same_bytes(got[:, 0], torch.full((5,), 0.25, dtype=torch.float64))
    assert torch.allclose(got[:, 1:], free[:, 1:], rtol=0, atol=1e-7)


def test_known_elements_steer_the_others() -> None:
    """The three Gaussians differ in their first element."""
    got = flow(mixture, VE, known=1.0, mask=MASK, seed=1, shape=(40, 3))
    near = (got - MEANS[1].float()).abs().amax(1) < 0.5
    assert int(near.sum()) > 20  # for 13


def test_clipped_data() -> None:
    got = flow(mixture, VE, clip_denoised=(-0.25, 0.25), denoise=True, seed=1, shape=(6, 3))
    assert float(got.abs().max()) <= 0.25 + 1e-6
    options: dict[str, Any] = {"seed": 1, "shape": (6, 3), "dtype": torch.float64, **TIGHT}
    wide = flow(mixture, VE, clip_denoised=(None, 50.0), **options)
    assert torch.allclose(wide, flow(mixture, VE, **options), rtol=0, atol=1e-6)


# ---- networks of all kinds -----------------------------------------------------------------------


def test_a_model_that_uses_its_memory_again() -> None:
    memory = torch.empty(6, 3, dtype=torch.float64)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return memory[: len(x)].copy_(mixture(x, sigma))

    assert_same_bytes(flow(model, VE, noise(6)), flow(mixture, VE, noise(6)))


def test_terms_half_precision_and_writing() -> None:
    def guided(x: Tensor, sigma: Tensor) -> Terms:
        half = sigma.new_full(sigma.shape, 0.5)
        return Terms([(gaussian(x, sigma), half), (gaussian(x, sigma), 0.5)])

    def writes(x: Tensor, sigma: Tensor) -> Tensor:
        score = gaussian(x, sigma)
        x.zero_()
        sigma.mul_(3)
        return score

    x = noise()
    want = flow(gaussian, VE, x)
    assert torch.allclose(flow(guided, VE, x), want, rtol=0, atol=1e-12)
    assert_same_bytes(flow(writes, VE, x), want)
    coarse = flow(lambda x, s: gaussian(x, s).bfloat16(), VE, x.float(), rtol=0.05, atol=0.05)
    assert torch.allclose(coarse, want.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_graph_of_a_step(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    given = {"seed": 4, "shape": (6, 3), **options}
    want = state_of(mixture, VE, **given)
    calls = 0

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert len(x) == 6
        return mixture(x, sigma)

    cuda, _ = fake_graphs.install(monkeypatch)
    got = state_of(model, VE, cuda_graph=True, **given)
    assert_same_bytes(got.x, want.x)
    assert torch.equal(got.evaluations, want.evaluations)
    assert cuda.captures[0].replays == got.step - 2
    assert calls == 1 + 6 * 3 + bool(options.get("denoise"))
    del cuda.captures[:]
    flow(mixture, VE, cuda_graph="auto", **given)
    assert not cuda.captures


# ---- what can't be done --------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "graph"), [(1.0, False), (100.0, False), (100.0, True)])
def test_a_sample_that_fails_fails_alone(
    monkeypatch: pytest.MonkeyPatch, level: float, graph: bool
) -> None:
    """Whom it is that fails, an element says which does not move."""
    x = noise(7)

    def breaks(x: Tensor, sigma: Tensor) -> Tensor:
        bad = (sigma < level) & (x[:, 3] > 0)
        score = torch.nn.functional.pad(mixture(x[:, :3], sigma), (0, 1))
        return score.masked_fill(bad[:, None], torch.nan)

    failed = torch.arange(7) == 4
    x = torch.cat([x, failed[:, None].double()], dim=1)
    if graph:
        fake_graphs.install(monkeypatch)
    want = flow(breaks, VE, x[~failed])
    options: dict[str, Any] = {"sample_offset": 100, "cuda_graph": graph}
    message = r"sample 104 can't meet .* at t = .* in step \d+: the model returns NaN"
    with pytest.raises(RuntimeError, match=message):
        flow(breaks, VE, x, **options)
    with pytest.warns(UserWarning, match="1 of 7 samples"):
        state = state_of(breaks, VE, x, failed="return", **options)
    assert torch.equal(state.failed, failed)
    assert bool(state.x[4].isnan().all())
    assert_same_bytes(state.x[~failed], want)


def test_resumed_beside_a_sample_that_failed() -> None:
    def breaks(x: Tensor, sigma: Tensor) -> Tensor:
        score = torch.nn.functional.pad(mixture(x[:, :3], sigma), (0, 1))
        return score.masked_fill((x[:, 3] > 0)[:, None], torch.nan)

    x = torch.cat([noise(3), torch.tensor([[0.0], [1.0], [0.0]])], dim=1)
    given: dict[str, Any] = {"failed": "return", "rtol": 1e-6, "atol": 1e-6}
    with pytest.warns(UserWarning, match="1 of 3"):
        want = flow(breaks, VE, x, **given)
    with pytest.warns(UserWarning, match="1 of 3"):
        state = state_of(breaks, VE, x, callback=lambda step, x: step == 14, **given)
    assert bool(state.failed[1])
    with pytest.warns(UserWarning, match="1 of 3"):
        assert_same_bytes(flow(breaks, VE, state, **given), want)


def test_tolerances_that_cannot_be_met() -> None:
    def rough(x: Tensor, sigma: Tensor) -> Tensor:
        return (x * 1e8).sin() * 1e6

    with pytest.raises(RuntimeError, match=r"sample \d can't meet .*rtol=0.001.* in step \d+"):
        flow(rough, VE, noise())
    with pytest.raises(RuntimeError, match="in step 9: it has not arrived"):
        flow(mixture, VE, noise(), max_steps=9, **TIGHT)
    with pytest.warns(UserWarning, match="5 of 5 samples"):
        state = state_of(mixture, VE, noise(), max_steps=9, failed="return", **TIGHT)
    assert state.step == 9
    assert bool(state.failed.all())


def test_a_step_that_would_be_too_small() -> None:
    def wall(x: Tensor, sigma: Tensor) -> Tensor:
        """Pushes towards infinity at sigma = 1."""
        distance = (sigma - 1).clamp_min(1e-30)[:, None]
        return x.abs().clamp_min(1) / distance**2

    with pytest.raises(RuntimeError, match=r"s = 1\.?\d*, in step \d+: (its step|the model)"):
        flow(wall, VE, noise())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 10}, "steps must be None"),
        ({"grid": "log"}, "grid must be left out"),
        ({"grid": [1.0, 0.0]}, "grid must be left out"),
        ({"trajectory": [1]}, "trajectory must be None"),
        ({"rtol": -1.0}, "rtol must be"),
        ({"atol": 0.0}, "atol must be positive"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"failed": "ignore"}, "failed must be one of"),
        ({"churn": 1.0}, "churn must be 0"),
        ({"eta": 0.0}, "eta must be 1"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"probability_flow: {message}"):
        flow(gaussian, VE, noise(), **options)


def test_options_of_the_adaptive_solver_are_left_alone_with_others() -> None:
    for name, value in {"rtol": 1e-4, "atol": 1e-4, "max_steps": 5, "failed": "return"}.items():
        with pytest.raises(ValueError, match=f"{name} must be left out"):
            probability_flow(gaussian, VE, noise(), solver="heun", **{name: value})


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    flow(gaussian, VE, noise(), progress=True)
    assert "probability_flow" in capsys.readouterr().err


def test_no_samples() -> None:
    def never(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError

    for shape in ((0, 3), (2, 0)):
        state = state_of(never, VE, shape=shape)
        assert state.x.shape == shape
        assert int(state.evaluations.sum()) == 0
    assert fastscore.samplers.probability_flow is probability_flow
