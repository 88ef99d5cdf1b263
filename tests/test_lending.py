"""Networks that write to what they are handed, or keep it: nobody sees that."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from helpers import assert_same_bytes, randn
from samplers import SIGMAS, Sampler, every_sampler, gaussian_score, run_annealed
from torch import Tensor, nn

import fastscore
from fastscore._support.lending import is_untouched, lend
from fastscore.scores import DenoiserScore, EnergyScore, EpsScore


def embed(x: Tensor, sigma: Tensor) -> Tensor:
    """A score that depends on sigma by an embedding."""
    return -x / (1 + sigma.log().reshape(-1, *[1] * (x.dim() - 1)) ** 2)


def writes_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    out = embed(x, sigma)
    sigma *= 50.0
    return out


def writes_sigma_unseen(x: Tensor, sigma: Tensor) -> Tensor:
    out = embed(x, sigma)
    sigma.data.mul_(50.0)
    sigma.numpy()[:] += 1
    return out


def writes_x(x: Tensor, sigma: Tensor) -> Tensor:
    out = embed(x, sigma)
    x.mul_(7.0)
    return out


def writes_x_unseen(x: Tensor, sigma: Tensor) -> Tensor:
    out = embed(x, sigma)
    x.data.mul_(7.0)
    return out


def works_in_place(x: Tensor, sigma: Tensor) -> Tensor:
    return x.neg_().div_(1 + sigma.log_().reshape(-1, *[1] * (x.dim() - 1)) ** 2)


def writes_late(x: Tensor, sigma: Tensor) -> Tensor:
    out = embed(x, sigma)
    if float(sigma[0]) < 1.5:
        x.zero_()
    return out


WRITERS = [
    writes_sigma,
    writes_sigma_unseen,
    writes_x,
    writes_x_unseen,
    works_in_place,
    writes_late,
]
writers = pytest.mark.parametrize("model", WRITERS)


@writers
@every_sampler
def test_samplers(sampler: Sampler, steps: int, model: Callable[..., Tensor]) -> None:
    x = randn(4, 3)
    before = x.clone()
    assert_same_bytes(sampler(x, model, seed=0), sampler(x, embed, seed=0))
    assert_same_bytes(x, before)


@pytest.mark.parametrize("conditioning", ["index", "log_sigma"])
def test_samplers_whose_model_writes_what_conditions_it(conditioning: str) -> None:
    def reads(x: Tensor, given: Tensor) -> Tensor:
        return -x / (1 + given.to(x.dtype).square())[:, None]

    def writes(x: Tensor, given: Tensor) -> Tensor:
        out = reads(x, given)
        given += 1
        return out

    options: dict[str, Any] = {"conditioning": conditioning, "seed": 0}
    want = run_annealed(randn(4, 3), reads, **options)
    assert_same_bytes(run_annealed(randn(4, 3), writes, **options), want)


@every_sampler
def test_what_a_model_keeps_stays_as_it_was(sampler: Sampler, steps: int) -> None:
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    copies: list[tuple[Tensor, Tensor, Tensor]] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        kept.append((x, x[:, 0], sigma))
        copies.append((x.clone(), x[:, 0].clone(), sigma.clone()))
        return embed(x, sigma)

    assert_same_bytes(sampler(randn(4, 3), model, seed=0), sampler(randn(4, 3), embed, seed=0))
    assert len(kept) == steps
    for now, before in zip(kept, copies, strict=True):
        for a, b in zip(now, before, strict=True):
            assert_same_bytes(a, b)


@writers
@pytest.mark.parametrize("kind", [EpsScore, DenoiserScore])
@pytest.mark.parametrize("sigma", [2.0, torch.tensor(2.0), torch.full((4,), 2.0)])
def test_adapters(kind: type, sigma: Any, model: Callable[..., Tensor]) -> None:
    x = randn(4, 3)
    before, level = x.clone(), torch.as_tensor(sigma).clone()
    assert_same_bytes(kind(model)(x, sigma), kind(embed)(x, sigma))
    assert_same_bytes(x, before)
    assert torch.equal(torch.as_tensor(sigma), level)


def test_an_energy_that_works_in_place() -> None:
    def plain(x: Tensor, sigma: Tensor) -> Tensor:
        return (x.relu() * 2 / sigma[:, None]).square().sum(1)

    def in_place(x: Tensor, sigma: Tensor) -> Tensor:
        h = nn.functional.relu(x, inplace=True) * 2
        sigma.reciprocal_()
        return h.mul(sigma[:, None]).square().sum(1)

    x, sigma = randn(4, 3), torch.full((4,), 2.0)
    want = EnergyScore(plain)(x, sigma)
    torch.testing.assert_close(EnergyScore(in_place)(x, sigma), want)
    torch.testing.assert_close(x, randn(4, 3))
    assert sigma.tolist() == [2.0] * 4
    x.requires_grad_()
    (got,) = torch.autograd.grad(EnergyScore(in_place)(x, sigma).sum(), x)
    torch.testing.assert_close(got, torch.where(x > 0, -2.0, 0.0))


@writers
def test_losses(model: Callable[..., Tensor]) -> None:
    x = randn(4, 3)
    before = x.clone()
    if model is not writes_sigma_unseen:
        net = Gain(model)
        want = fastscore.dsm_loss(Gain(embed), x, SIGMAS, seed=0)
        got = fastscore.dsm_loss(net, x, SIGMAS, seed=0)
        assert_same_bytes(got, want)
        got.backward()
        assert net.gain.grad is not None
    want = fastscore.fisher_divergence(embed, gaussian_score, x, 2.0)
    assert_same_bytes(fastscore.fisher_divergence(model, gaussian_score, x, 2.0), want)
    assert_same_bytes(fastscore.fisher_divergence(gaussian_score, model, x, 2.0), want)
    assert_same_bytes(x, before)


@pytest.mark.parametrize("model", [writes_sigma, writes_x, works_in_place])
def test_derivatives(model: Callable[..., Tensor]) -> None:
    x, sigma, v = randn(4, 3), torch.full((4,), 2.0), randn(4, 3, seed=1)
    before = x.clone()
    for method in ("hutchinson", "exact"):
        options: dict[str, Any] = {"method": method, "seed": 0}
        want = fastscore.divergence(embed, x, sigma, **options)
        torch.testing.assert_close(fastscore.divergence(model, x, sigma, **options), want)
        assert sigma.tolist() == [2.0] * 4
    for call in (
        lambda net: fastscore.jvp(net, x, v, sigma),
        lambda net: fastscore.jvps(net, x, v[None], sigma),
        lambda net: fastscore.quadratic_forms(net, x, v[None], sigma),
    ):
        torch.testing.assert_close(call(model), call(embed))
        assert sigma.tolist() == [2.0] * 4
    for method in ("forward", "reverse", "finite_difference", "exact", "auto"):
        options = {"method": method, "sigmas": SIGMAS, "seed": 0, "projections": 2}
        net, good = Gain(model), Gain(embed)
        got, want = (fastscore.ssm_loss(m, x, **options) for m in (net, good))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        got.backward()
        want.backward()
        torch.testing.assert_close(net.gain.grad, good.gain.grad, rtol=1e-3, atol=1e-3)
    assert_same_bytes(x, before)


class Gain(nn.Module):
    """A model with a parameter, after another."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.model = model

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        return self.gain * self.model(x, *args)


@pytest.mark.parametrize("layout", ["contiguous", "expanded", "numpy"])
def test_lending(layout: str) -> None:
    x = torch.arange(3.0)
    if layout == "expanded":
        x = torch.tensor([1.0]).expand(3)
    elif layout == "numpy":
        x = torch.from_numpy(numpy.arange(3.0))
    before = x.clone()
    lent = lend(x)
    assert torch.equal(lent, before)
    if layout != "expanded":  # which nobody can write to
        lent += 1
        assert torch.equal(x, before)
        kept = lend(x)
        x += 1
        assert torch.equal(kept, before)


def test_lending_copies_nothing_where_nobody_writes() -> None:
    x = randn(1000)
    lent = lend(x)
    assert is_untouched(lent)
    _ = nn.Linear(1000, 3)(lent)
    assert is_untouched(lent)
    lent.add_(1)
    assert not is_untouched(lent)


# ---- what is lent by name -----------------------------------------------------------------------


class Attributes(dict):
    """A dictionary of a class of its own, as configurations are."""

    __getattr__ = dict.__getitem__


class Pair(NamedTuple):
    a: Tensor
    b: str


def everything_by_name() -> dict[str, Any]:
    factor = torch.full((4, 1), 2.0)
    return {
        "plain": factor,
        "same": factor,
        "listed": [torch.full((4, 1), 0.5), "name"],
        "pair": Pair(torch.full((4, 1), 1.5), "name"),
        "inner": Attributes(deep={"deeper": (torch.full((4, 1), 0.25),)}),
        "collected": [],
        "table": fastscore.shared(torch.ones(4, 1)),
    }


def takes_everything(x: Tensor, *sigma: Tensor, **given: Any) -> Tensor:
    assert given["plain"] is given["same"]
    assert isinstance(given["pair"], Pair)
    assert type(given["inner"]) is Attributes
    tensors = (
        given["plain"],
        given["listed"][0],
        given["pair"].a,
        given["inner"].deep["deeper"][0],
        given["table"],
    )
    out = -x
    for tensor in tensors:
        assert type(tensor) is Tensor
        tensor.mul_(4.0)
        tensor.unsqueeze_(0)
        out = out * (tensor[0] / 4)
    given["inner"].pop("deep")
    given["collected"].append(len(x))
    return out


def test_whatever_a_network_does_to_what_it_gets_by_name() -> None:
    x, given, before = randn(4, 3), everything_by_name(), everything_by_name()
    calls: list[Callable[..., Any]] = [
        lambda f, **o: run_annealed(x, f, seed=0, **o),
        lambda f, **o: fastscore.dsm_loss(f, x, SIGMAS, seed=0, **o),
        lambda f, **o: fastscore.divergence(f, x, seed=0, **o),
        lambda f, **o: fastscore.fisher_divergence(f, lambda x: -x, x, **o),
        *(
            lambda f, m=method, **o: fastscore.ssm_loss(f, x, seed=0, method=m, **o)
            for method in ("forward", "reverse", "finite_difference", "exact", "auto")
        ),
    ]
    for call in calls:
        want = call(lambda x, *sigma: -x * (2 * 0.5 * 1.5 * 0.25))
        torch.testing.assert_close(call(takes_everything, model_kwargs=given), want)
    assert given["collected"]  # a list without tensors is the caller's own
    given["collected"] = []
    now, then = repr(given), repr(before)  # with every number
    assert now == then


def test_shapes_changed_in_place_are_no_ones_business() -> None:
    def turns(x: Tensor, sigma: Tensor, *, c: Tensor) -> Tensor:
        c.transpose_(1, 2)
        sigma.unsqueeze_(1)
        return -x / (1 + sigma) * c[:, :, 0]

    def good(x: Tensor, sigma: Tensor, *, c: Tensor) -> Tensor:
        return -x / (1 + sigma[:, None]) * c[:, 0]

    c = randn(4, 3, 3).abs()
    got, want = (run_annealed(randn(4, 3), f, seed=0, model_kwargs={"c": c}) for f in (turns, good))
    assert_same_bytes(got, want)


def test_arguments_that_share_no_memory() -> None:
    x, sparse = randn(4, 3), torch.eye(4).to_sparse()
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for given in ({"c": sparse}, {"c": quantised}):

        def model(x: Tensor, *sigma: Tensor, c: Tensor) -> Tensor:
            return -x * c.dequantize() if c.is_quantized else -(c @ x)

        for call in (
            lambda f, **o: run_annealed(x, f, seed=0, **o),
            lambda f, **o: fastscore.dsm_loss(f, x, SIGMAS, seed=0, **o),
            lambda f, **o: fastscore.divergence(f, x, seed=0, **o),
        ):
            want = call(lambda x, *sigma: -x)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.testing.assert_close(call(model, model_kwargs=given), want)


class Tagged(torch.Tensor):
    """A class of tensors of its own."""


def test_what_is_written_on_a_tensor_is_lent_with_it() -> None:
    for x in (torch.ones(2), torch.ones(2).as_subclass(Tagged)):
        x.note = "this"  # type: ignore[attr-defined]
        lent = lend(x)
        assert lent.note == "this"  # type: ignore[attr-defined]
        assert type(lent) is type(x)
        lent.mul_(2)
        assert x.tolist() == [1.0, 1.0]
