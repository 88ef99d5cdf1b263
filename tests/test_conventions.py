"""How a model is called and what it returns, said once; options by their old names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, randn
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

import fastscore
from fastscore._support.known import known_of
from fastscore.conditioning import LEVEL_PREDICTIONS, convention_in_time, time_scale_of
from fastscore.losses import _levels
from fastscore.scores import (
    DenoiserScore,
    EnergyScore,
    EpsScore,
    GaussianMixture,
    NetworkScore,
    adapters,
)

SIGMAS = fastscore.geometric_sigmas(2.0, 0.1, 6)
LOSSES = [fastscore.dsm_loss, fastscore.ssm_loss, fastscore.score_matching_loss]
MODULES = [fastscore.DSMLoss, fastscore.SSMLoss, fastscore.ScoreMatchingLoss]


class Net(nn.Module):
    """A network of (x, c), whatever c is."""

    def __init__(self, **said: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.layers(torch.cat([x, c[:, None].to(x.dtype)], 1))


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "langevin": lambda model, **options: fastscore.langevin(
        model, steps=5, step_size=0.01, sigma=0.5, seed=3, shape=(6, 2), **options
    ),
    "annealed": lambda model, **options: fastscore.annealed_langevin(
        model, SIGMAS, steps_per_sigma=2, seed=3, shape=(6, 2), **options
    ),
    "consistent": lambda model, **options: fastscore.consistent_annealed_langevin(
        model, SIGMAS, eta=0.7, seed=3, shape=(6, 2), **options
    ),
}


# ---- prediction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", LEVEL_PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_samplers_take_a_prediction_as_the_adapter_does(sampler: Any, prediction: str) -> None:
    """In float64: the conversion is in the table, and rounds elsewhere than the adapter's."""
    net = Net().double()
    want = sampler(NetworkScore(net, prediction=prediction))
    assert want.dtype == torch.float64
    torch.testing.assert_close(sampler(net, prediction=prediction), want, rtol=1e-12, atol=1e-12)
    net.prediction = prediction
    torch.testing.assert_close(sampler(net), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sampler(DataParallel(net)), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("conditioning", ["sigma", "log_sigma", "index"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_take_a_prediction_as_the_adapter_does(
    loss: Any, conditioning: str, prediction: str
) -> None:
    net, x = Net(), randn(7, 2)
    sigmas = SIGMAS if conditioning == "index" else None
    adapter = NetworkScore(net, prediction=prediction, conditioning=conditioning, sigmas=sigmas)
    want = loss(adapter, x, sigmas=SIGMAS, seed=0)
    wanted = torch.autograd.grad(want, net.parameters())
    said = Net(prediction=prediction, conditioning=conditioning)
    module = MODULES[LOSSES.index(loss)](SIGMAS)
    how = {"prediction": prediction, "conditioning": conditioning}
    for network, got in [
        (net, loss(net, x, sigmas=SIGMAS, seed=0, **how)),
        (said, loss(said, x, sigmas=SIGMAS, seed=0)),
        (said, module(said, x, seed=0)),
    ]:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        gradients = torch.autograd.grad(got, network.parameters())
        torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["forward", "reverse", "finite_difference", "exact"])
def test_steps_with_a_prediction_look_at_no_levels(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them is a wait of the host's for a GPU in each step."""
    loss_fn = fastscore.SSMLoss(SIGMAS, conditioning="index", prediction="eps", method=method)
    net, x = Net(), randn(7, 2)
    adapter = NetworkScore(net, prediction="eps", conditioning="index", sigmas=SIGMAS)
    want = fastscore.ssm_loss(adapter, x, sigmas=SIGMAS, method=method, seed=0)
    for module in (_levels, adapters):
        monkeypatch.setattr(module, "check_sigmas", lambda *a, **k: pytest.fail("levels read"))
    torch.testing.assert_close(loss_fn(net, x, seed=0), want)


def test_dsm_of_an_exact_denoiser_is_that_of_its_score() -> None:
    mixture = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 1.0]], 0.05)
    x = mixture.sample(500, seed=0)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return x + sigma[:, None] ** 2 * mixture(x, sigma)

    want = fastscore.dsm_loss(mixture, x, SIGMAS, seed=1, reduction="none")
    got = fastscore.dsm_loss(denoiser, x, SIGMAS, seed=1, reduction="none", prediction="x0")
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    half = fastscore.dsm_loss(
        lambda *at: denoiser(*at).bfloat16(), x, SIGMAS, seed=1, prediction="x0"
    )
    assert half.dtype == torch.float32  # the difference is taken there


def test_eps_networks_sample_without_an_adapter() -> None:
    """The issue's case: an eps network without an adapter went to 1e15."""
    mixture = GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], 0.01)

    def eps(x: Tensor, sigma: Tensor) -> Tensor:
        return -sigma[:, None] * mixture(x, sigma)

    sigmas = fastscore.noise_scales(mixture.sample(100, seed=0).repeat(1, 3), sigma_min=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = fastscore.annealed_langevin(eps, sigmas, shape=(500, 2), seed=0, prediction="eps")
    assert float((x.abs() - torch.tensor([2.0, 0.0])).norm(dim=1).median()) < 0.3


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastscore.langevin(Net(), steps=2, step_size=0.1, shape=(2, 2), prediction="eps"),
        lambda: fastscore.langevin(Net(prediction="x0"), steps=2, step_size=0.1, shape=(2, 2)),
        lambda: fastscore.langevin(Net(conditioning="sigma"), steps=2, step_size=1, shape=(2, 2)),
        lambda: fastscore.ssm_loss(Net(prediction="eps"), randn(3, 2)),
        lambda: fastscore.SSMLoss()(Net(conditioning="log_sigma"), randn(3, 2)),
    ],
)
def test_what_needs_a_noise_level_says_so(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"^\w+: sigmas? must be .* for a model of conditioning="):
        call()


def test_a_prediction_on_clean_data_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^SSMLoss: prediction must be 'score' without sigmas"):
        fastscore.SSMLoss(prediction="eps")
    for make in (*MODULES, lambda *a, **k: SAMPLERS["annealed"](Net(), **k)):
        with pytest.raises(ValueError, match=r"prediction must be one of .*'x0', got 'noise'"):
            make(SIGMAS, prediction="noise")


def test_a_method_is_chosen_once_for_a_network_and_what_it_predicts() -> None:
    net = Net()
    net.layers.append(nn.SiLU())  # no closed form: what is chosen hangs on a run of the network
    net.layers.append(nn.Linear(2, 2))
    for prediction in (*LEVEL_PREDICTIONS, *LEVEL_PREDICTIONS):
        fastscore.ssm_loss(net, randn(7, 2), sigmas=SIGMAS, prediction=prediction)
    assert len(known_of(net)) == len(LEVEL_PREDICTIONS)


# ---- said once ----------------------------------------------------------------------------------

OWN = {
    "eps": lambda: EpsScore(Net(), conditioning="index", sigmas=SIGMAS),
    "denoiser": lambda: DenoiserScore(Net(), conditioning="log_sigma"),
    "energy": lambda: EnergyScore(lambda x, s: x.square().sum(1) / s),
    "mixture": lambda: GaussianMixture([1.0], [[0.0, 0.0]], 1.0),
    "mlp": lambda: fastscore.nn.ScoreMLP(2),
    "said": lambda: Net(conditioning="sigma"),
}


@pytest.mark.parametrize("make", OWN.values(), ids=list(OWN))
@pytest.mark.parametrize("conditioning", ["index", "log_sigma"])
def test_conditioning_is_said_once(make: Callable[[], Any], conditioning: str) -> None:
    model, x = make(), randn(4, 2)
    expected = r"conditioning must be left out for \w+, a model of conditioning='sigma'.*got "
    expected += f"'{conditioning}'"
    for sampler in SAMPLERS.values():
        with pytest.raises(ValueError, match=expected):
            sampler(model, conditioning=conditioning)
        with pytest.raises(ValueError, match=expected):
            sampler(DataParallel(model), conditioning=conditioning)
    for loss in LOSSES:
        with pytest.raises(ValueError, match=expected):
            loss(model, x, sigmas=SIGMAS, conditioning=conditioning)


def test_the_error_says_where_it_belongs() -> None:
    with pytest.raises(ValueError, match=r"adapter: EpsScore\(network, conditioning='index'\)"):
        SAMPLERS["annealed"](EpsScore(Net()), conditioning="index")
    with pytest.raises(ValueError, match=r"adapter: NetworkScore\(network, prediction='eps'\)"):
        SAMPLERS["annealed"](EpsScore(Net()), prediction="eps")
    with pytest.raises(ValueError, match=r"prediction must be left out for Net.*got 'x0'"):
        fastscore.dsm_loss(Net(prediction="eps"), randn(3, 2), SIGMAS, prediction="x0")
    with pytest.raises(ValueError, match=r"EpsScore: prediction must be left out for Net"):
        EpsScore(Net(prediction="x0"))


def said_on_the_wrapper(net: Net) -> nn.Module:
    wrapper = DataParallel(net)
    wrapper.prediction, wrapper.conditioning = "eps", "log_sigma"
    return wrapper


AROUND: dict[str, Callable[[], Any]] = {
    "partial": lambda: partial(partial(Net(prediction="eps", conditioning="log_sigma"))),
    "forward": lambda: Net(prediction="eps", conditioning="log_sigma").forward,
    "call": lambda: Net(prediction="eps", conditioning="log_sigma").__call__,
    "average": lambda: AveragedModel(Net(prediction="eps", conditioning="log_sigma")),
    "compiled": lambda: torch.compile(Net(prediction="eps", conditioning="log_sigma")),
    "wrapper": lambda: said_on_the_wrapper(Net()),
}


@pytest.mark.parametrize("make", AROUND.values(), ids=list(AROUND))
def test_what_a_network_says_is_heard_through_what_is_around_it(make: Callable[[], Any]) -> None:
    """Else an eps network would pass for a score, in silence."""
    model, x = make(), randn(4, 2)
    how: dict[str, Any] = {"prediction": "eps", "conditioning": "log_sigma"}
    with torch.compiler.set_stance("force_eager"):
        assert_same_bytes(SAMPLERS["annealed"](model), SAMPLERS["annealed"](Net(), **how))
        loss = fastscore.dsm_loss(model, x, SIGMAS, seed=0)
        assert_same_bytes(loss, fastscore.dsm_loss(Net(), x, SIGMAS, seed=0, **how))
        sigma = torch.full((4,), 0.5)
        assert_same_bytes(NetworkScore(model)(x, sigma), NetworkScore(Net(), **how)(x, sigma))
        with pytest.raises(ValueError, match="prediction must be left out for"):
            SAMPLERS["annealed"](model, prediction="x0")
    if isinstance(model, nn.Module):
        assert fastscore.Checkpoint(model, SIGMAS).prediction == "eps"


def test_a_partial_that_gives_the_noise_level_is_a_model_of_x() -> None:
    net, x = Net(conditioning="sigma"), randn(4, 2)
    at = partial(net, c=torch.full((4,), 0.5))
    want = fastscore.ssm_loss(lambda x: net(x, torch.full((4,), 0.5)), x, seed=0)
    assert_same_bytes(fastscore.ssm_loss(at, x, seed=0), want)
    mlp = fastscore.nn.ScoreMLP(2)
    drawn = fastscore.langevin(partial(mlp, sigma=0.5), steps=2, step_size=0.1, seed=0)
    assert drawn.shape == (64, 2)
    with pytest.raises(ValueError, match="sigma must be a positive number for a model of"):
        fastscore.langevin(partial(Net(prediction="eps"), c=x), x, steps=2, step_size=0.1)


def test_what_a_model_says_of_itself_must_be_known() -> None:
    for name in ("conditioning", "prediction"):
        model = Net(**{name: "film"})
        with pytest.raises(ValueError, match=rf"{name} must be given .* None, and 'film' of the"):
            SAMPLERS["annealed"](model)
        value = "sigma" if name == "conditioning" else "score"
        assert_same_bytes(SAMPLERS["annealed"](model, **{name: value}), SAMPLERS["annealed"](Net()))
    layer = Net()
    layer.conditioning = nn.Linear(2, 2)  # somebody's own
    assert_same_bytes(SAMPLERS["annealed"](layer), SAMPLERS["annealed"](Net()))


def test_scores_that_need_no_sigma_are_called_either_way() -> None:
    energy = EnergyScore(lambda x: x.square().sum(1) / 2, conditioning="none")
    for model in (energy, GaussianMixture([1.0], [[0.0, 0.0]], 1.0)):
        assert torch.isfinite(SAMPLERS["annealed"](model)).all()
        assert torch.isfinite(SAMPLERS["annealed"](model, conditioning="none")).all()
        assert torch.isfinite(
            fastscore.langevin(model, steps=2, step_size=0.1, shape=(3, 2), seed=0)
        ).all()
        assert torch.isfinite(fastscore.ssm_loss(model, randn(3, 2)))


def test_functions_of_a_score_refuse_what_is_none() -> None:
    x = randn(3, 2)
    for model in (Net(conditioning="index"), Net(prediction="eps")):
        for call in (
            lambda model=model: fastscore.fisher_divergence(model, x, x, 0.5),
            lambda model=model: fastscore.sliced_fisher_divergence(model, x, x, 0.5),
            lambda model=model: fastscore.divergence(model, x, 0.5),
        ):
            with pytest.raises(ValueError, match=r"model must be a score .*NetworkScore"):
                call()
    score = NetworkScore(Net(prediction="eps"))
    assert torch.isfinite(fastscore.fisher_divergence(score, x, x, 0.5))


def test_an_adapter_takes_what_the_network_says() -> None:
    net = Net(conditioning="log_sigma", prediction="eps")
    x, sigma = randn(3, 2), torch.tensor([0.5, 1.0, 2.0])
    got = NetworkScore(net)(x, sigma)
    assert_same_bytes(got, -net(x, sigma.log()) / sigma[:, None])
    assert NetworkScore(net).conditioning == "sigma"
    assert NetworkScore(net).prediction == "score"
    assert NetworkScore(net).net_conditioning == "log_sigma"
    assert NetworkScore(net).net_prediction == "eps"


# ---- what needs a time --------------------------------------------------------------------------

TIMELY = [("conditioning", "time"), ("prediction", "v"), ("prediction", "velocity")]


@pytest.mark.parametrize(("name", "value"), TIMELY)
def test_functions_of_noise_levels_refuse_what_needs_a_time(name: str, value: str) -> None:
    x = randn(4, 2)
    message = rf"{name} must be one of .*got '{value}'{{}} \(sde_loss, reverse_sde and probability_"
    calls = [lambda model, sampler=s, **k: sampler(model, **k) for s in SAMPLERS.values()]
    calls += [lambda model, loss=f, **k: loss(model, x, sigmas=SIGMAS, **k) for f in LOSSES]
    calls += [lambda model, make=m, **k: make(SIGMAS, **k)(model, x) for m in MODULES]
    for call in calls:
        with pytest.raises(ValueError, match=message.format("")):
            call(Net(), **{name: value})
        with pytest.raises(ValueError, match=message.format(" of the model")):
            call(Net(**{name: value}))
    with pytest.raises(ValueError, match=message.format(" of the model")):
        fastscore.Checkpoint(Net(**{name: value}), SIGMAS)
    with pytest.raises(ValueError, match=r"model must be a score .* as fastscore.sde.ProcessScore"):
        fastscore.divergence(Net(**{name: value}), x, 0.5)
    for module in MODULES:
        with pytest.raises(ValueError, match=message.format("")):
            module(SIGMAS, **{name: value})


def test_conventions_in_time() -> None:
    fn = "sde_loss"
    assert convention_in_time(fn, Net(), None, None, "time") == ("time", "score")
    assert (
        convention_in_time(fn, Net(conditioning="log_sigma"), None, "v", "time")[0] == "log_sigma"
    )
    assert convention_in_time(fn, Net(), "index", "velocity", "time") == ("index", "velocity")
    with pytest.raises(ValueError, match='conditioning must be "time" or "index" for a model of'):
        convention_in_time(fn, Net(), None, "velocity", "sigma")
    with pytest.raises(ValueError, match="model must be told the time or the noise level"):
        convention_in_time(fn, Net(conditioning="none"), None, None, "time")
    with pytest.raises(ValueError, match="conditioning must be left out for Net, a model of"):
        convention_in_time(fn, Net(conditioning="time"), "sigma", None, "sigma")


def test_the_scale_of_time_is_said_once() -> None:
    net = Net()
    assert time_scale_of("sde_loss", net, None) == 1
    assert time_scale_of("sde_loss", net, 999) == 999
    net.time_scale = 1000.0
    assert time_scale_of("sde_loss", DataParallel(net), None) == 1000
    assert time_scale_of("sde_loss", net, 1000) == 1000
    with pytest.raises(ValueError, match="time_scale must be left out for Net, a model of time_sc"):
        time_scale_of("sde_loss", net, 999)
    with pytest.raises(ValueError, match="sde_loss: time_scale must be positive, got 0"):
        time_scale_of("sde_loss", Net(), 0)


# ---- class labels -------------------------------------------------------------------------------


class Classes(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        return -x if y is None else y[:, None] - x


@pytest.mark.parametrize("loss", [*LOSSES, *(m(SIGMAS) for m in MODULES)], ids=str)
def test_class_labels_do_not_pass_for_noise_levels(loss: Any) -> None:
    x, classes = randn(4, 2), torch.tensor([0, 1, 1, 0])
    sigmas = {} if isinstance(loss, nn.Module) else {"sigmas": SIGMAS}
    with pytest.raises(TypeError, match=r"labels is the old name of levels.*model_kwargs={'y': "):
        loss(Classes(), x, labels=classes, **sigmas)
    with pytest.warns(FutureWarning, match=r"labels= is now levels=.*classes go into model_kwargs"):
        old = loss(lambda x, s: -x, x, labels=classes, seed=0, **sigmas)
    assert_same_bytes(old, loss(lambda x, s: -x, x, levels=classes, seed=0, **sigmas))
    with pytest.warns(FutureWarning):  # both, and what is which is clear
        both = loss(Classes(), x, labels=classes, model_kwargs={"y": classes}, seed=0, **sigmas)
    with pytest.raises(TypeError, match="levels is given twice"):
        loss(lambda x, s: -x, x, labels=classes, levels=classes, **sigmas)
    new = loss(Classes(), x, levels=classes, model_kwargs={"y": classes}, seed=0, **sigmas)
    assert_same_bytes(both, new)


def test_the_old_name_in_a_compiled_step() -> None:
    loss_fn, levels = fastscore.DSMLoss(SIGMAS), torch.tensor([0, 1, 1, 0])

    def loss(x: Tensor) -> Tensor:
        return loss_fn(lambda x, s: -x, x, labels=levels, key=fastscore.random.key(0))

    x = randn(4, 2)
    with pytest.warns(FutureWarning):
        want = loss(x)
    got = torch.compile(loss, fullgraph=True, backend="eager")(x)
    assert_same_bytes(got, want)
    with pytest.raises(Exception, match="labels is the old name of levels"):
        torch.compile(lambda x: loss_fn(Classes(), x, labels=levels), backend="eager")(x)


@pytest.mark.parametrize(
    "around", [torch.compile, DataParallel, AveragedModel, partial, lambda net: net.forward]
)
def test_nor_where_something_is_around_the_network(around: Callable[[Any], Any]) -> None:
    x, classes = randn(4, 2), torch.tensor([0, 1, 1, 0])
    for loss in MODULES:
        with pytest.raises(TypeError, match=r"labels is the old name of levels.*model_kwargs={'y'"):
            loss(SIGMAS)(around(Classes()), x, labels=classes)
    with pytest.warns(FutureWarning):  # the network has its classes
        fastscore.dsm_loss(partial(Classes(), y=classes), x, SIGMAS, labels=classes)


# ---- old names ----------------------------------------------------------------------------------


def test_old_names_work_and_warn_at_the_callers_line() -> None:
    x = randn(3, 2)
    with pytest.warns(DeprecationWarning, match="probes= is now projections=") as caught:
        old = fastscore.divergence(torch.tanh, x, probes=2, seed=0)
    assert caught[0].filename == __file__
    assert_same_bytes(old, fastscore.divergence(torch.tanh, x, projections=2, seed=0))
    with pytest.warns(DeprecationWarning, match="score_fn= is now model=") as caught:
        old = fastscore.langevin(score_fn=lambda x: -x, x=x, steps=2, step_size=0.1, seed=0)
    assert caught[0].filename == __file__
    assert_same_bytes(
        old, fastscore.langevin(model=lambda x: -x, x=x, steps=2, step_size=0.1, seed=0)
    )
    with pytest.raises(TypeError, match="projections is given twice"):
        fastscore.divergence(torch.tanh, x, probes=2, projections=2)
    with pytest.raises(TypeError, match="did you mean 'projections'"):
        fastscore.divergence(torch.tanh, x, probs=2)
