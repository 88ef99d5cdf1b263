"""Log densities of networks of real life: the right number, or a clear refusal."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy
import pytest
import torch
from continuous import MEAN, VARIANCE
from helpers import randn
from torch import Tensor, nn

import fastscore
from fastscore import log_likelihood, sde
from fastscore.scores import NetworkScore

VE = sde.VE(0.01, 20.0)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*at the highest noise level", "ignore:.*(the latents|the data's mean square)"
)


# ---- networks of real life -----------------------------------------------------------------------


class Net(nn.Module):
    """A trained network stands for the data N(MEAN, VARIANCE); what is around it varies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = VARIANCE + sigma.reshape(-1, *[1] * (x.dim() - 1)) ** 2
        return self.scale * (MEAN - x) / variance


class InPlace(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.square_().add_(VARIANCE)[:, None]
        return x.neg_().add_(MEAN).div_(variance)


class OwnBuffer(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        output = super().forward(x, sigma)
        if torch.is_grad_enabled():
            return output
        if not hasattr(self, "kept") or self.kept.shape != x.shape:
            self.kept = torch.empty_like(x)
        return self.kept.copy_(output)


class SameBuffer(Net):
    """Returns the same memory each time, also while gradients are recorded."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        output = super().forward(x, sigma)
        kept = getattr(self, "kept", torch.zeros(64, 12, dtype=x.dtype)).detach()
        kept[: len(x)] = output
        self.kept = kept
        return kept[: len(x)]


class RingOfBuffers(Net):
    """Memory that comes back after eight calls."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        output = super().forward(x, sigma)
        if torch.is_grad_enabled():
            return output
        ring = self.__dict__.setdefault("ring", [])
        if len(ring) < 8:
            ring.append(torch.zeros(64, 12, dtype=x.dtype))
        else:
            ring.append(ring.pop(0))
        return ring[-1][: len(x)].copy_(output)


class WritesToItsInput(Net):
    """In ways that autograd can't follow back."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        x[:, 1:] *= x[:, :1] * 0 + 1
        x[:, 2:].mul_(1.0)
        return super().forward(x, sigma)


class Differentiates(Net):
    """An energy whose gradient is taken inside."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = ((x - MEAN).square() / (VARIANCE + sigma[:, None] ** 2)).sum() / 2
            return -torch.autograd.grad(energy, x, create_graph=True)[0]


class Compiled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(Net(), backend="eager")

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x, sigma)


class Checkpointed(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(super().forward, x, sigma, use_reentrant=False)  # type: ignore[no-any-return]


def scripted() -> Any:
    class Plain(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return (0.7 - x) / (0.25 + sigma[:, None] ** 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Plain())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize(
    "make",
    [
        Net,
        InPlace,
        OwnBuffer,
        SameBuffer,
        RingOfBuffers,
        WritesToItsInput,
        Differentiates,
        Compiled,
        Checkpointed,
        scripted,
    ],
)
def test_networks_of_real_life(make: Any, divergence: str) -> None:
    x = MEAN + VARIANCE**0.5 * randn(3, 12, dtype=torch.float64)
    how: dict[str, Any] = {"divergence": divergence, "seed": 0, "prior": (MEAN, VARIANCE**0.5)}
    found = log_likelihood(make(), x, VE, rtol=1e-6, atol=1e-6, **how)
    v = VARIANCE + 1e-4
    exact = -0.5 * ((x - MEAN).square() / v + math.log(2 * math.pi * v)).sum(1)
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=1e-3)


def test_networks_of_the_library() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 8, 8)
    conv = fastscore.nn.ScoreConvNet(channels=1, image_size=8).eval()
    for weight in conv.parameters():  # the last layer is zero before it is trained
        nn.init.normal_(weight, std=0.05)
    exact = log_likelihood(conv, x, VE, divergence="exact")
    probes = log_likelihood(conv, x, VE, divergence="hutchinson", probes=256, seed=0)
    assert ((probes.log_prob - exact.log_prob) / probes.stderr).abs().max() < 4
    average = fastscore.nn.EMA(conv)
    same = log_likelihood(average.module, x, VE, divergence="exact")
    torch.testing.assert_close(same.log_prob, exact.log_prob)
    adapter = NetworkScore(conv)
    same = log_likelihood(adapter, x, VE, divergence="exact")
    torch.testing.assert_close(same.log_prob, exact.log_prob)


# ---- what is refused -----------------------------------------------------------------------------


class Dropped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(self.drop(x), sigma)


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(self.norm(x), sigma)


class Mixing(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x - 0.1 * x.mean(0), sigma)


class PartlyDetached(Net):
    """A score and a gradient that is taken inside, with no graph: as guidance is often written."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x if x.requires_grad else x.detach().requires_grad_()
            (pull,) = torch.autograd.grad(torch.tanh(y - 0.5).square().sum(), y)
        return super().forward(x, sigma) - 2 * pull


class PartlyHalf(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x.bfloat16(), sigma).float()


class Detached(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x.detach(), sigma).detach()


class OfNumpy(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        y = (MEAN - x.detach().numpy()) / (VARIANCE + sigma.detach().numpy()[:, None] ** 2)
        return torch.from_numpy(numpy.asarray(y))


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x, sigma)


class Half(Net):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x, sigma).bfloat16()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "auto"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Dropped, "draws random numbers|dropout"),
        (Normed, "BatchNorm"),
        (Mixing, "depend on one another"),
        (Detached, "differentiable in x"),
        (PartlyDetached, "differentiable in x, all of it"),
        (PartlyHalf, "half precision"),
        (OfNumpy, "differentiable in x"),
        (WithoutGradients, "differentiable in x"),
        (Half, "half precision"),
        (lambda: Net().bfloat16(), "half precision"),
    ],
)
def test_networks_that_are_refused(make: Any, message: str, divergence: str) -> None:
    with pytest.raises(ValueError, match=f"log_likelihood: model must be.*({message})"):
        log_likelihood(make(), randn(4, 12), VE, divergence=divergence, seed=0)


def test_a_function_that_mixes_its_batch_is_refused() -> None:
    net = Mixing()
    with pytest.raises(ValueError, match="changes with the others in its batch"):
        log_likelihood(lambda x, s: net(x, s), randn(4, 12), VE, seed=0)


def test_networks_are_right_in_evaluation_mode() -> None:
    x = randn(3, 12)
    for make in (Dropped, Normed):
        found = log_likelihood(make().eval(), x, VE, seed=0)
        assert bool(found.log_prob.isfinite().all())


def test_autocast_is_refused() -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"torch\.autocast"),
    ):
        log_likelihood(Net(), randn(2, 3), VE)


class OfFour(Net):
    """One that takes four samples, and no other number."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert len(x) == len(sigma) == 4
        return super().forward(x, sigma)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_network_of_a_fixed_batch(divergence: str) -> None:
    x = randn(7, 12)
    how: dict[str, Any] = {"divergence": divergence, "seed": 0}
    found = log_likelihood(OfFour(), x, VE, batch_size=4, **how)
    expected = log_likelihood(Net(), x, VE, **how)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=0, atol=1e-3)


def test_a_sample_that_fails_hides_no_missing_part() -> None:
    """Of the samples that derivatives are compared at, one is NaN from some level on."""

    class Fails(PartlyDetached):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 50, torch.nan, super().forward(x, sigma))

    x = randn(6, 12)
    x[1, 0] = 60.0
    with pytest.raises(ValueError, match="differentiable in x, all of it"):
        log_likelihood(Fails(), x, VE, divergence="hutchinson", seed=0, failed="return")
