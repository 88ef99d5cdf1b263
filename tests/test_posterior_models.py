"""Posterior scores of every kind of score: exact ones, adapters, energies, networks as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, randn
from posteriors import F64, Matrix, some_matrix
from torch import Tensor, nn

import fastscore
from fastscore.guidance import DPS, MMPS, PiGDM
from fastscore.scores import (
    DenoiserScore,
    EDMDenoiser,
    EnergyScore,
    EpsScore,
    GaussianMixture,
    NetworkScore,
    Parzen,
)
from fastscore.sde import VP, ProcessScore

KINDS = [DPS, PiGDM, MMPS]
every_kind = pytest.mark.parametrize("kind", KINDS)
OPERATOR = Matrix(some_matrix(2, 4))
Y = torch.tensor([0.5, -0.3], dtype=F64)
DATA = randn(5, 4, dtype=F64, seed=5)
MIXTURE = GaussianMixture(torch.ones(5, dtype=F64), DATA, 0.2)
LEVELS = torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=F64)
POINTS = randn(4, 4, dtype=F64) * (1 + LEVELS[:, None])
VP_ = VP()


def in_time(x: Tensor, t: Tensor) -> Tensor:
    """The mixture's score at a time of the VP process."""
    alpha = VP_.alpha(t)[:, None]
    return MIXTURE(x / alpha, VP_.sigma(t) / VP_.alpha(t)) / alpha


def raw_of_edm(x: Tensor, noise: Tensor) -> Tensor:
    """What EDM's network must say for the mixture, told ln(s)/4 and x c_in."""
    s = (4 * noise).exp()[:, None]
    norm = (s.square() + 0.25).sqrt()
    y = x * norm
    mean = y + s.square() * MIXTURE(y, s[:, 0])
    return (mean - 0.25 / norm.square() * y) / (s * 0.5 / norm)


THE_SAME: dict[str, Any] = {
    "function": lambda x, sigma: MIXTURE(x, sigma),
    "parzen": Parzen(DATA, variance=0.2),
    "energy": EnergyScore(lambda x, sigma: -MIXTURE.log_prob(x, sigma)),
    "network": NetworkScore(lambda x, sigma: MIXTURE(x, sigma)),
    "eps": EpsScore(lambda x, sigma: -sigma[:, None] * MIXTURE(x, sigma)),
    "log_sigma": NetworkScore(lambda x, log: MIXTURE(x, log.exp()), conditioning="log_sigma"),
    "denoiser": DenoiserScore(lambda x, s: x + s[:, None] ** 2 * MIXTURE(x, s)),
    "edm": EDMDenoiser(raw_of_edm) and DenoiserScore(EDMDenoiser(raw_of_edm)),
    "process": ProcessScore(in_time, VP_),
}


@every_kind
@pytest.mark.parametrize("name", THE_SAME)
def test_every_score_of_the_same_data_is_guided_the_same(kind: Any, name: str) -> None:
    want = kind(MIXTURE, OPERATOR, Y)(POINTS, LEVELS).total()
    got = kind(THE_SAME[name], OPERATOR, Y)(POINTS, LEVELS).total().detach()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


class Net(nn.Module):
    """A small network of x and sigma."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 32), nn.Linear(32, 4)
        self.middle = nn.SiLU() if middle is None else middle

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.log().unsqueeze(1).to(x.dtype)
        out: Tensor = self.last(self.middle(self.first(torch.cat([x, level], 1))))
        return (out - x) / (1 + sigma.square().unsqueeze(1)).to(x.dtype)


class InPlace(Net):
    """Which writes to what it is handed, and hands out the same memory each time."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        plain = super().forward(x.clone(), sigma.clone())
        x.mul_(3.0)
        sigma += 1
        return plain


X32, S32, Y32 = POINTS.float(), LEVELS.float(), Y.float()
EVAL: dict[str, Callable[[], Any]] = {
    "in place": InPlace,
    "scripted": lambda: torch.jit.script(Net()),
    "compiled": lambda: torch.compile(Net(), backend="aot_eager"),
    "batch norm in evaluation": lambda: Net(nn.Sequential(nn.BatchNorm1d(32), nn.SiLU())).eval(),
    "dropout in evaluation": lambda: Net(nn.Sequential(nn.Dropout(0.5), nn.SiLU())).eval(),
}


@every_kind
@pytest.mark.parametrize("name", EVAL)
def test_networks_as_they_are(kind: Any, name: str) -> None:
    net = EVAL[name]()
    plain: Any = Net() if name in ("in place", "scripted", "compiled") else net
    x, sigma = X32.clone(), S32.clone()
    with torch.no_grad():
        got = kind(net, OPERATOR, Y32)(x, sigma).total()
        want = kind(copy.deepcopy(plain).double(), OPERATOR, Y)(POINTS, LEVELS).total()
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    assert_same_bytes(x, X32)
    assert_same_bytes(sigma, S32)


@every_kind
def test_modes_of_autograd_agree(kind: Any) -> None:
    model = kind(Net(), OPERATOR, Y32)
    with torch.no_grad():
        want = model(X32, S32).total()
    with torch.inference_mode():
        assert_same_bytes(model(X32.clone(), S32.clone()).total(), want)
    recorded = model(X32.clone().requires_grad_(), S32).total()
    assert recorded.requires_grad
    torch.testing.assert_close(recorded.detach(), want, rtol=1e-5, atol=1e-5)
    exact = kind(MIXTURE, OPERATOR, Y)(POINTS, LEVELS).total()
    assert not exact.requires_grad


@every_kind
def test_the_derivative_of_a_guided_score(kind: Any) -> None:
    """As the likelihood needs it: of x, and of the measurement."""
    model = kind(MIXTURE, OPERATOR)
    y = Y.expand(2, 2).clone().requires_grad_()
    x = POINTS[1:3].clone().requires_grad_()

    def score(x: Tensor, y: Tensor) -> Tensor:
        total: Tensor = model(x, LEVELS[1:3], measurement=y).total()
        return total

    assert torch.autograd.gradcheck(score, (x, y), rtol=1e-4, atol=1e-6)


@every_kind
def test_labels_reach_the_network_and_go_with_the_samples(kind: Any) -> None:
    shift = randn(3, 4, dtype=F64)

    def score(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return MIXTURE(x - shift[label], sigma)

    label = torch.tensor([2, 0, 1, 2])
    got = kind(score, OPERATOR, Y)(POINTS, LEVELS, label=label).total()
    for i in range(4):
        one = kind(lambda x, s, k=int(label[i]): MIXTURE(x - shift[k], s), OPERATOR, Y)
        want = one(POINTS[i : i + 1], LEVELS[i : i + 1]).total()
        torch.testing.assert_close(got[i : i + 1], want)


# ---- what is refused ----------------------------------------------------------------------------


class Detached(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x, sigma).detach()


class HalfDetached(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x.detach(), sigma) - 0.1 * x


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x, sigma)


class Mixing(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x - x.mean(0), sigma)


def of_relus(x: Tensor, sigma: Tensor) -> Tensor:
    weight = randn(64, 4, seed=9)
    return torch.relu(x @ weight.T).sum(1) / (1 + sigma.square())


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "batch norm": (
        lambda: Net(nn.Sequential(nn.BatchNorm1d(32), nn.SiLU())),
        "BatchNorm layer that takes the statistics",
    ),
    "mixing": (Mixing, "changes with the others in its batch"),
    "function that mixes": (
        lambda: lambda x, sigma: -x + x.mean(0),
        "changes with the others in its batch",
    ),
    "dropout": (lambda: Net(nn.Sequential(nn.SiLU(), nn.Dropout(0.5))), "draws random numbers"),
    "detached": (Detached, "no graph that leads to x"),
    "without gradients": (WithoutGradients, "no graph that leads to x"),
    "half detached": (HalfDetached, "differentiable in x, all of it"),
    "energy of ReLUs": (lambda: EnergyScore(of_relus), "energy whose second derivatives are 0"),
    "half output": (lambda: lambda x, sigma: -x.bfloat16(), "float32 or float64"),
}


@every_kind
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_what_would_be_wrong_is_refused(kind: Any, name: str, mode: Any) -> None:
    make, message = REFUSED[name]
    with mode(), pytest.raises(ValueError, match=f"{kind.__name__}: score must be .*{message}"):
        kind(make(), OPERATOR, Y32)(X32, S32)


def test_a_network_that_begins_to_mix_is_found_then() -> None:
    net = Net(nn.Sequential(nn.BatchNorm1d(32), nn.SiLU())).eval()
    model = PiGDM(net, OPERATOR, Y32)
    model(X32, S32)
    net.train()
    with pytest.raises(ValueError, match="BatchNorm layer"):
        model(X32, S32)


def test_looking_leaves_statistics_and_generators_alone() -> None:
    model = PiGDM(Net(), OPERATOR, Y32)
    before = torch.get_rng_state()
    model(X32, S32)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_looked_at_once() -> None:
    calls = []

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(len(x))
        return MIXTURE(x, sigma)

    model = MMPS(score, OPERATOR, Y)
    counts = []
    for _ in range(3):
        before = len(calls)
        model(POINTS, LEVELS)
        counts.append(len(calls) - before)
    assert counts[0] > 1
    assert counts[1:] == [1, 1]


# ---- half precision -----------------------------------------------------------------------------


@every_kind
def test_a_network_in_half_precision_is_refused_by_samplers_too(kind: Any) -> None:
    model = kind(Net().bfloat16(), OPERATOR, Y32)
    with pytest.raises(ValueError, match=f"{kind.__name__}: x must be float32 or float64"):
        fastscore.reverse_sde(model, fastscore.sde.VE(0.01, 10.0), shape=(2, 4), steps=3)


class Denoising(nn.Module):
    """A denoiser with an identity around its network, as EDM's: autocast rounds the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return 0.1 * self.net(x, (4 * noise).exp()).tanh()


@every_kind
def test_autocast(kind: Any) -> None:
    """Right where the derivative is float32 at its ends, refused where 1 is lost in rounding."""
    denoiser = DenoiserScore(EDMDenoiser(Denoising()))
    sigma = torch.full((4,), 2.0)
    x = 2 * randn(4, 4)
    with torch.no_grad():
        want = kind(denoiser, OPERATOR, Y32)(x, sigma).pairs[1][0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = kind(denoiser, OPERATOR, Y32)(x, sigma).pairs[1][0]
    off = (got - want).norm() / want.norm()
    assert 0 < float(off) < 0.03

    linear = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(4) * (1 / 3))
    eps = EpsScore(lambda x, s: linear(x) * 3 * s[:, None] / (1 + s[:, None] ** 2))
    kind(eps, OPERATOR, Y32)(x, sigma)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="score must be differentiable in float32"),
    ):
        kind(eps, OPERATOR, Y32)(3000 * x, 3000 * sigma)
