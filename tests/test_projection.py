"""Projection to a measurement in the reverse SDE, and the intervals gone through several times."""

from __future__ import annotations

import math
from typing import Any

import fake_graphs
import pytest
import torch
from continuous import PROCESSES, gaussian, run
from helpers import assert_same_bytes, make_key, randn
from samplers import gaussian_score
from torch import Tensor

from fastscore import operators, reverse_sde, sde
from fastscore.random import Stream, normal
from fastscore.samplers import SamplerState, _measured
from fastscore.sde import Process

MASK = torch.tensor([True, False, True])


class Matrix:
    """Of vectors: any matrix, with the pseudo-inverse."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix.double()
        self.inverse = torch.linalg.pinv(self.matrix)

    def A(self, x: Tensor) -> Tensor:
        return (x.double() @ self.matrix.mT).to(x.dtype)

    def A_dagger(self, y: Tensor) -> Tensor:
        return (y.double() @ self.inverse.mT).to(y.dtype)


class Chosen:
    """Elements, elementwise, so that bytes don't hang on the batch."""

    def A(self, x: Tensor) -> Tensor:
        return x[:, MASK]

    def A_dagger(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), 3)
        x[:, MASK] = y
        return x


class Fourier:
    """Complex: the first two of three frequencies of four real numbers."""

    def A(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x, norm="ortho")[:, :2]

    def A_dagger(self, y: Tensor) -> Tensor:
        return torch.fft.irfft(torch.nn.functional.pad(y, (0, 1)), n=4, norm="ortho")


GENERAL = Matrix(torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]]))
Y = torch.tensor([[1.5, -0.5]])


def project(model: Any = gaussian_score, process: Process | None = None, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "shape": (4, 3), "steps": 5, "seed": 1, "operator": Chosen(), "measurement": Y,
        "conditioning": "sigma",
    }  # fmt: skip
    if "x" in options:
        defaults["shape"] = None
    return reverse_sde(model, process or sde.VE(0.05, 5.0), **{**defaults, **options})


EVERY: list[dict[str, Any]] = [
    {},
    {"predictor": "ancestral", "eta": 0.0},
    {"corrector": "annealed", "corrector_steps": 2},
    {"corrector": "langevin"},
    {"clip_denoised": (-2.0, 2.0)},
    {"resamplings": 3, "corrector": "annealed"},
    {"denoise": False},
]


@pytest.mark.parametrize("options", EVERY, ids=str)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("conditioning", ["sigma", "time"])
def test_with_the_same_noise_it_is_inpainting(
    process: Process, conditioning: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elements chosen, lambda = 1, and the noise of the step before in place of its own."""
    model = gaussian if conditioning == "sigma" else None
    how = {"conditioning": conditioning, "shape": (5, 3), "corrector": None, **options}
    known = torch.tensor([1.5, math.nan, -0.5])
    held = run(None, model, process, known=known, mask=MASK, dtype=torch.float64, **how)

    def of_the_row(key: Tensor, shape: Any, **named: Any) -> Tensor:
        draw = int(key[..., 1])
        named["stream"] = Stream.LANGEVIN if draw else Stream.INIT
        return normal(make_key(int(key[0]), max(draw - 1, 0)), shape, **named)

    monkeypatch.setattr(_measured.random, "normal", of_the_row)
    operator = {"operator": Chosen(), "measurement": Y.double()}
    moved = run(None, model, process, dtype=torch.float64, **operator, **how)
    torch.testing.assert_close(moved, held, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("process", [PROCESSES[0], PROCESSES[1]], ids=lambda p: type(p).__name__)
def test_it_is_the_formula(process: Process, strength: float, device: torch.device) -> None:
    """In x, with noise of a stream of its own, before each call and at the end."""
    seen: list[Tensor] = []
    told: list[float] = []

    def watched(y: Tensor, s: Tensor) -> Tensor:
        told.append(float(s[0]))
        seen.append(y.double().cpu())
        return gaussian(y, s)

    how: dict[str, Any] = {"operator": GENERAL, "measurement": Y.to(device), "shape": (4, 3)}
    GENERAL.matrix, GENERAL.inverse = GENERAL.matrix.to(device), GENERAL.inverse.to(device)
    how |= {"projection": strength, "predictor": "ancestral", "seed": 3, "steps": 3}
    got = reverse_sde(watched, process, conditioning="sigma", device=device, **how)

    def moved(y: Tensor, draw: int, s: float) -> Tensor:
        z = normal(make_key(3, draw), (4, 3), stream=Stream.MEASURE).double()
        target = Y.double() + s * GENERAL.A(z.to(device)).cpu()
        back = GENERAL.A_dagger((target - GENERAL.A(y.to(device)).cpu()).to(device)).cpu()
        return y + strength * back

    y = told[0] * normal(make_key(3), (4, 3), stream=Stream.INIT).double()
    y = moved(y, 0, told[0])
    for row, s in enumerate(told):
        torch.testing.assert_close(seen[row], y, rtol=1e-4, atol=1e-4)
        after = told[row + 1] if row + 1 < len(told) else 0.0
        score = gaussian(y, torch.full((4,), s).double())
        spread = after * math.sqrt(1 - (after / s) ** 2)
        z = normal(make_key(3, row), (4, 3), stream=Stream.LANGEVIN).double()
        y = moved(y + (s**2 - after**2) * score + spread * z, row + 1, after)
    torch.testing.assert_close(got.double().cpu(), y, rtol=1e-4, atol=1e-4)
    GENERAL.matrix, GENERAL.inverse = GENERAL.matrix.cpu(), GENERAL.inverse.cpu()


@pytest.mark.parametrize("resamplings", [1, 2])
@pytest.mark.parametrize("process", [PROCESSES[0], PROCESSES[1]], ids=lambda p: type(p).__name__)
def test_the_noise_of_the_measurement_is_of_the_level_that_is_told(
    process: Process, resamplings: int
) -> None:
    covariance = GENERAL.matrix @ GENERAL.matrix.mT
    last: list[Tensor] = []

    def watched(y: Tensor, s: Tensor) -> Tensor:
        off = (GENERAL.A(y.double()) - Y) / s.double()[:, None]
        assert float(off.mean(0).abs().max()) < 5 * math.sqrt(5.25 / 4000)
        torch.testing.assert_close(off.mT @ off / 4000, covariance, rtol=0.15, atol=0.15)
        if last:  # fresh noise
            assert float((off.mT @ last[0] / 4000).abs().max()) < 0.5
        last[:] = [off]
        return gaussian(y, s)

    how: dict[str, Any] = {"shape": (4000, 3), "corrector": "annealed", "resamplings": resamplings}
    x = project(watched, process, operator=GENERAL, **how)
    torch.testing.assert_close(GENERAL.A(x), Y.expand(4000, 2), rtol=1e-5, atol=1e-5)
    assert float(x.var(0).min()) > 0.01


def test_it_is_exact_where_what_is_measured_says_nothing_of_the_rest() -> None:
    """N(0, I): given A x = y, mean A_dagger y, and the identity where A sees nothing."""
    how = {"shape": (6000, 3), "steps": 200, "grid": "karras", "predictor": "ancestral"}
    x = project(process=sde.VE(0.01, 20.0), operator=GENERAL, **how).double()
    mean = GENERAL.A_dagger(Y.double())[0]
    covariance = torch.eye(3).double() - GENERAL.inverse @ GENERAL.matrix
    assert float((x.mean(0) - mean).abs().max()) < 0.06
    assert float((x.T.cov() - covariance).abs().max()) < 0.06


def test_complex_measurements() -> None:
    y = Fourier().A(torch.tensor([[1.0, 0.0, -2.0, 0.5]]))
    x = project(shape=(7, 4), operator=Fourier(), measurement=y)
    assert x.dtype == torch.float32
    torch.testing.assert_close(Fourier().A(x), y.expand(7, 2), rtol=1e-5, atol=1e-5)
    assert float(x.var(0).max()) > 1e-3


def test_what_the_sampler_is_given_is_not_written_to() -> None:
    class Writes(Chosen):
        def A(self, x: Tensor) -> Tensor:
            y = x[:, MASK]
            x.zero_()
            return y

        def A_dagger(self, y: Tensor) -> Tensor:
            x = super().A_dagger(y)
            y.zero_()
            return x

    start, y = randn(4, 3), randn(4, 2)
    copies = start.clone(), y.clone()
    got = project(x=start, operator=Writes(), measurement=y)
    assert_same_bytes(got, project(x=start, measurement=y))
    assert_same_bytes(start, copies[0])
    assert_same_bytes(y, copies[1])
    assert_same_bytes(got[:, MASK], y)


def test_autocast_leaves_the_operator_alone() -> None:
    class Product(Matrix):
        def A(self, x: Tensor) -> Tensor:
            return x @ self.matrix.mT.to(x.dtype)

        def A_dagger(self, y: Tensor) -> Tensor:
            return y @ self.inverse.mT.to(y.dtype)

    operator = Product(GENERAL.matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for options in ({}, {"autocast": torch.bfloat16}):
            x = project(operator=operator, **options)
            torch.testing.assert_close(GENERAL.A(x), Y.expand(4, 2), rtol=1e-5, atol=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": [3, 1, 4, 5]},
    {"seed": 1, "samples": torch.tensor([7, 0, 9, 2])},
    {"seed": 1, "batch_size": 3},
    {"seed": 1, "projection": 0.4, "corrector": "annealed", "resamplings": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_sample_is_the_same_alone_and_among_others(options: dict[str, Any]) -> None:
    y = randn(4, 2)
    together = project(measurement=y, **options)
    for i in range(4):
        own = {**options, "samples": options.get("samples", torch.arange(4))[i : i + 1]}
        if isinstance(options["seed"], list):
            own |= {"seed": options["seed"][i : i + 1], "samples": None}
        alone = project(shape=(1, 3), measurement=y[i : i + 1], **own)
        assert_same_bytes(alone, together[i : i + 1])
    one = project(measurement=y[:1], **options)
    assert_same_bytes(one, project(measurement=y[:1].expand(4, 2), **options))
    assert_same_bytes(one, project(measurement=y[0], **options))
    shard = project(shape=(2, 3), measurement=y[2:], seed=1, sample_offset=2)
    assert_same_bytes(shard, project(measurement=y, seed=1)[2:])


@pytest.mark.parametrize("options", [OPTIONS[-1], {"process": sde.VP(), "resamplings": 3}])
def test_a_run_is_stopped_and_resumed(options: dict[str, Any]) -> None:
    how = {"return_state": True, **options}
    want, states = project(trajectory=[1, 2, 3, 4, 5], **how)
    each = options["resamplings"] * (2 if "corrector" in options else 1)
    assert (want.step, want.evaluations) == (6, 5 * each + 1)
    assert states.shape == (5, 4, 3)
    for stop in (1, 4, 5):
        seen: list[int] = []

        def watch(step: int, x: Tensor, seen: list[int] = seen, stop: int = stop) -> bool:
            seen.append(step)
            assert_same_bytes(x, states[step - 1])
            return step == stop

        half = project(callback=watch, **how)
        assert seen == list(range(1, stop + 1))
        assert isinstance(half, SamplerState)
        assert (half.step, half.evaluations) == (stop, stop * each)
        rest = project(x=half, **{**how, "seed": None})
        assert_same_bytes(rest.x, want.x)
    for other in ({"resamplings": 5}, {"projection": 0.9}, {"operator": None, "measurement": None}):
        if "operator" in other:
            other["projection"] = 1.0
        with pytest.raises(ValueError, match="the state of a run of"):
            project(x=half, **{**how, "seed": None, **other})


@pytest.mark.parametrize("options", [o for o in OPTIONS if "batch_size" not in o], ids=str)
def test_the_captured_step_is_the_step_of_the_loop(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = project(operator=GENERAL, **options)
    cuda, _ = fake_graphs.install(monkeypatch)
    got = project(operator=GENERAL, **options)
    assert_same_bytes(got, want)
    assert cuda.captures[0].replays == 5 * (4 if "resamplings" in options else 1) + 1 - 2


class Affine(Chosen):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x) + 1


class WithoutInverse:
    def A(self, x: Tensor) -> Tensor:
        return x


class Backwards(Chosen):
    def A_dagger(self, y: Tensor) -> Tensor:
        return y


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"measurement": None}, ValueError, "measurement must be given together with operator"),
    ({"operator": None}, ValueError, "operator must be given together with measurement"),
    ({"operator": "A"}, TypeError, "operator must be .*A_dagger.* got str without A"),
    ({"operator": WithoutInverse()}, TypeError, "got WithoutInverse without A_dagger"),
    ({"operator": Affine()}, ValueError, "operator must be linear"),
    ({"operator": Backwards()}, ValueError, r"A_dagger leads back .*\(4, 3\).*\(4, 2\)"),
    ({"measurement": [1.0]}, TypeError, "measurement must be a torch.Tensor"),
    (
        {"measurement": torch.ones(1, 3)},
        ValueError,
        r"of shape \(4, 2\) or \(2,\).*\(4, 3\).*\(1, 3\)",
    ),
    ({"measurement": torch.ones(2, 2)}, ValueError, r"measurement must be of shape \(4, 2\)"),
    ({"measurement": torch.ones(3)}, ValueError, r"measurement must be of shape \(4, 2\)"),
    ({"measurement": Y + 1j}, ValueError, "measurement must be real, as Chosen.A gives"),
    ({"measurement": Y / 0}, ValueError, "measurement must be finite"),
    ({"projection": 0.0}, ValueError, "projection must be positive"),
    ({"projection": 1.5}, ValueError, "projection must be above 0 and at most 1, got 1.5"),
    ({"projection": "all"}, TypeError, "projection must be"),
    (
        {"operator": None, "measurement": None, "projection": 0.5},
        ValueError,
        "projection must be 1 without",
    ),
    ({"known": 1.0, "mask": MASK}, ValueError, "known must be None with an operator"),
    ({"resamplings": 0}, ValueError, "resamplings must be at least 1"),
    ({"resamplings": 2.0}, TypeError, "resamplings must be an integer"),
    (
        {"corrector": "langevin", "norms": "batch", "resamplings": 2},
        ValueError,
        "resamplings must be 1 with norms",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    def never(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("the model was called before the arguments were checked")

    with pytest.raises(error, match=f"^reverse_sde: .*{message}"):
        project(never, **options)


def test_a_measurement_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="measurement must be on cpu"):
        project(measurement=Y.to("meta"))
    with pytest.raises(ValueError, match="measurement must be complex, as Fourier"):
        project(shape=(4, 4), operator=Fourier(), measurement=torch.ones(2))


def test_no_samples() -> None:
    assert project(shape=(0, 3), measurement=torch.ones(0, 2)).shape == (0, 3)
    assert project(shape=(0, 3), resamplings=3).shape == (0, 3)


# ---- resampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [PROCESSES[0], PROCESSES[1]], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("conditioning", ["sigma", "time"])
def test_an_interval_is_gone_through_several_times(process: Process, conditioning: str) -> None:
    """By hand, in x: down, and up again by the process itself, whose noise is in the same draw."""
    told: list[float] = []

    def watched(state: Tensor, level: Tensor) -> Tensor:
        told.append(float(level[0]))
        return torch.zeros_like(state)  # the state is its noise, and what the steps make of it

    how: dict[str, Any] = {"conditioning": conditioning, "steps": 2}
    how |= {"predictor": "ancestral", "resamplings": 3, "denoise": False}
    x = run(torch.zeros(4, 3, dtype=torch.float64), watched, process, corrector=None, **how)
    levels = told if conditioning == "sigma" else process.noise_level(torch.tensor(told)).tolist()
    assert levels[:3] == pytest.approx([levels[0]] * 3)
    assert levels[3:] == pytest.approx([levels[3]] * 3)
    first, second, last = levels[0], levels[3], float(process.noise_level(process.t_min))
    y = torch.zeros(4, 3, dtype=torch.float64)
    for row in range(6):
        at, to = (first, second) if row < 3 else (second, last)
        variance = to**2 * (1 - (to / at) ** 2) + (at**2 - to**2 if row % 3 < 2 else 0)
        z = normal(make_key(3, row), (4, 3), stream=Stream.LANGEVIN).double()
        y = y + math.sqrt(variance) * z
    alpha = float(process.alpha(process.t_min))
    torch.testing.assert_close(x, alpha * y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("corrector", [None, "annealed", "langevin"])
def test_the_law_stays_right_with_nothing_known(corrector: str | None) -> None:
    how = {"steps": 60, "grid": "karras", "shape": (6000, 2), "corrector": corrector, "seed": 0}
    for process in (sde.VE(0.01, 20.0), sde.VP()):
        x = reverse_sde(gaussian, process, conditioning="sigma", resamplings=4, **how)
        assert abs(float(x.mean()) - 0.7) < 0.03
        assert abs(float(x.std()) - 0.5) < 0.03


# ---- the library's operators ---------------------------------------------------------------------


def some_operators() -> dict[str, Any]:
    picture = torch.arange(16).reshape(1, 4, 4) % 3 == 0
    return {
        "mask": operators.Mask(picture),
        "average": operators.AveragePool(2),
        "subsample": operators.Subsample(2),
        "Fourier": operators.MaskedFourier(torch.ones(4, 4, dtype=torch.bool)),
    }


@pytest.mark.parametrize("name", some_operators())
def test_the_operators_of_the_library(name: str) -> None:
    operator, truth = some_operators()[name], randn(1, 1, 4, 4)
    y = operator.A(truth)
    x = project(shape=(3, 1, 4, 4), operator=operator, measurement=y, corrector="annealed")
    torch.testing.assert_close(operator.A(x), y.expand(3, *y.shape[1:]), rtol=1e-4, atol=1e-4)
