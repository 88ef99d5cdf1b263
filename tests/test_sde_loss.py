"""Denoising score matching in continuous time: the formula in plain PyTorch, and exact answers."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, make_key, randn
from memory import peak_bytes
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import fastscore
from fastscore import SDELoss, sde, sde_loss
from fastscore.losses._times import Times
from fastscore.random import Stream, normal

BETAS = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
PROCESSES = [
    sde.VE(),
    sde.VP(),
    sde.SubVP(),
    sde.Cosine(),
    sde.DDPM(BETAS),
    sde.RectifiedFlow(),
]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)

# Every prediction with every way of calling that it goes with; index counts sigmas or betas.
CALLS = [
    *[(p, c) for p in ("score", "eps", "x0") for c in ("time", "sigma", "log_sigma")],
    *[("v", c) for c in ("time", "sigma")],
    ("velocity", "time"),
    *[(p, c) for p in ("score", "eps", "x0") for c in ("index of sigmas", "index of betas")],
    ("v", "index of betas"),
    ("velocity", "index of betas"),
]
LEVELS = [40.0, 8.0, 1.0, 0.1]
D = 3


def column(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.dim() - 1))


def spread_times(process: sde.Process, count: int) -> Tensor:
    return torch.linspace(max(process.t_eps, 0.01), process.t_max, count, dtype=torch.float64)


def options_of(call: str) -> dict[str, Any]:
    if not call.startswith("index"):
        return {"conditioning": call}
    levels = {"sigmas": LEVELS} if call.endswith("sigmas") else {"betas": BETAS}
    return {"conditioning": "index", **levels}


LAMBDAS = {
    "sigma2": lambda process, t: process.sigma(t) ** 2,
    "likelihood": lambda process, t: process.diffusion_squared(t),
    "edm": lambda process, t: (
        process.alpha(t) ** 2 * process.noise_level(t) ** 2 * (process.noise_level(t) ** 2 + 9) / 9
    ),
    "min_snr": lambda process, t: (
        process.sigma(t) ** 2 * torch.minimum(torch.ones_like(t), 2 * process.noise_level(t) ** 2)
    ),
}


# ---- values --------------------------------------------------------------------------------------


@each_process
@pytest.mark.parametrize(("prediction", "call"), CALLS)
def test_value_and_gradient_against_the_formula(
    process: sde.Process, prediction: str, call: str
) -> None:
    against_the_formula(torch.device("cpu"), process, prediction, call)


@pytest.mark.parametrize("prediction", ["score", "eps", "x0", "v", "velocity"])
def test_the_same_on_every_side(device: torch.device, prediction: str) -> None:
    against_the_formula(device, sde.VP(), prediction, "time")


def against_the_formula(
    device: torch.device, process: sde.Process, prediction: str, call: str
) -> None:
    """With the noise written down, and each convention as its own paper has it, in float64."""
    torch.manual_seed(0)
    x = randn(6, D, 2, dtype=torch.float64).to(device)
    t = spread_times(process, 6).to(device)
    layer = nn.Linear(2, 2, dtype=torch.float64, device=device)
    seen: list[Tensor] = []

    def model(x: Tensor, condition: Tensor) -> Tensor:
        seen[:] = [x, condition]
        return layer(x)

    alpha, sigma, s = process.alpha(t), process.sigma(t), process.noise_level(t)
    n = (alpha**2 + sigma**2).sqrt()
    z = normal(make_key(5, 0, device), x.shape, stream=Stream.PERTURB, sample_offset=2).double()
    perturbed = column(alpha, x) * x + column(sigma, x) * z
    by = torch.ones_like(alpha)  # the network sees x_t / by
    if call in ("sigma", "log_sigma", "index of sigmas"):
        by = alpha
    if prediction == "v" or (call == "index of betas" and prediction != "velocity"):
        by = n
    output = layer(perturbed / column(by, x))
    noise = {  # that the network predicts, from p x_0 + q z = output and alpha x_0 + sigma z = x_t
        "score": -column(sigma / by, x) * output,
        "eps": output,
        "x0": (perturbed - column(alpha, x) * output) / column(sigma, x),
        "v": column(alpha / n, x) * output + column(sigma / n**2, x) * perturbed,
    }.get(prediction)
    if noise is None:
        d_alpha, d_sigma = process.alpha_rate(t), process.sigma_rate(t)
        rest = output - column(d_alpha / alpha, x) * perturbed
        noise = rest / column(d_sigma - d_alpha / alpha * sigma, x)

    for weighting, of in LAMBDAS.items():
        weight = of(process, t) / sigma**2
        want = weight / 2 * (noise - z).square().flatten(1).sum(dim=1)
        options = {**options_of(call), "weighting": weighting, "sigma_data": 3.0, "gamma": 2.0}
        draws = {"t": t, "seed": 5, "sample_offset": 2}
        loss_fn = SDELoss(process, prediction=prediction, reduction="none", **options).to(device)
        got = loss_fn(model, x, **draws)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        gradients = [
            torch.autograd.grad(v.sum(), layer.weight, retain_graph=True)[0] for v in (got, want)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)

    torch.testing.assert_close(seen[0], perturbed / column(by, x), rtol=1e-12, atol=1e-12)
    told = {"time": t, "sigma": s, "log_sigma": s.log()}.get(call)
    if told is None:
        levels = torch.tensor(LEVELS).double()
        if call == "index of betas":
            levels = sde.DDPM(BETAS).noise_level(torch.linspace(0, 1, 100).double())
        told = (s.cpu().log()[:, None] - levels.log()).abs().argmin(1).to(device)
    torch.testing.assert_close(seen[1], told, rtol=1e-12, atol=1e-12)


@each_process
@pytest.mark.parametrize("prediction", ["score", "eps", "x0", "v", "velocity"])
def test_closed_form_of_the_exact_model(process: sde.Process, prediction: str) -> None:
    """Data from N(0, v I): lambda d/2 alpha^2 v / (sigma^2 (alpha^2 v + sigma^2))."""
    v, count = 4.0, 20_000
    x = math.sqrt(v) * normal((count, D), seed=0, dtype=torch.float64)
    for time in (0.05, 0.3, 0.9):
        t = torch.full((count,), time, dtype=torch.float64)
        alpha, sigma = process.alpha(time), process.sigma(time)
        variance = alpha**2 * v + sigma**2
        rates = process.alpha_rate(time), process.sigma_rate(time)

        a, b = sde.conversions.coefficients("score", prediction, alpha, sigma, *rates)
        by = (alpha**2 + sigma**2).sqrt() if prediction == "v" else 1
        scale = (b - a / variance) * by

        def model(x: Tensor, t: Tensor, scale: Tensor = scale) -> Tensor:
            return scale * x

        for weighting in ("sigma2", "likelihood"):
            options = {"prediction": prediction, "conditioning": "time", "weighting": weighting}
            losses = sde_loss(model, x, process, t=t, seed=1, reduction="none", **options)
            lam = LAMBDAS[weighting](process, torch.tensor(time).double())
            expected = lam * D / 2 * alpha**2 * v / (sigma**2 * variance)
            error = float((losses.mean() - expected).abs())
            assert error < 5 * float(losses.std()) / math.sqrt(count)


@each_process
@pytest.mark.parametrize(("prediction", "call"), CALLS)
def test_a_network_is_called_in_training_as_it_is_as_a_score(
    process: sde.Process, prediction: str, call: str
) -> None:
    """So that what samples with it calls it with what it was trained with."""
    torch.manual_seed(0)
    x, t = randn(6, D, dtype=torch.float64), spread_times(process, 6)
    layer = nn.Linear(D, D, dtype=torch.float64)
    options = {"prediction": prediction, **options_of(call)}

    def net(x: Tensor, condition: Tensor) -> Tensor:
        return layer(x) + 0.01 * condition[:, None]

    want = sde_loss(net, x, process, t=t, seed=0, reduction="none", **options)
    score = sde.ProcessScore(net, process, **options)
    got = sde_loss(score, x, process, t=t, seed=0, reduction="none")
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def test_on_the_levels_of_dsm_loss_it_is_dsm_loss() -> None:
    sigmas = torch.tensor(LEVELS, dtype=torch.float64)
    levels = torch.tensor([0, 1, 2, 3, 2])
    x, process = randn(5, 7, dtype=torch.float64), sde.VE(0.01, 50.0)
    t = process.time_of(sigmas)[levels]
    for prediction in ("score", "eps", "x0"):

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            return -x / (1 + sigma[:, None] ** 2)

        want = fastscore.dsm_loss(model, x, sigmas, levels=levels, seed=3, prediction=prediction)
        got = sde_loss(model, x, process, t=t, seed=3, prediction=prediction)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


def test_a_function_of_the_times_is_a_weighting() -> None:
    x, process, t = randn(5, 7), sde.VP(), torch.linspace(0.1, 1, 5)
    want = sde_loss(lambda x, t: -x, x, process, t=t, seed=0, reduction="none")
    loss = SDELoss(process, weighting=lambda t: 3 * process.sigma(t) ** 2, reduction="none")
    torch.testing.assert_close(loss(lambda x, t: -x, x, t=t, seed=0), 3 * want)


def test_the_squared_error_of_what_the_network_returns() -> None:
    """Flow matching: 1/2 |v - (z - x_0)|^2."""
    x, t = randn(5, 7, dtype=torch.float64), torch.linspace(0.1, 0.999, 5).double()
    z = normal(make_key(0), x.shape, stream=Stream.PERTURB).double()
    options: dict[str, Any] = {"prediction": "velocity", "weighting": "output"}
    got = sde_loss(lambda x, t: 2 * x, x, sde.RectifiedFlow(), t=t, seed=0, **options)
    error = 2 * ((1 - t)[:, None] * x + t[:, None] * z) - (z - x)
    torch.testing.assert_close(got, error.square().sum(1).mean() / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_denoiser_near_the_data_keeps_its_digits(dtype: torch.dtype) -> None:
    """At s = 1e-6, where x_t and x_0 are one number in float32: |D - x_0|/s for D = x_0 + s/4."""
    process, x = sde.SubVP(), randn(4, 64, dtype=torch.float64).to(dtype)
    t = torch.full((4,), 1e-5, dtype=torch.float64)
    s = float(process.noise_level(1e-5))
    error = (x.float() + 0.01) - x.float()  # exact

    def model(noisy: Tensor, t: Tensor) -> Tensor:
        return x.float() + 0.01

    loss = sde_loss(model, x, process, t=t, prediction="x0", weighting="output", reduction="none")
    want = error.double().square().sum(1) / 2
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    assert s < 2e-6


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_half_precision_and_autocast(device: torch.device, prediction: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 32).to(device), randn(7, 32).to(device)
    loss_fn = SDELoss(sde.VP(), prediction=prediction)
    draws: dict[str, Any] = {"t": torch.linspace(0.2, 1, 7, device=device), "seed": 0}
    exact = loss_fn(lambda x, t: layer(x), x, **draws)
    want = torch.autograd.grad(exact, layer.weight)[0]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value = loss_fn(lambda x, t: layer(x), x, **draws)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.03, atol=0)
    got = torch.autograd.grad(value, layer.weight)[0]
    assert float((got - want).norm() / want.norm()) < 0.03
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(layer).to(dtype)
        for data in (x.to(dtype), x):
            value = loss_fn(lambda x, t, net=half: net(x.to(net.weight.dtype)), data, **draws)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, exact, rtol=0.05, atol=0)
    double = loss_fn(lambda x, t: layer(x.float()), x.double(), **draws)
    torch.testing.assert_close(double, exact)


@pytest.mark.parametrize("prediction", ["score", "x0", "velocity"])
def test_gradients_reach_data_that_ask_for_them(prediction: str) -> None:
    x = randn(3, 4, dtype=torch.float64).requires_grad_()
    t = torch.tensor([0.2, 0.5, 0.9])
    loss_fn = SDELoss(sde.VP(), prediction=prediction)
    assert torch.autograd.gradcheck(lambda x: loss_fn(lambda x, t: x.sin(), x, t=t, seed=0), x)


def test_a_training_step_compiles_whole() -> None:
    options: dict[str, Any] = {"times": "log_normal", "weighting": "edm", "prediction": "x0"}
    loss_fn = SDELoss(sde.VP(), drop=0.5, null={"label": 3}, **options)
    layer, table, key = nn.Linear(3, 3), nn.Embedding(4, 3), make_key(3)

    def step(x: Tensor, label: Tensor, key: Tensor) -> Tensor:
        def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return layer(x) * t[:, None] + table(label)

        return loss_fn(model, x, key=key, model_kwargs={"label": label})

    x, label = randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = compiled(x, label, key), step(x, label, key)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(value, layer.weight)[0] for value in (got, want)]
    torch.testing.assert_close(*grads)
    key[1] += 1
    torch.testing.assert_close(compiled(x, label, key), step(x, label, key))


@pytest.mark.parametrize("prediction", ["score", "x0"])
def test_networks_of_an_ensemble_train_at_once(prediction: str) -> None:
    loss_fn = SDELoss(sde.SubVP(), prediction=prediction, times="log_uniform")
    nets = [nn.Linear(3, 3) for _ in range(2)]
    parameters, _ = stack_module_state(nets)  # type: ignore[arg-type]
    x = randn(5, 3)

    def loss_of(parameters: dict[str, Tensor], key: Tensor) -> Tensor:
        return loss_fn(lambda x, t: functional_call(nets[0], parameters, (x,)), x, key=key)

    keys = torch.stack([make_key(seed) for seed in range(2)])
    losses, grads = vmap(loss_of)(parameters, keys), vmap(grad(loss_of))(parameters, keys)
    for i, net in enumerate(nets):
        alone = loss_fn(lambda x, t, net=net: net(x), x, seed=i)
        torch.testing.assert_close(losses[i], alone)
        torch.testing.assert_close(grads["weight"][i], torch.autograd.grad(alone, net.weight)[0])


class Free(torch.autograd.Function):
    """A model that needs no memory of its own: a stored output, and a gradient of one number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, grad.sum(), None


@pytest.mark.parametrize("prediction", ["score", "x0"])
def test_memory_beyond_the_model_is_the_noisy_data_and_one_gradient(prediction: str) -> None:
    x, output = randn(64, 3, 32, 32), randn(64, 3, 32, 32, seed=1)
    parameter = nn.Parameter(torch.zeros(()))
    loss_fn = SDELoss(sde.VP(), prediction=prediction)

    def step() -> None:
        loss_fn(lambda x, t: Free.apply(x, parameter, output), x).backward()

    step()
    size = x.numel() * x.element_size()
    assert size <= peak_bytes(step) < 2 * size + 100_000


# ---- the module, and what is refused -------------------------------------------------------------


def test_the_module_and_the_function_agree_and_copies_do() -> None:
    x, process = randn(5, 3), sde.DDPM(BETAS)
    null = {"label": torch.ones(2), "rest": 0}
    options: dict[str, Any] = {"conditioning": "index", "drop": 0.5, "null": null}
    named = {"label": randn(5, 2), "rest": torch.arange(5)}
    draws: dict[str, Any] = {"seed": 4, "model_kwargs": named}

    def model(x: Tensor, i: Tensor, label: Tensor, rest: Tensor) -> Tensor:
        return x * (label.sum(1) + rest + i)[:, None]

    want = sde_loss(model, x, process, **options, **draws)
    loss_fn = SDELoss(process, **options)
    copies = [loss_fn, copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn)).half()]
    for each in copies:
        assert_same_bytes(each(model, x, **draws), want)
    assert loss_fn.state_dict() == {}
    assert repr(loss_fn).startswith("SDELoss(DDPM(betas=100 from 0.0001 to 0.02), times='uniform'")
    assert sde_loss(
        model,
        x[:0],
        process,
        reduction="none",
        conditioning="index",
        model_kwargs={"label": named["label"][:0], "rest": 0},
    ).shape == (0,)


X = randn(4, 2)
LABELS = {"label": torch.zeros(4, dtype=torch.int64)}
DROP = {"drop": 0.5, "model_kwargs": LABELS}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"times": "stratified"}, ValueError, r"times must be one of .*stratified=True is an option"),
    ({"times": "normal"}, ValueError, "times must be one of 'uniform', 'log_uniform'"),
    ({"stratified": 1}, TypeError, "stratified must be True or False, got int"),
    ({"times": "log_normal", "log_mean": 40}, ValueError, "log_mean must be within the process's"),
    ({"times": "log_normal", "log_std": 0}, ValueError, "log_std must be positive, got 0"),
    (
        {"weighting": "none"},
        ValueError,
        "weighting must be one of 'sigma2', .* function of the tim",
    ),
    ({"weighting": lambda t: t[:1]}, ValueError, r"weighting must be of shape \(4,\)"),
    ({"weighting": lambda t: -t}, ValueError, "weighting must be finite and at least 0"),
    ({"weighting": lambda t: 1.0}, TypeError, "weighting must be a function that returns a tensor"),
    ({"sigma_data": 0}, ValueError, "sigma_data must be positive"),
    ({"gamma": "5"}, TypeError, "gamma must be a real number"),
    ({"reduction": "all"}, ValueError, "reduction must be one of"),
    ({"prediction": "noise"}, ValueError, "prediction must be one of 'score', .* 'velocity'"),
    ({"conditioning": "t"}, ValueError, "conditioning must be one of .* 'time'"),
    ({"conditioning": "none"}, ValueError, "told the time or the noise level"),
    ({"conditioning": "sigma", "prediction": "velocity"}, ValueError, '"time" or "index" for a'),
    ({"conditioning": "index"}, ValueError, "sigmas or betas must be given, one of the two"),
    ({"sigmas": [2.0, 1.0], "betas": BETAS}, ValueError, "sigmas or betas must be .*got both"),
    (
        {"conditioning": "index", "betas": [2.0, 1.0]},
        ValueError,
        "betas must be .* between 0 and 1",
    ),
    ({"sigmas": [2.0, 1.0]}, ValueError, 'sigmas must be left out but for conditioning="index"'),
    ({"conditioning": "sigma", "time_scale": 9}, ValueError, "time_scale must be left out but for"),
    ({"time_scale": -1}, ValueError, "time_scale must be positive"),
    ({"t": torch.zeros(4)}, ValueError, "t must be from t_eps = 1e-05 to t_max = 1 of the process"),
    ({"t": torch.full((4,), torch.nan)}, ValueError, "t must be in .0, 1., got nan"),
    ({"t": torch.ones(3)}, ValueError, r"t must be of shape \(4,\)"),
    ({"t": 0.0}, ValueError, "t must be from t_eps"),
    ({"t": "1"}, TypeError, "t must be a real number"),
    ({"t": torch.ones(4, requires_grad=True)}, ValueError, "t must be times that need no gradient"),
    ({"levels": torch.zeros(4).long()}, TypeError, "there is no option 'levels'"),
    ({"drop": 1.5}, ValueError, "drop must be a probability"),
    ({"drop": 0.1}, ValueError, "null must be a dictionary .* with drop, got None"),
    ({"drop": 0.1, "null": 10}, TypeError, "null must be a dictionary"),
    ({**DROP, "null": {"class": 1}}, ValueError, "class must be given by name, .*, got 'label'"),
    ({**DROP, "null": {"label": 0.5}}, ValueError, r"null\['label'\] must be a whole number"),
    ({**DROP, "null": {"label": torch.ones(2)}}, ValueError, r"null\['label'\] must be a number"),
    ({**DROP, "null": {"label": torch.ones(())}}, ValueError, r"null\['label'\] must be of whole"),
    ({**DROP, "null": {"label": None}}, TypeError, r"null\['label'\] must be a torch.Tensor"),
    (
        {"drop": 0.5, "null": {"a": 1}, "model_kwargs": {"a": 3}},
        TypeError,
        "model_kwargs.'a'. must",
    ),
    ({"x": X.log().sqrt()}, ValueError, "x must be finite"),
    ({"x": X.long()}, ValueError, "x must be a floating-point tensor"),
    ({"model": 3}, TypeError, "model must be callable"),
    ({"model": lambda x, t: x[:, :1]}, ValueError, "a model whose output is .* of x's shape"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD, ids=lambda v: "")
def test_bad_input(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    def never(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("the model was called before the arguments were checked")

    options = {"model": never, "x": X, "sde": sde.VP()} | given
    with pytest.raises(kind, match=f"sde_loss: .*{message}"):
        sde_loss(**options)
    call = {n: options.pop(n) for n in ("model", "x", "t", "model_kwargs") if n in options}
    with pytest.raises(kind, match=f"SDELoss: .*{message}"):
        SDELoss(**options)(**call)


def test_a_process_and_noise_levels_are_not_mistaken_for_one_another() -> None:
    for levels in ([2.0, 1.0], torch.tensor([2.0, 1.0])):
        with pytest.raises(TypeError, match=r"sde_loss: sde must be a process.*dsm_loss"):
            sde_loss(lambda x, t: x, X, levels)
        with pytest.raises(TypeError, match="SDELoss: sde must be a process"):
            SDELoss(levels)
    takers = [
        lambda p: fastscore.dsm_loss(lambda x, s: x, X, p),
        lambda p: fastscore.ssm_loss(lambda x, s: x, X, sigmas=p),
        fastscore.DSMLoss,
        lambda p: fastscore.annealed_langevin(lambda x, s: x, p, shape=(2, 2)),
        lambda p: fastscore.langevin_step_size(p, 5),
    ]
    for take in takers:
        with pytest.raises(TypeError, match=r"sigmas must be noise scales, got VP, .*sde_loss"):
            take(sde.VP())


def test_a_network_says_itself_how_it_is_called() -> None:
    class Net(nn.Module):
        conditioning, prediction, time_scale = "time", "v", 999.0

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert float(t.max()) > 100
            return x

    t = torch.linspace(0.1, 0.9, 4)
    options: dict[str, Any] = {"conditioning": "time", "prediction": "v", "t": t, "seed": 0}
    want = sde_loss(lambda x, t: x, X, sde.VE(), **options)
    assert_same_bytes(sde_loss(Net(), X, sde.VE(), t=t, seed=0), want)


def test_constants_of_times_are_numbers() -> None:
    times = Times.of("test", sde.VP(), "log_normal", -1.2, 1.2)
    assert all(isinstance(v, float) for v in (times.low, times.high, times.mean, times.std))
