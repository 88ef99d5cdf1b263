"""The cross-entropy of a classifier of noisy data: the formula in plain PyTorch, and Bayes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_cases import InTime, Posterior, draw_normals, mixtures
from helpers import assert_same_bytes, randn
from torch import Tensor

import fastscore
from fastscore import ClassifierLoss, classifier_loss, sde
from fastscore.guidance import ClassifierGuidance
from fastscore.nn import NoisyClassifier
from fastscore.scores import GaussianMixture

PROCESSES = [sde.VE(0.05, 20.0), sde.VP(), sde.SubVP(), sde.RectifiedFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def data(count: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    parts = mixtures(dtype)[1]
    x = torch.cat([part.sample(count // 2, seed=i) for i, part in enumerate(parts)])
    return x, torch.arange(2).repeat_interleave(count // 2)


class Recording:
    """A model of anything that keeps what it is called with."""

    def __init__(self, model: Any) -> None:
        self.model, self.seen = model, []  # type: ignore[var-annotated]

    def __call__(self, *args: Tensor, **named: Any) -> Tensor:
        self.seen = [a.clone() for a in args]
        return self.model(*args, **named)


def logits_of_nothing(x: Tensor, *told: Tensor) -> Tensor:
    return x[:, :2] * 0.3


# ---- the formula -----------------------------------------------------------------------------


@each_process
@pytest.mark.parametrize("options", [{}, {"times": "log_uniform"}, {"stratified": False}], ids=str)
def test_it_meets_the_times_and_noise_of_the_scores_loss(process: Any, options: Any) -> None:
    x, labels = data()
    score, classifier = Recording(lambda x, *_: x), Recording(logits_of_nothing)
    fastscore.sde_loss(score, x, process, seed=5, **options)
    loss = classifier_loss(classifier, x, labels, process, seed=5, reduction="none", **options)
    for mine, its in zip(classifier.seen, score.seen, strict=True):
        assert_same_bytes(mine, its)
    want = F.cross_entropy(logits_of_nothing(classifier.seen[0]), labels, reduction="none")
    torch.testing.assert_close(loss, want)


@each_process
def test_every_way_of_calling_meets_the_same_data(process: Any) -> None:
    x, labels = data()
    posterior = Posterior()
    ways: list[tuple[Any, dict[str, Any]]] = [
        (posterior, {"conditioning": "sigma"}),
        (lambda x, s: posterior(x, s.exp()), {"conditioning": "log_sigma"}),
        (lambda x, t: InTime(posterior, process)(x, t.double()), {"conditioning": "time"}),
        (
            lambda x, t: InTime(posterior, process, 999.0)(x, t.double()),
            {"conditioning": "time", "time_scale": 999.0},
        ),
    ]
    t = torch.linspace(0.05, 0.9, 40)
    losses = [
        classifier_loss(model, x, labels, process, t=t, seed=1, reduction="none", **how)
        for model, how in ways
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-3, atol=1e-3)
    by_number = Recording(logits_of_nothing)
    levels = [20.0, 1.0, 0.1]
    how: Any = {"conditioning": "index", "sigmas": levels, "t": t, "seed": 1}
    classifier_loss(by_number, x, labels, process, **how)
    own = process.noise_level(t).log()
    nearest = (own[:, None] - torch.tensor(levels).double().log()).abs().argmin(1)
    assert torch.equal(by_number.seen[1], nearest)
    alone = Recording(logits_of_nothing)
    classifier_loss(alone, x, labels, process, conditioning="none", t=t, seed=1)
    assert_same_bytes(alone.seen[0], by_number.seen[0])
    assert len(alone.seen) == 1


def test_reductions_smoothing_and_the_module() -> None:
    x, labels = data()
    net, process = NoisyClassifier(4, 2, hidden=(8,)), sde.VE()
    draw_normals(net.layers[-1])
    heard = Recording(net)
    for smoothing in (0.0, 0.3):
        how: Any = {"label_smoothing": smoothing}
        each = classifier_loss(heard, x, labels, process, seed=2, reduction="none", **how)
        want = F.cross_entropy(net(*heard.seen), labels, reduction="none", **how)
        torch.testing.assert_close(each, want)
        for reduction, value in (("mean", each.mean()), ("sum", each.sum())):
            got = classifier_loss(net, x, labels, process, seed=2, reduction=reduction, **how)
            torch.testing.assert_close(got, value)
            module = ClassifierLoss(process, reduction=reduction, **how)
            assert_same_bytes(module(net, x, labels, seed=2).detach(), got.detach())
            assert_same_bytes(copy.deepcopy(module)(net, x, labels, seed=2).detach(), got.detach())
    got = classifier_loss(net, x, labels, process, seed=2)
    assert got.shape == ()
    assert got.requires_grad
    assert "VE" in repr(ClassifierLoss(process))
    assert "0.3" in repr(ClassifierLoss(process, label_smoothing=0.3))
    levels = ClassifierLoss(process, conditioning="index", sigmas=[3.0, 1.0])
    assert len(levels.half().get_buffer("levels")) == 2
    assert levels.get_buffer("levels").dtype == torch.float64


def test_shards_and_samples_meet_what_the_batch_does() -> None:
    x, labels = data()
    how: Any = {"reduction": "none", "seed": 3, "conditioning": "sigma"}
    net = Posterior()
    whole = classifier_loss(net, x, labels, sde.VP(), **how)
    shard = classifier_loss(net, x[10:], labels[10:], sde.VP(), sample_offset=10, **how)
    torch.testing.assert_close(shard, whole[10:])
    some = torch.tensor([30, 2, 17])
    chosen = classifier_loss(net, x[some], labels[some], sde.VP(), samples=some, **how)
    torch.testing.assert_close(chosen, whole[some])


def test_dtypes_empty_batches_and_what_else_the_classifier_takes() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        x, labels = data()
        got = classifier_loss(logits_of_nothing, x.to(dtype), labels, sde.VE(), seed=0)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.isfinite()
    empty = classifier_loss(
        logits_of_nothing, x[:0], labels[:0], sde.VP(), seed=0, reduction="none"
    )
    assert empty.shape == (0,)

    def told(x: Tensor, t: Tensor, gain: Tensor) -> Tensor:
        return x[:, :2] * gain[:, None]

    gain = torch.linspace(0, 1, 40)
    own: Any = {"model_kwargs": {"gain": gain}}
    loss = classifier_loss(told, x, labels, sde.VP(), seed=0, reduction="none", **own)
    assert abs(float(loss[0]) - math.log(2)) < 1e-6


def test_in_compiled_code() -> None:
    x, labels = data()
    loss_fn, net = ClassifierLoss(sde.VP()), NoisyClassifier(4, 2, hidden=(8,))
    net.conditioning = "sigma"

    def step(x: Tensor, labels: Tensor, key: Tensor) -> Tensor:
        return loss_fn(net, x, labels, key=key)

    key = fastscore.random.key(7)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, labels, key), step(x, labels, key))


def test_labels_that_nobody_looks_at_make_nan_of_their_samples() -> None:
    x, labels = data()
    labels[4] = 2
    loss_fn = ClassifierLoss(sde.VP(), reduction="none")

    def step(x: Tensor, labels: Tensor, key: Tensor) -> Tensor:
        return loss_fn(logits_of_nothing, x, labels, key=key)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    got = compiled(x, labels, fastscore.random.key(7))
    assert got.isnan().nonzero().tolist() == [[4]]


# ---- training --------------------------------------------------------------------------------


def test_a_trained_classifier_approaches_bayes_and_guides() -> None:
    """Two classes N(-1.5, 1/4), N(1.5, 1/4) in the plane: log odds are 2 <m, x>/(v + s^2)."""
    torch.manual_seed(0)
    process, mean = sde.VE(0.1, 5.0), torch.tensor([1.5, 0.0])
    net = NoisyClassifier(2, 2, hidden=(32, 32), data_std=1.2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    loss_fn = ClassifierLoss(process)
    for step in range(400):
        labels = (torch.arange(256) + step) % 2
        x = (2.0 * labels[:, None] - 1) * mean + 0.5 * randn(256, 2, seed=step)
        optimizer.zero_grad()
        loss_fn(net, x, labels, seed=step).backward()
        optimizer.step()
    labels = torch.arange(4000) % 2
    x = (2.0 * labels[:, None] - 1) * mean + 0.5 * randn(4000, 2, seed=999)

    def bayes(x: Tensor, sigma: Tensor) -> Tensor:
        odds = 2 * (x @ mean)[:, None] / (0.25 + sigma[:, None] ** 2)
        return torch.cat([torch.zeros_like(odds), odds], dim=1)

    with torch.no_grad():
        trained = loss_fn(net, x, labels, seed=1)
        best = loss_fn(bayes, x, labels, seed=1)
        for level in (0.2, 1.0, 4.0):
            sigma = torch.full((4000,), level)
            at = x + level * randn(4000, 2, seed=5)
            off = net(at, sigma).softmax(1) - bayes(at, sigma).softmax(1)
            assert off.abs().mean() < 0.04, level
    assert best <= trained < best + 0.02 < 0.5
    both = GaussianMixture([0.5, 0.5], torch.stack([-mean, mean]), 0.25)
    net.eval()
    drawn, exact = (
        fastscore.probability_flow(guided, process, shape=(500, 2), steps=30, seed=0)
        for guided in (ClassifierGuidance(both, c, label=1) for c in (net, bayes))
    )
    assert (drawn[:, 0] > 0).float().mean() > 0.97
    assert (drawn - exact).abs().mean() < 0.1


# ---- bad input -------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 1])
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"labels": torch.tensor([0, 1, 2])},
        ValueError,
        r"labels must be in \[0, 2\), .* from 0 to 2",
    ),
    ({"labels": torch.tensor([0, 1, -100])}, ValueError, r"labels must be in \[0, 2\)"),
    ({"labels": LABELS.int()}, ValueError, "labels must be a torch.int64 tensor of shape"),
    ({"labels": LABELS.float()}, ValueError, "labels must be a torch.int64 tensor of shape"),
    ({"labels": LABELS[:2]}, ValueError, r"labels must be a torch.int64 tensor of shape \(3,\)"),
    ({"labels": [0, 1, 1]}, TypeError, "labels must be an int64 tensor, got list"),
    ({"x": torch.full((3, 4), torch.nan)}, ValueError, "x must be finite"),
    ({"classifier": 3}, TypeError, "classifier must be callable"),
    (
        {"classifier": lambda x, t: x.sum(1)},
        ValueError,
        "classifier must be one that returns logit",
    ),
    ({"classifier": lambda x, t: 3}, TypeError, "classifier must be one that returns logits"),
    ({"sde": [3.0, 1.0]}, TypeError, "sde must be"),
    ({"label_smoothing": 1.0}, ValueError, "label_smoothing must be below 1"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be at least 0"),
    ({"reduction": "all"}, ValueError, "reduction must be one of"),
    ({"conditioning": "sigmas"}, ValueError, "conditioning must be one of"),
    ({"conditioning": "sigma", "time_scale": 9.0}, ValueError, "time_scale must be left out"),
    ({"conditioning": "none", "time_scale": 9.0}, ValueError, "time_scale must be left out"),
    ({"conditioning": "none", "sigmas": [2.0, 1.0]}, ValueError, "sigmas must be left out"),
    ({"conditioning": "index"}, ValueError, "sigmas or betas must be given"),
    ({"t": 2.0}, ValueError, "t must be"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=str)
def test_bad_input(options: Any, kind: type[Exception], message: str) -> None:
    given: Any = {
        "classifier": logits_of_nothing,
        "x": randn(3, 4),
        "labels": LABELS,
        "sde": sde.VP(),
    }
    given |= options
    with pytest.raises(kind, match=f"classifier_loss: {message}"):
        classifier_loss(**given)
