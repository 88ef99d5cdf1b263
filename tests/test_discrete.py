"""Bits per dimension of discrete data, against masses that are known."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes
from torch import Tensor, nn

import fastscore
from fastscore.evaluation import (
    bits_per_dim,
    dequantize,
    discrete,
    discrete_log_likelihood,
    log_likelihood,
)
from fastscore.scores import GaussianMixture

VE = fastscore.sde.VE(0.02, 30.0)
TIGHT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "prior": (0.5, 0.3), "seed": 0}
WEIGHTS, MEANS, VARIANCE = (0.3, 0.7), (0.2, 0.7), 0.02


def mixture(shift: float = 0.0, scale: float = 1.0) -> GaussianMixture:
    """One dimension, float64."""
    means = torch.tensor(MEANS, dtype=torch.float64)[:, None] * scale + shift
    return GaussianMixture(list(WEIGHTS), means, VARIANCE * scale**2)


def mass(number: Tensor, levels: int) -> Tensor:
    """What the mixture, with the noise of t_eps, has in the box of each level of [0, 1]."""
    deviation = math.sqrt(VARIANCE + 0.02**2)

    def below(edge: Tensor) -> Tensor:
        parts = [
            w * torch.special.ndtr((edge - m) / deviation)
            for w, m in zip(WEIGHTS, MEANS, strict=True)
        ]
        return torch.stack(parts).sum(0)

    lower = number.double() / levels
    return below(lower + 1 / levels) - below(lower)


def digits(n: int, dims: int = 3) -> Tensor:
    return torch.randint(17, (n, dims), generator=torch.Generator().manual_seed(0))


def model(dims: int = 3) -> GaussianMixture:
    means = torch.tensor([0.3, 0.6])[:, None].expand(2, dims).contiguous()
    return GaussianMixture([0.5, 0.5], means, 0.05)


# ---- truths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [4, 17])
def test_the_mass_of_the_boxes_and_its_bounds(levels: int) -> None:
    """Of 500 samples of each level, each with draws of its own."""
    copies = 500
    number = torch.arange(levels).repeat_interleave(copies)[:, None]
    x, options = number.double() / (levels - 1), {**TIGHT, "levels": levels}

    def of_each_level(**more: Any) -> Tensor:
        return discrete_log_likelihood(mixture(), x, VE, **options, **more).log_prob.reshape(
            levels, copies
        )

    one = of_each_level()
    true = mass(torch.arange(levels), levels).log()
    estimate = one.logsumexp(1) - math.log(copies)
    torch.testing.assert_close(estimate, true, atol=0.2, rtol=0)
    assert float((estimate - true).mean()) == pytest.approx(0, abs=0.03)
    # The mean of log p over the box, by the midpoint rule.
    noise = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    places = (torch.arange(levels).double()[:, None] + noise) / levels
    over_box = mixture().log_prob(places.reshape(-1, 1), 0.02).reshape(levels, -1).mean(1)
    torch.testing.assert_close(one.mean(1), over_box - math.log(levels), atol=0.3, rtol=0)
    assert float((one.mean(1) - over_box).mean()) == pytest.approx(-math.log(levels), abs=0.03)
    # Several draws: on average the mean is that of one, the other between it and the truth.
    mean = of_each_level(draws=4).mean()
    weighted = of_each_level(draws=4, average="log_mean_exp").mean()
    assert float(mean) == pytest.approx(float(one.mean()), abs=0.03)
    assert float(mean) < float(weighted) < float(true.mean())
    assert float(true.mean() - weighted) < 0.5 * float(true.mean() - mean)


def test_bits_do_not_hang_on_the_units_of_the_data() -> None:
    x = torch.arange(17)[:, None]
    unit = discrete_log_likelihood(mixture(), x.double() / 16, VE, levels=17, **TIGHT)
    doubled = fastscore.sde.VE(0.04, 60.0)
    options = {**TIGHT, "prior": (0.0, 0.6), "levels": 17, "data_range": (-1.0, 1.0)}
    both = discrete_log_likelihood(mixture(-1.0, 2.0), x.double() / 8 - 1, doubled, **options)
    torch.testing.assert_close(both.bits, unit.bits, atol=0.01, rtol=0)


# ---- what it is made of --------------------------------------------------------------------------


def test_it_is_the_density_of_the_dequantised() -> None:
    x = digits(9)
    draws = [
        log_likelihood(model(), dequantize(x, 17, seed=3, draw=d), VE, seed=3) for d in range(3)
    ]
    one = discrete_log_likelihood(model(), x, VE, levels=17, seed=3)
    assert_same_bytes(one.bits, bits_per_dim(draws[0].log_prob, (3,), 17))
    assert_same_bytes(one.evaluations, draws[0].evaluations)
    together = torch.stack([each.log_prob for each in draws])
    for average, value in (
        ("mean", together.mean(0)),
        ("log_mean_exp", together.logsumexp(0) - math.log(3)),
    ):
        found = discrete_log_likelihood(model(), x, VE, levels=17, seed=3, draws=3, average=average)
        assert_same_bytes(found.bits, bits_per_dim(value, (3,), 17))
        assert torch.equal(found.evaluations, sum(each.evaluations for each in draws))
    assert found.mean_bits == pytest.approx(float(found.bits.mean()))
    assert found.stderr == pytest.approx(float(found.bits.std()) / 3)
    assert repr(found).startswith("DiscreteLikelihood(9 samples, ")
    with pytest.raises(AttributeError):
        found.bits = found.bits  # type: ignore[misc]


def test_a_sample_is_itself_in_any_batch() -> None:
    x, how = digits(9), {"levels": 17, "draws": 2}
    whole = discrete_log_likelihood(model(), x, VE, seed=3, **how)
    rest = discrete_log_likelihood(model(), x[4:], VE, seed=3, sample_offset=4, **how)
    assert_same_bytes(rest.bits, whole.bits[4:])
    some = torch.tensor([7, 2])
    chosen = discrete_log_likelihood(model(), x[some], VE, seed=3, samples=some, **how)
    assert_same_bytes(chosen.log_prob, whole.log_prob[some])
    own = discrete_log_likelihood(model(), x[:2], VE, seed=[5, 6], **how)
    alone = discrete_log_likelihood(model(), x[1:2], VE, seed=6, **how)
    assert_same_bytes(own.bits[1:], alone.bits)
    chunked = discrete_log_likelihood(model(), x, VE, seed=3, chunk_size=2, **how)
    assert_same_bytes(chunked.bits, whole.bits)


def test_where_the_seed_comes_from() -> None:
    x = digits(4)

    def found(**options: Any) -> Tensor:
        return discrete_log_likelihood(model(), x, VE, levels=17, draws=2, **options).bits

    torch.manual_seed(1)
    first = found()
    assert not torch.equal(first, found())
    torch.manual_seed(1)
    assert_same_bytes(found(), first)
    assert_same_bytes(found(generator=torch.Generator().manual_seed(1)), first)


def test_the_probes_are_the_same_in_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, dict[str, Any]]] = []

    def spy(model: Any, x: Tensor, sde: Any, **options: Any) -> Any:
        seen.append((x, options))
        return log_likelihood(model, x, sde, **options)

    monkeypatch.setattr(discrete, "log_likelihood", spy)
    discrete_log_likelihood(
        model(), digits(3), VE, levels=17, draws=3, divergence="hutchinson", probes=2
    )
    assert len(seen) == 3
    assert all(options == seen[0][1] for _, options in seen)
    assert isinstance(seen[0][1]["seed"], int)
    assert not torch.equal(seen[0][0], seen[1][0])


class Double(nn.Module):
    """A network of float64 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64))
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.seen.add(x.dtype)
        return (self.mean - x) / (0.05 + sigma[:, None] ** 2)


def test_integers_become_what_the_network_takes() -> None:
    net = Double()
    discrete_log_likelihood(net, digits(3), VE, levels=17)
    assert net.seen == {torch.float64}
    net = net.float()
    net.seen.clear()
    discrete_log_likelihood(net, digits(3).to(torch.uint8), VE, levels=17)
    assert net.seen == {torch.float32}


@pytest.mark.filterwarnings("ignore:log_likelihood")
def test_a_sample_that_fails_leaves_the_others_right() -> None:
    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        bad = (x > 0.9).all(1, keepdim=True) & (sigma[:, None] < 0.05)
        return torch.where(bad, torch.nan, model()(x, sigma))

    x = torch.full((4, 3), 8)
    x[2] = 16
    options: dict[str, Any] = {"levels": 17, "seed": 0, "failed": "return", "draws": 8}
    right = discrete_log_likelihood(model(), x, VE, divergence="exact", **options)
    found = discrete_log_likelihood(broken, x, VE, divergence="exact", **options)
    assert found.failed.tolist() == [False, False, True, False]
    assert found.bits.isnan().tolist() == found.failed.tolist()
    there = ~found.failed
    torch.testing.assert_close(found.bits[there], right.bits[there], atol=1e-3, rtol=0)
    assert math.isnan(found.mean_bits)


# ---- bad input -----------------------------------------------------------------------------------


def test_help_and_inspect_know_the_options() -> None:
    shown = inspect.signature(discrete_log_likelihood).parameters
    for name, parameter in inspect.signature(log_likelihood).parameters.items():
        assert shown[name].default == parameter.default, name
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"draws": 0}, ValueError, "draws must be at least 1, got 0"),
        ({"average": "median"}, ValueError, "average must be one of 'mean', 'log_mean_exp'"),
        ({"levels": 1}, ValueError, "levels must be at least 2"),
        ({"levels": 16}, ValueError, r"x must be integers of 0 to 15 .* got 16 in sample \d"),
        ({"x": torch.full((2, 3), 0.51)}, ValueError, r"x must be on the grid of 17 levels"),
        ({"x": [1]}, TypeError, "x must be a torch.Tensor"),
        ({"data_range": (1, 0)}, ValueError, "data_range must be a pair"),
        ({"prob": 3}, TypeError, r"there is no option 'prob' \(did you mean"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], error: Any, message: str
) -> None:
    no: Callable[..., Any] = lambda *a, **k: pytest.fail("work done")  # noqa: E731
    monkeypatch.setattr(discrete, "log_likelihood", no)
    x = digits(40)
    with pytest.raises(error, match=f"^discrete_log_likelihood: {message}"):
        discrete_log_likelihood(model(), **({"x": x, "sde": VE, "levels": 17} | change))


def test_an_error_needs_two_samples() -> None:
    one = discrete_log_likelihood(model(), digits(1), VE, levels=17)
    assert one.mean_bits == float(one.bits)
    assert repr(one) == "DiscreteLikelihood(1 samples)"
    with pytest.raises(ValueError, match="stderr must be asked of at least two samples, got 1"):
        _ = one.stderr
    none = discrete_log_likelihood(model(), digits(0), VE, levels=17)
    assert none.bits.shape == none.failed.shape == (0,)
    with pytest.raises(ValueError, match="mean_bits must be asked of at least one sample"):
        _ = none.mean_bits
