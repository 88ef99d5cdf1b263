"""What else a network takes: by name, through every sampler, loss and derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, randn
from samplers import SIGMAS, Sampler, every_sampler, gaussian_score, run_annealed
from torch import Tensor, nn

import fastscore
from fastscore.scores import DenoiserScore, EnergyScore, EpsScore


class Conditional(nn.Module):
    """A score that depends on a class of each sample, and on a nested context."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(3, 2)
        self.layer = nn.Linear(2, 2)

    def forward(
        self,
        x: Tensor,
        *sigma: Tensor,
        label: Tensor | None = None,
        context: dict[str, Any] | None = None,
    ) -> Tensor:
        assert label is not None
        assert context is not None
        assert context["name"] == "shift"
        h = torch.tanh(self.layer(x)) + self.table(label) + context["inner"]["shift"]
        return h - x


LABEL = torch.tensor([0, 1, 2, 1])
SHIFT = randn(4, 2)
EXTRA: dict[str, Any] = {
    "label": LABEL,
    "context": {"name": "shift", "inner": {"shift": SHIFT}},
}


def closed_over(net: nn.Module) -> Callable[..., Tensor]:
    return lambda x, *args: net(x, *args, **EXTRA)


@every_sampler
def test_model_kwargs_of_samplers(sampler: Sampler, steps: int) -> None:
    net = Conditional()
    want = sampler(randn(4, 2), closed_over(net), seed=0)
    assert_same_bytes(sampler(randn(4, 2), net, seed=0, model_kwargs=EXTRA), want)


def test_model_kwargs_that_the_network_writes_to() -> None:
    def model(x: Tensor, sigma: Tensor, *, shift: Tensor, deep: dict[str, Tensor]) -> Tensor:
        shift *= 0.5
        deep["scale"] += 1
        return deep["scale"] * (shift - x)

    shift, scale = randn(4, 2), torch.tensor([2.0])
    got = run_annealed(
        randn(4, 2), model, seed=0, model_kwargs={"shift": shift, "deep": {"scale": scale}}
    )
    want = run_annealed(randn(4, 2), lambda x, sigma: 3 * (0.5 * shift - x), seed=0)
    torch.testing.assert_close(got, want)
    assert_same_bytes(shift, randn(4, 2))
    assert scale.tolist() == [2.0]


@pytest.mark.parametrize("sigmas", [None, SIGMAS])
@pytest.mark.parametrize("method", ["forward", "reverse", "finite_difference", "exact", "auto"])
def test_model_kwargs_of_sliced_losses(method: str, sigmas: Tensor | None) -> None:
    net, x = Conditional(), randn(4, 2)
    options: dict[str, Any] = {"method": method, "sigmas": sigmas, "seed": 0, "projections": 3}
    got = fastscore.ssm_loss(net, x, model_kwargs=EXTRA, **options)
    want = fastscore.ssm_loss(closed_over(net), x, **{**options, "method": "reverse"})
    if method in ("exact", "auto"):
        want = fastscore.score_matching_loss(closed_over(net), x, sigmas=sigmas, seed=0)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    got.backward()
    assert net.table.weight.grad is not None
    loss_fn = fastscore.SSMLoss(sigmas, method=method, projections=3)
    assert_same_bytes(loss_fn(net, x, seed=0, model_kwargs=EXTRA), got)


def test_model_kwargs_of_the_others() -> None:
    net, x = Conditional(), randn(4, 2)
    closed = closed_over(net)
    for method in ("hutchinson", "exact"):
        options: dict[str, Any] = {"method": method, "seed": 0}
        want = fastscore.divergence(closed, x, **options)
        torch.testing.assert_close(
            fastscore.divergence(net, x, model_kwargs=EXTRA, **options), want
        )
        _, trace = fastscore.output_and_divergence(net, x, model_kwargs=EXTRA, **options)
        torch.testing.assert_close(trace, want)
    loss = fastscore.dsm_loss(net, x, SIGMAS, seed=0, model_kwargs=EXTRA)
    assert_same_bytes(loss, fastscore.dsm_loss(closed, x, SIGMAS, seed=0))
    loss = fastscore.DSMLoss(SIGMAS)(net, x, seed=0, model_kwargs=EXTRA)
    assert_same_bytes(loss, fastscore.dsm_loss(closed, x, SIGMAS, seed=0))
    want = fastscore.score_matching_loss(closed, x)
    torch.testing.assert_close(fastscore.score_matching_loss(net, x, model_kwargs=EXTRA), want)
    for metric in (fastscore.fisher_divergence, fastscore.sliced_fisher_divergence):
        seed = {} if metric is fastscore.fisher_divergence else {"seed": 0}
        got = metric(net, lambda x: -x, x, model_kwargs=EXTRA, **seed)
        assert_same_bytes(got, metric(closed, lambda x: -x, x, **seed))
    for kind in (EpsScore, DenoiserScore):
        want = run_annealed(x, kind(closed), seed=0)
        assert_same_bytes(run_annealed(x, kind(net), seed=0, model_kwargs=EXTRA), want)
    energy = EnergyScore(lambda x, sigma, label: (x - label[:, None]).square().sum(1))
    want = EnergyScore(lambda x, sigma: (x - LABEL[:, None]).square().sum(1))(x, 1.0)
    torch.testing.assert_close(energy(x, 1.0, label=LABEL), want)
    torch.testing.assert_close(
        run_annealed(x, energy, seed=0, model_kwargs={"label": LABEL}),
        run_annealed(x, lambda x, sigma: -2 * (x - LABEL[:, None]), seed=0),
    )


def test_a_tensor_of_the_batchs_size_may_be_shared() -> None:
    table = randn(4, 2)  # four classes, beside four samples

    def model(x: Tensor, *, table: Tensor, label: Tensor) -> Tensor:
        assert len(table) == 4
        return table[label] - x.pow(3)

    extra = {"table": fastscore.shared(table), "label": LABEL}
    for method in ("forward", "reverse", "finite_difference", "exact"):
        options: dict[str, Any] = {"method": method, "seed": 0, "projections": 2}
        got = fastscore.ssm_loss(model, randn(4, 2), model_kwargs=extra, **options)
        want = fastscore.ssm_loss(lambda x: table[LABEL] - x.pow(3), randn(4, 2), **options)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [([1], "a dictionary of keyword arguments"), ({1: 2}, "names that are strings, got int")],
)
def test_bad_model_kwargs(wrong: Any, message: str) -> None:
    x = randn(4, 2)
    for call in (
        lambda: run_annealed(x, model_kwargs=wrong),
        lambda: fastscore.dsm_loss(gaussian_score, x, SIGMAS, model_kwargs=wrong),
        lambda: fastscore.ssm_loss(lambda x: -x, x, model_kwargs=wrong),
        lambda: fastscore.divergence(lambda x: -x, x, model_kwargs=wrong),
        lambda: fastscore.fisher_divergence(lambda x: -x, x, x, model_kwargs=wrong),
    ):
        with pytest.raises(TypeError, match=rf"^\w+: model_kwargs must be .*{message}"):
            call()


def test_functions_around_the_labels_of_a_batch() -> None:
    net, x = Conditional(), randn(4, 2)
    for sigmas in (None, SIGMAS):
        options: dict[str, Any] = {"sigmas": sigmas, "seed": 0, "projections": 3}
        want = fastscore.ssm_loss(closed_over(net), x, method="reverse", **options)
        for _ in range(3):
            got = fastscore.ssm_loss(closed_over(net), x, method="finite_difference", **options)
            torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


class Graph(nn.Module):
    """A network of edges between samples' places in the batch."""

    def forward(self, x: Tensor, *, edges: Tensor) -> Tensor:
        source, target = edges
        return -x + torch.zeros_like(x).index_add(0, target, torch.tanh(x[source] - x[target]))


class Centred(nn.Module):
    def forward(self, x: Tensor, *, mix: float) -> Tensor:
        return -x - mix * x.mean(0)


def test_finite_differences_of_networks_that_look_at_other_samples() -> None:
    x = randn(6, 3, dtype=torch.float64)
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 0, 3, 2, 5, 4, 4, 5]])
    models: list[tuple[Any, dict[str, Any]]] = [
        (Graph(), {"edges": edges}),
        (lambda x: Graph()(x, edges=edges), {}),
        (Centred(), {"mix": 0.0}),
        (Centred(), {"mix": 10.0}),
        (lambda x, mix: Centred()(x, mix=mix), {"mix": 10.0}),
    ]
    network = models[2][0]
    for model, extra in [*models, (network, {"mix": 10.0})]:
        forward, differences = (
            fastscore.ssm_loss(model, x, seed=0, method=method, model_kwargs=extra)
            for method in ("forward", "finite_difference")
        )
        torch.testing.assert_close(differences, forward, rtol=1e-6, atol=1e-6)
