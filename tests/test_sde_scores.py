"""Networks of one process as scores for all; EDM's preconditioning; what levels a model knows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, randn
from test_sde import LINEAR, every_process
from test_sde_given import Straight, exact
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

import fastscore
from fastscore import sde
from fastscore.conditioning import PREDICTIONS
from fastscore.scores import EDMDenoiser, EnergyScore, EpsScore, GaussianMixture, NetworkScore
from fastscore.sde import ProcessScore, sigma_range_of
from fastscore.sde._levels import levels_of, nearest_level

MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 1.0]], 0.05).double()
SIGMAS = fastscore.geometric_sigmas(4.0, 0.05, 8)
Y = randn(6, 2).double() * 2
S = torch.tensor([0.05, 0.1, 0.3, 1.0, 1.5, 2.0], dtype=torch.float64)


class Oracle(nn.Module):
    """What the perfect network of a process returns, and what it was told."""

    def __init__(self, process: sde.Process, prediction: str, conditioning: str) -> None:
        super().__init__()
        self.process, self.what, self.how = process, prediction, conditioning
        self.told = torch.zeros(0)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.told = c
        if self.how == "index":
            s = torch.sqrt(torch.expm1(-torch.cumsum(torch.log1p(-LINEAR), 0)))[c]
        else:
            s = {"sigma": lambda: c, "log_sigma": c.exp, "time": lambda: self.level(c)}[self.how]()
        t = self.process.time_of(s)
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        if self.what == "v":
            x = x * torch.hypot(alpha, sigma)
        elif self.how in ("sigma", "log_sigma"):
            x = x * alpha
        score = MIXTURE(x / alpha, s) / alpha
        x0 = (x + sigma**2 * score) / alpha
        if self.what == "score":
            return score * (alpha if self.how in ("sigma", "log_sigma") else 1)
        return exact(self.what, self.process, t[:, None], x0, -sigma * score)

    def level(self, t: Tensor) -> Tensor:
        return self.process.noise_level(t.double() / 10)


@every_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("conditioning", ["time", "sigma", "log_sigma"])
def test_a_perfect_network_is_the_exact_score(
    process: sde.Process, prediction: str, conditioning: str
) -> None:
    keep = process.sigma_range[1] >= S
    y, s = Y[keep], S[keep]
    how: dict[str, Any] = {"conditioning": conditioning, "prediction": prediction}
    if conditioning == "time":
        how["time_scale"] = 10
    net = Oracle(process, prediction, conditioning)
    if prediction == "velocity" and conditioning != "time":
        with pytest.raises(ValueError, match='conditioning must be "time" or "index"'):
            ProcessScore(net, process, **how)
        return
    model = ProcessScore(net, process, **how)
    torch.testing.assert_close(model(y, s), MIXTURE(y, s), rtol=1e-7, atol=1e-7)
    if conditioning == "time":
        torch.testing.assert_close(net.told, 10 * process.time_of(s))
    assert (model.conditioning, model.prediction, model.net_conditioning) == (
        "sigma",
        "score",
        conditioning,
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_is_called_by_an_index(prediction: str) -> None:
    """DDPM's own: at its levels, and with the nearest one between them."""
    process = sde.DDPM(LINEAR)
    net = Oracle(process, prediction, "index")
    model = ProcessScore(net, process, conditioning="index", prediction=prediction)
    index = torch.tensor([0, 3, 50, 400, 998, 999])
    s = process.noise_level(index / 999)
    torch.testing.assert_close(model(Y, s), MIXTURE(Y, s), rtol=1e-6, atol=1e-6)
    assert torch.equal(net.told, index)
    model(Y, s * 1.001)
    assert torch.equal(net.told, index)
    assert model.sigma_range == pytest.approx((0.0100005, 157.4), rel=1e-3)
    as_vp = ProcessScore(net, sde.VP(), conditioning="index", prediction=prediction, betas=LINEAR)
    if prediction != "velocity":  # a rate in another time
        torch.testing.assert_close(as_vp(Y, s), MIXTURE(Y, s), rtol=1e-6, atol=1e-6)


def test_levels_in_their_own_direction() -> None:
    falling = levels_of("f", sigmas=[10.0, 1.0, 0.1])
    rising = levels_of("f", sigmas=torch.tensor([0.1, 1.0, 10.0]))
    s = torch.tensor([0.05, 0.2, 0.4, 4.0, 100.0])
    assert nearest_level(falling, s).tolist() == [2, 2, 1, 0, 0]
    assert nearest_level(rising, s).tolist() == [0, 0, 1, 2, 2]
    for wrong, message in (
        ({}, "sigmas or betas must be given, one of the two, .*got neither"),
        ({"sigmas": [1.0], "betas": LINEAR}, "got both"),
        ({"sigmas": [1.0, 3.0, 2.0]}, "sigmas must be strictly decreasing"),
        ({"betas": [0.1, 1.5]}, "betas must be a tensor or a sequence of at least 2 numbers"),
    ):
        with pytest.raises(ValueError, match=rf"^f: .*{message}"):
            levels_of("f", **wrong)
    with pytest.raises(ValueError, match="ProcessScore: betas must be left out but for"):
        sde.ProcessScore(Oracle(sde.VP(), "eps", "time"), sde.VP(), betas=LINEAR)


def test_it_samples_as_a_score_does() -> None:
    """A model trained for one process goes where a score goes: annealed Langevin."""
    net = Oracle(sde.VP(), "eps", "time")
    model = ProcessScore(net, sde.VP(), prediction="eps", time_scale=10)
    how = {"num_samples": None, "shape": (300, 2), "seed": 0, "dtype": torch.float64}
    got = fastscore.annealed_langevin(model, SIGMAS, steps_per_sigma=3, **how)
    want = fastscore.annealed_langevin(MIXTURE, SIGMAS, steps_per_sigma=3, **how)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(fastscore.divergence(model, Y, 0.5)).all()


class Net(nn.Module):
    def __init__(self, **said: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, x: Tensor, c: Tensor, shift: Tensor | None = None) -> Tensor:
        out = self.layers(torch.cat([x, c[:, None].to(x.dtype)], 1))
        return out if shift is None else out + shift


class Writing(Net):
    """A network that writes to what it is given."""

    def forward(self, x: Tensor, c: Tensor, shift: Tensor | None = None) -> Tensor:
        out = super().forward(x, c, shift)
        x.zero_()
        c.zero_()
        return out


MAKERS = {
    "process": lambda net: ProcessScore(net, sde.VP(), prediction="eps", conditioning="time"),
    "velocity": lambda net: ProcessScore(net, sde.RectifiedFlow(), prediction="velocity"),
    "v": lambda net: NetworkScore(net, prediction="v"),
    "edm": EDMDenoiser,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_right_however_the_network_is(make: Any) -> None:
    y, s = Y.float(), S.float()
    shift = torch.ones(6, 1)
    want = make(Net())(y, s)
    assert want.dtype == torch.float32
    kept = y.clone(), s.clone()
    assert_same_bytes(make(Writing())(y, s), want)
    for value, before in zip((y, s), kept, strict=True):
        assert_same_bytes(value, before)
    assert_same_bytes(make(DataParallel(Net()))(y, s), want)
    scripted = torch.jit.trace(Net(), (y, s))
    torch.testing.assert_close(make(scripted)(y, s), want)
    compiled = torch.compile(make(Net()), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(y, s), want)
    assert not torch.equal(make(Net())(y, s, shift=shift), want)
    torch.testing.assert_close(make(Net().double())(y.double(), s.double()).float(), want)
    half = make(Net().bfloat16())(y.bfloat16(), s)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), want, rtol=0.1, atol=0.1 / 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        auto = make(Net())(y, s)
    assert auto.dtype == torch.float32
    with pytest.raises(ValueError, match=r"x must be of the model's dtype torch.bfloat16"):
        make(Net().bfloat16())(y, s)
    y.requires_grad_()
    assert torch.autograd.grad(make(Net())(y, s).square().sum(), y)[0].isfinite().all()
    number = make(Net())(y, 0.5)
    assert_same_bytes(number, make(Net())(y, torch.full((6,), 0.5)))
    with pytest.raises(ValueError, match=r"floating-point noise levels of shape \(6,\)"):
        make(Net())(y, S[:2])
    with pytest.raises(ValueError, match="model must be a model whose output"):
        make(lambda x, c: x[:, :1])(y, s)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ProcessScore(3, sde.VP()), TypeError, "net must be callable"),
        (lambda: ProcessScore(Net(), SIGMAS), TypeError, "process must be a process: "),
        (lambda: ProcessScore(Net(), sde.VP), TypeError, "got the class VP"),
        (
            lambda: ProcessScore(Net(), sde.VP(), prediction="z"),
            ValueError,
            "prediction must be on",
        ),
        (
            lambda: ProcessScore(Net(), sde.VP(), conditioning="none"),
            ValueError,
            "net|model must be",
        ),
        (
            lambda: ProcessScore(Net(), sde.VP(), conditioning="index"),
            ValueError,
            "sigmas or betas",
        ),
        (
            lambda: ProcessScore(Net(), sde.VP(), sigmas=SIGMAS),
            ValueError,
            "sigmas must be left out",
        ),
        (
            lambda: ProcessScore(Net(), sde.VE(), time_scale=2),
            ValueError,
            "time_scale must be left",
        ),
        (
            lambda: NetworkScore(Net(), prediction="velocity"),
            ValueError,
            "fastscore.sde.ProcessScore",
        ),
        (
            lambda: NetworkScore(Net(), conditioning="time"),
            ValueError,
            "fastscore.sde.ProcessScore",
        ),
        (lambda: EDMDenoiser(Net(), sigma_data=0), ValueError, "sigma_data must be positive"),
        (lambda: EDMDenoiser(fastscore.nn.ScoreMLP(2)), ValueError, "net must be a raw network of"),
        (lambda: EDMDenoiser(Net(prediction="eps")), ValueError, "got one of prediction='eps'"),
        (lambda: EDMDenoiser(None), TypeError, "EDMDenoiser: net must be callable"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_what_it_says_of_itself() -> None:
    net = Net(prediction="eps", conditioning="time", time_scale=999.0, data_shape=(2,))
    model = ProcessScore(net, Straight())
    assert model.net_prediction == "eps"
    assert model.time_scale == 999
    assert model.data_shape == (2,)
    assert "conditioning='time', prediction='eps', time_scale=999.0" in repr(model)
    assert "VP(beta_min=0.1, beta_max=20.0)" in repr(ProcessScore(Net(), sde.VP()))
    assert "net=<lambda>" in repr(ProcessScore(lambda x, t: -x, sde.VP()))
    assert "sigma_data=0.5" in repr(EDMDenoiser(Net()))
    with pytest.raises(ValueError, match="prediction must be left out for Net, a model of"):
        ProcessScore(net, sde.VP(), prediction="score")


# ---- EDM ----------------------------------------------------------------------------------------


def test_edm_is_karras_table_1() -> None:
    torch.manual_seed(0)
    net, sd = Net().double(), 0.7
    n = (S**2 + sd**2)[:, None].sqrt()
    want = sd**2 / n**2 * Y + S[:, None] * sd / n * net(Y / n, S.log() / 4)
    denoiser = EDMDenoiser(net, sigma_data=sd)
    torch.testing.assert_close(denoiser(Y, S), want, rtol=1e-12, atol=1e-12)
    score = NetworkScore(denoiser)
    torch.testing.assert_close(score(Y, S), (want - Y) / S[:, None] ** 2)
    got = fastscore.annealed_langevin(denoiser, SIGMAS, shape=(5, 2), seed=0, dtype=torch.float64)
    want = fastscore.annealed_langevin(score, SIGMAS, shape=(5, 2), seed=0, dtype=torch.float64)
    torch.testing.assert_close(got, want)


def test_edm_of_the_data_it_is_made_for() -> None:
    """N(0, sd^2): F = 0 is exact, at every level, in half precision too."""
    denoiser = EDMDenoiser(lambda x, c: torch.zeros_like(x))
    want = Y * 0.25 / (0.25 + S[:, None] ** 2)
    torch.testing.assert_close(denoiser(Y, S), want)
    low = denoiser(Y.half(), S.float())
    torch.testing.assert_close(low.double(), want, rtol=2e-3, atol=1e-3)
    x = 0.5 * randn(4000, 2)
    loss = fastscore.dsm_loss(denoiser, x, SIGMAS, seed=0)
    s2 = SIGMAS.double().square()
    torch.testing.assert_close(loss.double(), (0.25 / (0.25 + s2)).mean(), rtol=0.05, atol=0)


# ---- the noise levels that a model knows --------------------------------------------------------


def test_who_knows_its_noise_levels() -> None:
    net = Net()
    for model in (net, EpsScore(net), EDMDenoiser(net), EnergyScore(lambda x, s: x.sum(1))):
        assert sigma_range_of(model) is None
    assert sigma_range_of(MIXTURE) is None
    by_index = EpsScore(net, conditioning="index", sigmas=[3.0, 1.0, 0.5])
    assert sigma_range_of(by_index) == (0.5, 3)
    assert sigma_range_of(ProcessScore(net, sde.VE())) == pytest.approx((0.01, 50))
    vp = sde.VP()
    want = float(vp.noise_level(vp.t_eps)), float(vp.noise_level(1.0))
    assert sigma_range_of(ProcessScore(net, vp)) == want == vp.sigma_range
    net.sigma_range = (0.1, 4)
    for model in (
        net,
        DataParallel(net),
        partial(net),
        net.forward,
        torch.compile(net, backend="eager"),
    ):
        assert sigma_range_of(model) == (0.1, 4)
    for made in (EpsScore(net), EDMDenoiser(net), ProcessScore(net, sde.VP())):
        assert sigma_range_of(made) == (0.1, 4)
        made.sigma_range = (0.2, 3)
        assert sigma_range_of(made) == (0.2, 3)
    assert sigma_range_of(by_index) == (0.1, 4)
    energy = nn.Linear(2, 1)
    energy.sigma_range = (0.3, 5)
    assert sigma_range_of(EnergyScore(energy)) == (0.3, 5)
    for wrong in ((1.0, 0.5), (-1, 2), (1,), (0, float("inf")), (1, 2, 3)):
        net.sigma_range = wrong
        with pytest.raises(ValueError, match="sigma_range_of: the model's sigma_range must be"):
            sigma_range_of(net)
    net.sigma_range = 5.0
    with pytest.raises(TypeError, match="the model's sigma_range must be two noise levels"):
        sigma_range_of(net)


def test_a_moving_average_and_a_checkpoint_keep_them(tmp_path: Path) -> None:
    path, net = tmp_path / "net.safetensors", fastscore.nn.ScoreMLP(2, hidden=(4,))
    assert net.sigma_range is None
    ema = fastscore.nn.EMA(net)
    fastscore.save_checkpoint(path, fastscore.Checkpoint(ema, SIGMAS))
    ends = float(SIGMAS[-1]), float(SIGMAS[0])
    loaded = fastscore.load_checkpoint(path)
    assert sigma_range_of(loaded.model) == pytest.approx(ends)
    net.sigma_range = sde.VP().sigma_range
    ema.update()
    assert sigma_range_of(ema.module) == net.sigma_range
    fastscore.save_checkpoint(path, fastscore.Checkpoint(ema, SIGMAS))
    assert sigma_range_of(fastscore.load_checkpoint(path).model) == net.sigma_range


def test_adapters_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    for make, others in (
        (MAKERS["edm"], [lambda net: EDMDenoiser(net, sigma_data=1.0), EpsScore]),
        (MAKERS["process"], [lambda net: ProcessScore(net, sde.VP(0.2), prediction="eps")]),
        (MAKERS["v"], [EpsScore]),
        (
            lambda net: ProcessScore(net, sde.DDPM(LINEAR), conditioning="index"),
            [lambda net: ProcessScore(net, sde.DDPM(LINEAR / 2), conditioning="index")],
        ),
        (
            lambda net: ProcessScore(net, Straight()),
            [lambda net: ProcessScore(net, sde.RectifiedFlow())],
        ),
    ):
        model = make(Net())
        fastscore.save_checkpoint(path, fastscore.Checkpoint(model, SIGMAS, data_shape=(2,)))
        fresh = Net()
        nn.init.zeros_(fresh.layers[0].weight)
        loaded = fastscore.load_checkpoint(path, model=make(fresh))
        assert_same_bytes(loaded.model(Y.float(), S), model(Y.float(), S))
        assert loaded.sample(3, seed=0).shape == (3, 2)
        for other in others:
            with pytest.raises(ValueError, match=r"model must be (one with an adapter of|called)"):
                fastscore.load_checkpoint(path, model=other(Net()))
