"""The times of a loss in continuous time: drawn, spread, weighted; and conditions dropped."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from continuous import every_process
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor

from fastscore import SDELoss, sde, sde_loss


def drawn(process: Any, key: Tensor | None = None, batch: int = 128, **options: Any) -> Tensor:
    """The times that a model is told."""
    told: list[Tensor] = []
    draws = {n: options.pop(n) for n in ("seed", "sample_offset", "samples") if n in options}
    loss_fn = SDELoss(process, conditioning="time", **options)
    loss_fn(lambda x, t: told.append(t) or x, torch.zeros(batch, 1).double(), key=key, **draws)
    return told[0]


def grid(count: int = 200_000) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@every_process
def test_distributions_of_times(process: sde.Process) -> None:
    low, high = (float(process.noise_level(t).log()) for t in (process.t_eps, process.t_max))
    uniform = drawn(process, seed=0, batch=4000)
    part = (uniform - process.t_eps) / (process.t_max - process.t_eps)
    logs = process.noise_level(drawn(process, seed=0, batch=4000, times="log_uniform")).log()
    normals = process.noise_level(drawn(process, seed=0, batch=4000, times="log_normal")).log()
    assert float(normals.min()) >= low - 1e-9
    assert float(normals.max()) <= high + 1e-9
    a, b = (math.erf((end + 1.2) / 1.2 / math.sqrt(2)) for end in (low, high))
    cdf = (torch.erf((normals + 1.2) / 1.2 / math.sqrt(2)) - a) / (b - a)
    for u in (part, (logs - low) / (high - low), cdf):
        error = (u.sort().values - grid(4000)).abs().max()
        assert float(error) < 2e-3  # of independent ones .02: these are spread


@every_process
@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "log_normal"])
def test_the_likelihood_weighting_has_one_expectation(process: sde.Process, kind: str) -> None:
    """The integral of g^2/sigma^2 f dt over its length, whatever the times are."""
    from fastscore.losses.sde import _prepare, _weights, declared_defaults

    options = declared_defaults() | {"weighting": "likelihood", "times": kind, "log_std": 3.0}
    prepared = _prepare("test", process, options)
    times = prepared.in_time.times
    t = times.of_uniform(grid())
    s = process.noise_level(t)

    def f(s: Tensor) -> Tensor:
        return s**2 / (1 + s**2) ** 2

    got = (_weights("test", prepared, t, s, s) * f(s)).mean()
    logs = torch.linspace(times.low, times.high, 200_001, dtype=torch.float64)
    want = 2 * torch.trapezoid(f(logs.exp()), logs) / (process.t_max - process.t_eps)
    torch.testing.assert_close(got, want, rtol=2e-4, atol=0)


def test_spread_times_vary_little_from_batch_to_batch() -> None:
    means: dict[bool, Tensor] = {}
    for stratified in (False, True):
        times = [drawn(sde.VP(), seed=seed, stratified=stratified) for seed in range(300)]
        means[stratified] = torch.stack(times).mean(1)
        assert abs(float(means[stratified].mean()) - 0.5) < 0.006
    assert float(means[False].std()) == pytest.approx(1 / math.sqrt(12 * 128), rel=0.2)
    assert float(means[True].std()) < 0.0045


@pytest.mark.parametrize("stratified", [False, True])
def test_shards_meet_what_the_whole_batch_does(device: torch.device, stratified: bool) -> None:
    x, labels = randn(9, 2, 3).to(device), torch.arange(9, device=device)
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return x * (1 + t + label)[:, None, None]

    loss_fn = SDELoss(
        sde.VP(),
        stratified=stratified,
        drop=0.5,
        null={"label": -1},
        prediction="v",
        reduction="none",
    )

    def losses(x: Tensor, labels: Tensor, **draws: Any) -> Tensor:
        return loss_fn(model, x, model_kwargs={"label": labels}, **draws)

    whole = losses(x, labels, seed=1)
    assert_same_bytes(losses(x, labels, seed=1), whole)
    dropped = seen[0] < 0
    assert 0 < int(dropped.sum()) < 9
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    for cut in (1, 4):
        first = losses(x[:cut], labels[:cut], seed=1)
        rest = losses(x[cut:], labels[cut:], seed=1, sample_offset=cut)
        assert_same_bytes(torch.cat([first, rest]), whole)
    some = torch.tensor([7, 0, 7, 3], device=device)
    assert_same_bytes(losses(x[some], labels[some], seed=1, samples=some), whole[some])
    own = losses(x, labels, seed=list(range(9)))
    assert_same_bytes(losses(x[4:5], labels[4:5], seed=[4]), own[4:5])
    key = make_key(1, 3, device)
    assert not torch.equal(losses(x, labels, key=key), whole)


def test_any_object_with_alpha_and_sigma() -> None:
    class Straight:
        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t

        def sigma(self, t: Tensor) -> Tensor:
            return t

    x, t = randn(5, 3), torch.linspace(0.1, 0.9, 5)
    for prediction in ("eps", "velocity"):
        options: dict[str, Any] = {"t": t, "seed": 0, "prediction": prediction}
        want = sde_loss(lambda x, t: x, x, sde.RectifiedFlow(), **options)
        torch.testing.assert_close(sde_loss(lambda x, t: x, x, Straight(), **options), want)


# ---- dropping ------------------------------------------------------------------------------------


def test_conditions_are_dropped_together_and_at_the_rate_asked_for() -> None:
    count, null = 20_000, torch.tensor([7.0, 8.0])
    context = randn(count, 2)
    seen: dict[str, Tensor] = {}

    def model(x: Tensor, sigma: Tensor, **named: Tensor) -> Tensor:
        seen.update(named)
        return x

    given = {"label": torch.zeros(count, dtype=torch.int64), "context": context, "other": 3}
    loss_fn = SDELoss(sde.VE(), drop=0.1, null={"label": 10, "context": null})
    before = context.clone()
    loss_fn(model, torch.zeros(count, 1), model_kwargs=given, seed=0)
    dropped = seen["label"] == 10
    assert abs(float(dropped.double().mean()) - 0.1) < 5 * math.sqrt(0.09 / count)
    assert bool((seen["context"][dropped] == null).all())
    assert torch.equal(seen["context"][~dropped], context[~dropped])
    assert seen["other"] == 3
    assert torch.equal(context, before)
    loss_fn(model, torch.zeros(count, 1), model_kwargs=given, seed=1)
    assert not torch.equal(seen["label"] == 10, dropped)
