"""The reverse SDE: the published formulas, exact answers on Gaussian data, and every option."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
from continuous import MEAN, PROCESSES, VARIANCE, InTime, Sees, every_process, gaussian, run
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor

import fastscore
from fastscore import sde
from fastscore.random import Stream, normal
from fastscore.samplers import SamplerState, reverse_sde
from fastscore.scores import Terms
from fastscore.sde import Process

PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral")


def noise(row: int, x: Tensor) -> Tensor:
    return normal(make_key(9, row, x.device), x.shape, dtype=x.dtype, stream=Stream.LANGEVIN)


def published(
    process: Process, predictor: str, t: float, after: float, x: Tensor, z: Tensor
) -> Any:
    """One step in x, as it stands in the papers."""
    alpha, alpha2 = float(process.alpha(t)), float(process.alpha(after))
    sigma, sigma2 = float(process.sigma(t)), float(process.sigma(after))
    score = (alpha * MEAN - x) / (alpha**2 * VARIANCE + sigma**2)
    dt = t - after
    if predictor == "ancestral":  # Ho et al. 2020, for any process: q(x_(k-1) | x_k, x_0)
        step = sigma**2 - (alpha / alpha2) ** 2 * sigma2**2
        x0 = (x + sigma**2 * score) / alpha
        mean = alpha / alpha2 * sigma2**2 / sigma**2 * x + alpha2 * step / sigma**2 * x0
        return mean + math.sqrt(step) * sigma2 / sigma * z
    if predictor == "reverse_diffusion" and isinstance(process, sde.VE):
        step = sigma**2 - sigma2**2
        return x + step * score + math.sqrt(step) * z
    if predictor == "reverse_diffusion" and isinstance(process, sde.VP):
        beta = 1 - (alpha / alpha2) ** 2
        return (2 - math.sqrt(1 - beta)) * x + beta * score + math.sqrt(beta) * z
    f, g2 = float(process.drift(t)), float(process.diffusion_squared(t))
    return x - (f * x - g2 * score) * dt + math.sqrt(g2 * dt) * z


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("conditioning", ["time", "sigma"])
@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: type(p).__name__)
def test_it_is_its_formula(
    device: torch.device, process: Process, conditioning: str, predictor: str
) -> None:
    model = InTime(process) if conditioning == "time" else gaussian
    start = (3.0 * randn(5, 3, dtype=torch.float64)).to(device)
    got = reverse_sde(
        model, process, start, steps=4, predictor=predictor, corrector="annealed", snr=0.2,
        corrector_steps=2, conditioning=conditioning, denoise=False, seed=9,
    )  # fmt: skip
    times = torch.linspace(1, process.t_min, 5, dtype=torch.float64).tolist()
    x = start.clone()
    for step, (t, after) in enumerate(itertools.pairwise(times)):
        x = published(process, predictor, t, after, x, noise(3 * step, x))
        alpha, sigma = process.alpha(after), process.sigma(after)
        size = float(2 * (process.alpha(t) / alpha) ** 2 * (0.2 * sigma) ** 2)
        for j in (1, 2):
            score = (alpha * MEAN - x) / (alpha**2 * VARIANCE + sigma**2)
            x = x + size * score + math.sqrt(2 * size) * noise(3 * step + j, x)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@every_process
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_gaussian_data_keep_mean_and_variance(process: Process, predictor: str) -> None:
    x = reverse_sde(
        InTime(process), process, steps=300, predictor=predictor, shape=(20_000,), seed=0
    )
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.var()) == pytest.approx(VARIANCE, rel=0.07)


def variance_after(process: Process, steps: int) -> float:
    """Of Euler-Maruyama, an affine recursion, on data of N(0, VARIANCE)."""
    times = torch.linspace(process.t_max, process.t_min, steps + 1, dtype=torch.float64)
    variance = float(process.sigma(times[0]) ** 2)
    for t, after in itertools.pairwise(times):
        whole = process.alpha(t) ** 2 * VARIANCE + process.sigma(t) ** 2
        g2 = process.diffusion_squared(t) * (t - after)
        a = 1 - process.drift(t) * (t - after) - g2 / whole
        variance = float(a**2 * variance + g2)
    return variance


@pytest.mark.parametrize("process", [PROCESSES[0], PROCESSES[1]], ids=["VE", "VP"])
def test_the_error_of_few_steps_is_that_of_the_recursion(process: Process) -> None:
    expected = variance_after(process, 20)
    end = float(process.alpha(process.t_min) ** 2 * VARIANCE + process.sigma(process.t_min) ** 2)
    variances = [variance_after(process, n) for n in (400, 800, 1600)]
    changes = [a - b for a, b in itertools.pairwise(variances)]
    assert changes[0] / changes[1] > 1.8  # of first order at least
    x = reverse_sde(
        InTime(process), process, steps=20, predictor="euler_maruyama", denoise=False,
        shape=(60_000,), seed=1,
    )  # fmt: skip
    assert float(x.var()) == pytest.approx(expected, rel=0.03)
    assert abs(expected / end - 1) > 0.03  # which the sampler must not correct in silence


@pytest.mark.parametrize("corrector", ["annealed", "langevin"])
@pytest.mark.parametrize("dimension", [1, 2, 3, 64])
def test_the_corrector_settles_at_the_variance(corrector: str, dimension: int) -> None:
    """On N(0, 1), where a step by the sample's own score would settle at 221 in two dimensions."""
    point = lambda y, s: -y / s[:, None] ** 2  # noqa: E731
    start = randn(24_000 // dimension, dimension)
    x = reverse_sde(
        point, sde.VE(0.999, 1.0), start, steps=1, corrector=corrector, corrector_steps=150,
        denoise=False, seed=0,
    )  # fmt: skip
    assert float(x.var()) == pytest.approx(1.0263, abs=0.04)


def test_norms_of_the_batch_are_those_of_the_papers(device: torch.device) -> None:
    process = sde.VP()
    start = randn(6, 3, dtype=torch.float64).to(device)
    got = reverse_sde(
        InTime(process, "eps"), process, start, steps=3, corrector="langevin", norms="batch",
        denoise=False, seed=9,
    )  # fmt: skip
    times = torch.linspace(1, process.t_min, 4, dtype=torch.float64).tolist()
    x = start.clone()
    for step, (t, after) in enumerate(itertools.pairwise(times)):
        x = published(process, "reverse_diffusion", t, after, x, noise(2 * step, x))
        alpha, sigma = process.alpha(after), process.sigma(after)
        score, z = (alpha * MEAN - x) / (alpha**2 * VARIANCE + sigma**2), noise(2 * step + 1, x)
        ratio = z.norm(dim=1).mean() / score.norm(dim=1).mean()
        size = 2 * (process.alpha(t) / alpha) ** 2 * (0.16 * ratio) ** 2
        x = x + size * score + torch.sqrt(2 * size) * z
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_norms_that_are_given_are_taken() -> None:
    process, start = sde.VE(0.1, 2.0), randn(6, 4)
    how: dict[str, Any] = {"steps": 3, "corrector": "langevin", "denoise": False, "seed": 9}
    after = process.sigma(torch.linspace(1, 0, 4)[1:])
    # With n^2 = D/sigma^2 the steps are those of "annealed".
    given = reverse_sde(gaussian, process, start, norms=4 / after**2, **how)
    annealed = reverse_sde(gaussian, process, start, **{**how, "corrector": "annealed"})
    torch.testing.assert_close(given, annealed)
    pilot = reverse_sde(gaussian, process, start, **how)
    alone = reverse_sde(gaussian, process, start[4:], sample_offset=4, **how)
    assert_same_bytes(alone, pilot[4:])


def test_ancestral_without_noise_is_ddim() -> None:
    from fastscore.samplers import probability_flow

    start, process = randn(5, 3, dtype=torch.float64), sde.VP()
    ddim = reverse_sde(
        InTime(process), process, start, steps=7, predictor="ancestral", eta=0.0, grid="karras"
    )
    euler = probability_flow(InTime(process), process, start, solver="euler", steps=8)
    torch.testing.assert_close(ddim, euler, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_a_sample_is_its_own(device: torch.device, conditioning: str) -> None:
    how: dict[str, Any] = {"conditioning": conditioning, "device": device}
    model = gaussian if conditioning == "sigma" else None
    whole = run(shape=(7, 5), model=model, **how)
    assert_same_bytes(run(shape=(3, 5), model=model, sample_offset=4, **how), whole[4:])
    samples = torch.tensor([5, 0], device=device)
    assert_same_bytes(run(shape=(2, 5), model=model, samples=samples, **how), whole[[5, 0]])
    own = run(shape=(2, 5), model=model, **{**how, "seed": [3, 11]})
    assert_same_bytes(own[1:], run(shape=(1, 5), model=model, **{**how, "seed": [11]}))


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_goes_on_to_the_same_bytes(
    device: torch.device, conditioning: str, stop: int
) -> None:
    how: dict[str, Any] = {"conditioning": conditioning, "model": None, "device": device}
    how["model"] = gaussian if conditioning == "sigma" else None
    whole = run(shape=(4, 3), **how)
    state = run(shape=(4, 3), callback=lambda step, x: step == stop, return_state=True, **how)
    assert isinstance(state, SamplerState)
    assert (state.step, state.evaluations) == (stop, 2 * stop)
    del how["device"]
    assert_same_bytes(run(state, **how), whole)
    assert_same_bytes(run(state, **{**how, "seed": None}), whole)
    end = run(state, return_state=True, **how)
    assert (end.step, end.evaluations) == (7, 13)
    with pytest.raises(ValueError, match="reverse_sde: seed must be that of the run"):
        run(state, **{**how, "seed": 4})
    if conditioning == "sigma":  # whose state is not x
        with pytest.raises(ValueError, match="x must be a SamplerState"):
            run(state.x, start_step=stop, **how)
    else:
        assert_same_bytes(run(state.x, start_step=stop, **how), whole)


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_callbacks_see_and_change_x(device: torch.device, conditioning: str) -> None:
    how: dict[str, Any] = {"conditioning": conditioning, "denoise": False, "device": device}
    how["model"] = gaussian if conditioning == "sigma" else None
    seen: list[Tensor] = []
    x, states = run(
        shape=(4, 3), callback=lambda step, x: seen.append(x.clone()), trajectory=[2, 6], **how
    )
    assert len(seen) == 6
    assert_same_bytes(seen[-1], x)
    assert_same_bytes(states, torch.stack([seen[1], seen[5]]))

    def restart(step: int, x: Tensor) -> None:
        if step == 5:
            x.fill_(1.0)

    changed = run(shape=(4, 3), callback=restart, **how)
    del how["device"]
    last = run(torch.ones(4, 3, device=device), start_step=0, **{**how, "steps": 6})
    assert not torch.equal(changed, x)
    assert not torch.equal(changed, last)
    process = sde.VP()
    t, after = torch.linspace(1, 1e-3, 7, dtype=torch.float64)[-2:].tolist()
    z = [normal(make_key(3, row, device), (4, 3), stream=Stream.LANGEVIN) for row in (10, 11)]
    expected = published(process, "reverse_diffusion", t, after, torch.ones_like(z[0]), z[0])
    alpha, sigma = process.alpha(after), process.sigma(after)
    size = float(2 * (process.alpha(t) / alpha) ** 2 * (0.16 * sigma) ** 2)
    score = (alpha * MEAN - expected) / (alpha**2 * VARIANCE + sigma**2)
    expected = expected + size * score + math.sqrt(2 * size) * z[1]
    torch.testing.assert_close(changed, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_known_elements_have_the_noise_that_the_model_sees(
    device: torch.device, conditioning: str
) -> None:
    process = sde.VP()
    known = torch.full((3,), 5.0, device=device)
    mask = torch.tensor([True, False, True], device=device)
    spreads: list[tuple[float, float]] = []

    def watched(state: Tensor, level: Tensor) -> Tensor:
        t = level if conditioning == "time" else process.time_of(level)
        alpha = process.alpha(t[0]) if conditioning == "time" else torch.ones(())
        sigma = process.sigma(t[0]) if conditioning == "time" else level[0]
        held = state[:, mask].double() - 5.0 * float(alpha)
        spreads.append((float(held.mean() / sigma), float(held.std() / sigma)))
        return gaussian(state, level) if conditioning == "sigma" else InTime(process)(state, level)

    x = run(
        shape=(3000, 3), model=watched, known=known, mask=mask, conditioning=conditioning,
        device=device,
    )  # fmt: skip
    assert bool((x[:, mask] == 5).all())
    assert bool((x[:, 1] != 5).all())
    assert len(spreads) == 13
    for mean, std in spreads:
        assert abs(mean) < 0.08
        assert std == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
def test_the_state_and_the_prediction_are_held_in_the_units_of_data(
    device: torch.device, conditioning: str
) -> None:
    model = gaussian if conditioning == "sigma" else None
    how: dict[str, Any] = {"conditioning": conditioning, "model": model, "device": device}
    highest: list[float] = []

    def watch(step: int, x: Tensor) -> None:
        highest.append(float(x.abs().max()))

    run(shape=(50, 3), clamp=(-0.5, 0.5), callback=watch, **how)
    assert max(highest) <= 0.5 + 1e-6
    assert min(highest[:-1]) == pytest.approx(0.5, abs=1e-6)
    x = run(shape=(500, 3), clip_denoised=(0.6, 0.8), **how)
    assert float(x.min()) >= 0.6 - 1e-6
    assert float(x.max()) <= 0.8 + 1e-6
    free = run(shape=(500, 3), **how)
    loose = run(shape=(500, 3), clip_denoised=(-100.0, 100.0), **how)
    torch.testing.assert_close(loose, free, rtol=1e-6, atol=1e-6)


def test_a_score_of_two_terms(device: torch.device) -> None:
    def halves(y: Tensor, s: Tensor) -> Terms:
        score = gaussian(y, s)
        weight = torch.full((len(y),), -0.25, device=y.device)
        return Terms([(score * 2, 0.625), (score, weight)])

    how: dict[str, Any] = {"conditioning": "sigma", "device": device}
    one, two = run(shape=(4, 3), model=gaussian, **how), run(shape=(4, 3), model=halves, **how)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    batches = run(shape=(4, 3), model=halves, batch_size=3, **how)
    torch.testing.assert_close(one, batches, rtol=1e-5, atol=1e-6)
    clipped = [
        run(shape=(4, 3), model=model, clip_denoised=(0.0, 1.0), **how)
        for model in (gaussian, halves)
    ]
    torch.testing.assert_close(*clipped, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", ["annealed", "reverse", "heun", "dpmpp_2m", "rk4", "rk45"])
def test_a_score_of_two_terms_on_some_levels_alone(device: torch.device, sampler: str) -> None:
    """The second term of one call is none of the next one's."""

    def interval(y: Tensor, s: Tensor) -> Terms | Tensor:
        score, level = gaussian(y, s), float(s.min())
        if level > 3:
            return score
        weight = 0.5 if level < 0.3 else torch.full((len(y),), 0.5, device=y.device)
        return Terms([(2 * score, 0.25), (score, weight)]) if level < 1 else Terms([(score, 1.0)])

    def drawn(model: Any) -> Tensor:
        how: dict[str, Any] = {"shape": (4, 3), "seed": 0, "device": device}
        if sampler == "annealed":
            return fastscore.annealed_langevin(model, [10.0, 4.0, 2.0, 0.5, 0.1], **how)
        process = sde.VE(0.05, 10.0)
        if sampler == "reverse":
            return reverse_sde(model, process, steps=12, corrector="annealed", **how)
        if sampler == "rk45":
            return fastscore.probability_flow(model, process, solver=sampler, **how)
        return fastscore.probability_flow(model, process, solver=sampler, steps=8, **how)

    torch.testing.assert_close(drawn(interval), drawn(gaussian), rtol=1e-4, atol=1e-4)


def test_batches_and_half_precision(device: torch.device) -> None:
    whole = run(shape=(5, 3), device=device)
    assert_same_bytes(run(shape=(5, 3), batch_size=2, device=device), whole)
    net = Sees(torch.nn.Linear(3, 3)).to(device, torch.bfloat16)
    net.sigma_range = (0.011, 150.0)  # type: ignore[assignment]
    x = run(shape=(5, 3), model=net, conditioning="sigma", device=device)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, run(shape=(5, 3), model=gaussian, conditioning="sigma",
                                      device=device), atol=0.3, rtol=0.3)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"predictor": "heun"}, ValueError, "predictor must be one of 'euler_maruyama'"),
        ({"corrector": "mala"}, ValueError, "corrector must be one of 'annealed', 'langevin'"),
        ({"corrector_steps": 0}, ValueError, "corrector_steps must be at least 1"),
        ({"snr": 0.0}, ValueError, "snr must be positive"),
        ({"eta": 0.5}, ValueError, "eta must be 1 but with predictor"),
        ({"eta": 2.0, "predictor": "ancestral"}, ValueError, "eta must be from 0 to 1"),
        ({"t_start": 0.5}, ValueError, "x must be given, the state at t_start=0.5"),
        ({"t_start": 1.5}, ValueError, "t_start must be at most 1"),
        ({"t_start": 1e-4, "x": torch.zeros(4, 3)}, ValueError, "later than the end of sampling"),
        ({"norms": "batch"}, ValueError, "norms must be"),
        ({"corrector": None, "norms": "batch"}, ValueError, "norms must be"),
        (
            {"corrector": None, "corrector_steps": 3},
            ValueError,
            "corrector_steps must be 1 without",
        ),
        (
            {"corrector": "langevin", "init_mean": torch.zeros(4, 3)},
            ValueError,
            "each sample has its own model_kwargs or init_mean",
        ),
        (
            {"corrector": "langevin", "model": lambda x, s: 0 * x},
            ValueError,
            "norms are positive and finite",
        ),
        ({"norms": torch.ones(2), "corrector": "langevin"}, ValueError, "one for each step"),
        ({"time_scale": 0.0}, ValueError, "time_scale must be positive"),
        ({"sigmas": [2.0, 1.0]}, ValueError, "sigmas must be left out but"),
        ({"clip_denoised": (1.0, 0.0)}, ValueError, "clip_denoised must be a pair"),
        ({"conditioning": "none"}, ValueError, "conditioning must be"),
        ({"samples": torch.tensor([1, 0, 2, 1])}, ValueError, "samples must be numbers of which"),
        ({"process": torch.tensor([2.0, 1.0])}, (TypeError, ValueError), "sde must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"shape": (4, 3), **arguments}
    if "x" in arguments:
        del arguments["shape"]
    with pytest.raises(error, match=f"reverse_sde: .*{message}"):
        run(**arguments)


def test_a_pilot_of_a_run_from_part_way_measures_the_samples_of_its_level() -> None:
    """Not noise alone, whose scores are far larger where the data are far from 0."""
    process, found = sde.VE(0.01, 50.0), []

    def far(y: Tensor, s: Tensor) -> Tensor:
        found.append((float(s[0]), float((5 - y).square().mean() / (1 + s[0] ** 2))))
        return (5 - y) / (1 + s[:, None] ** 2)

    start = process.time_of(0.7)
    x = 5 + randn(8, 64)
    reverse_sde(
        far, process, x, t_start=float(start), steps=10, corrector="langevin", seed=0
    )  # fmt: skip
    pilot = [ratio for s, ratio in found[: len(found) - 21] if s <= 0.701]
    assert len(pilot) == 11
    assert all(0.5 < ratio < 1.5 for ratio in pilot)  # of noise alone, 12 to 17
    found.clear()
    reverse_sde(
        far, process, x, t_start=float(start), steps=10, corrector="langevin", seed=0,
        sigma_range=(0.01, 20.0),
    )  # fmt: skip
    assert max(s for s, _ in found) == pytest.approx(20, rel=1e-6)  # the pilot's, too


def test_a_state_goes_on_in_its_own_run() -> None:
    how: dict[str, Any] = {"steps": 6, "shape": (3, 2), "seed": 0, "return_state": True}
    state = reverse_sde(gaussian, sde.VE(), callback=lambda step, x: step == 2, **how)
    loaded = io.BytesIO()
    torch.save(state, loaded)
    loaded.seek(0)
    again = torch.load(loaded)  # weights_only, as torch has it
    whole = reverse_sde(gaussian, sde.VE(), **how)
    assert torch.equal(reverse_sde(gaussian, sde.VE(), again, steps=6), whole.x)
    for other in ({"steps": 7}, {"steps": 6, "predictor": "ancestral"}):
        with pytest.raises(ValueError, match=r"^reverse_sde: x must be the state of a run of"):
            reverse_sde(gaussian, sde.VE(), state, **other)
    with pytest.raises(ValueError, match=r"^probability_flow: x must be the state of a run of"):
        fastscore.probability_flow(gaussian, sde.VE(), state, solver="rk45")
    for solver in ("rk45", "heun"):
        how = {"solver": solver, "shape": (3, 2), "seed": 0, "return_state": True}
        state = fastscore.probability_flow(gaussian, sde.VE(), **how)
        with pytest.raises(ValueError, match=r"encode=True.*got one of .*encode=False"):
            fastscore.probability_flow(gaussian, sde.VE(), state, solver=solver, encode=True)
