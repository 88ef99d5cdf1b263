"""Networks that are told classes, and conditions that are dropped in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, randn
from torch import Tensor, nn

import fastscore
from fastscore import DSMLoss, dsm_loss, sde, sde_loss
from fastscore.guidance import ClassifierFreeGuidance, ClassifierGuidance
from fastscore.nn import NoisyClassifier, ScoreConvNet, ScoreMLP

SIGMAS = fastscore.geometric_sigmas(4.0, 0.1, 6)
MAKERS: dict[str, Any] = {
    "mlp": (lambda **k: ScoreMLP(6, hidden=(16, 12), **k), (6,)),
    "unconditional mlp": (
        lambda **k: ScoreMLP(6, hidden=(16, 12), noise_conditional=False, **k),
        (6,),
    ),
    "conv": (lambda **k: ScoreConvNet(1, 8, base_channels=8, **k), (1, 8, 8)),
}
each_network = pytest.mark.parametrize(("make", "shape"), MAKERS.values(), ids=MAKERS)


def made(make: Any, seed: int = 0, **options: Any) -> Any:
    """A network whose output depends on all that it is told."""
    torch.manual_seed(seed)
    net = make(**options)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


@each_network
def test_a_label_makes_another_score(make: Any, shape: tuple[int, ...]) -> None:
    net, x, sigma = made(make, classes=3), randn(5, *shape), torch.linspace(0.1, 2, 5)
    label = torch.tensor([0, 1, 2, 3, 0])
    got = net(x, sigma, label)
    assert_same_bytes(net(x, sigma, label=label).detach(), got.detach())
    each = torch.stack([net(x, sigma, torch.full((5,), i)) for i in range(4)])
    torch.testing.assert_close(got, each[label, torch.arange(5)])
    assert (each[1:] - each[:-1]).abs().flatten(1).amax(1).gt(1e-4).all()
    torch.autograd.grad(got.square().sum(), list(net.parameters()))  # all of them take part
    assert "classes=3" in repr(net)
    assert net.config["classes"] == 3


@each_network
def test_without_classes_nothing_has_changed(make: Any, shape: tuple[int, ...]) -> None:
    """Neither the order in which weights are drawn, nor names, nor what a file holds."""
    net, told = made(make), made(make, classes=3)
    assert not any("embed_class" in name or name == "embed.weight" for name in net.state_dict())
    assert "classes" not in net.config
    if isinstance(net, ScoreConvNet):
        torch.manual_seed(1)
        alone = make().state_dict()
        torch.manual_seed(1)
        beside = make(classes=3).state_dict()
        for name, value in alone.items():
            assert_same_bytes(beside[name], value)
    with pytest.raises(TypeError, match="label must be left out for a network without classes="):
        net(randn(2, *shape), torch.ones(2), label=torch.zeros(2).long())
    levels = torch.zeros(4, dtype=torch.int64)
    with pytest.warns(FutureWarning, match="labels= is now levels="):
        dsm_loss(net, randn(4, *shape), SIGMAS, labels=levels)
    adapter = fastscore.scores.EpsScore(net)
    with pytest.warns(FutureWarning, match="labels= is now levels="):
        dsm_loss(adapter, randn(4, *shape), SIGMAS, labels=levels)
    with pytest.raises(TypeError, match="takes 'label' too"):
        dsm_loss(told, randn(4, *shape), SIGMAS, labels=levels)


def test_weights_are_drawn_as_ever() -> None:
    """Each linear layer at its making, then all of them again, as written here."""
    net = made(lambda: ScoreMLP(3, hidden=(5, 4)))
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)]
    for i, layer in enumerate(layers):
        nn.init.xavier_uniform_(layer.weight, gain=0.01 if i == 2 else 1.0)
        nn.init.zeros_(layer.bias) if i == 2 else nn.init.uniform_(layer.bias, -1, 1)
    for mine, layer in zip(net.layers[::2], layers, strict=True):
        assert_same_bytes(mine.weight.detach(), layer.weight.detach())


BAD_LABELS: list[tuple[Any, type[Exception], str]] = [
    (None, ValueError, r"label must be given, int64 \(batch,\) in \[0, 3\), or 3 for no class"),
    (torch.tensor([0, 4]), ValueError, "got labels from 0 to 4"),
    (torch.tensor([0, -1]), ValueError, "got labels from -1 to 0"),
    (torch.zeros(2), ValueError, "label must be given, int64"),
    (torch.zeros(3).long(), ValueError, "for a batch of 2"),
    ([1], TypeError, "label must be given, int64"),
    (4, ValueError, "label must be given, int64"),
]


@each_network
@pytest.mark.parametrize(("label", "kind", "message"), BAD_LABELS, ids=str)
def test_bad_labels(make: Any, shape: Any, label: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        made(make, classes=3)(randn(2, *shape), torch.ones(2), label=label)


def test_bad_classes() -> None:
    for make, _ in MAKERS.values():
        with pytest.raises(ValueError, match="classes must be at least 1"):
            make(classes=0)
        with pytest.raises(TypeError, match="classes must be an integer"):
            make(classes="ten")


@each_network
def test_derivatives_keep_their_ways(make: Any, shape: tuple[int, ...]) -> None:
    net, x, sigma = made(make, classes=3).double(), randn(4, *shape), torch.linspace(0.5, 2, 4)
    x, sigma = x.double(), sigma.double()
    label, v = torch.tensor([0, 1, 3, 2]), randn(4, *shape, seed=2).double()
    want = torch.autograd.functional.jvp(lambda x: net(x, sigma, label), x, v)[1]
    torch.testing.assert_close(fastscore.jvp(net, x, v, sigma, label=label)[1], want)
    own: Any = {"model_kwargs": {"label": label}}
    exact = fastscore.divergence(net, x, sigma, method="exact", **own)
    whole = torch.autograd.functional.jacobian(lambda x: net(x, sigma, label).sum(0), x)
    of_each = whole.movedim(x.dim() - 1, 0).reshape(4, x[0].numel(), -1)
    torch.testing.assert_close(exact, of_each.diagonal(dim1=1, dim2=2).sum(1))
    if isinstance(net, ScoreMLP):
        from fastscore.derivatives.closed_form import jacobian

        torch.testing.assert_close(jacobian(net, x, sigma, label=label).trace(), exact)


@each_network
def test_saved_and_loaded(make: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    for classes in (None, 3):
        net = made(make, classes=classes)
        path = tmp_path / f"{classes}.safetensors"
        fastscore.save_checkpoint(path, fastscore.Checkpoint(net, SIGMAS))
        loaded = fastscore.load_checkpoint(path)
        assert loaded.model.classes == classes
        own: Any = {"label": torch.tensor([0, 3])} if classes else {}
        x, sigma = randn(2, *shape), torch.ones(2)
        assert_same_bytes(loaded.model(x, sigma, **own).detach(), net(x, sigma, **own).detach())


def test_for_data_takes_classes() -> None:
    assert ScoreMLP.for_data(randn(10, 2), classes=4).classes == 4
    assert ScoreConvNet.for_data(randn(10, 1, 8, 8), classes=4).classes == 4


def test_guided_scores_saved_and_loaded(tmp_path: Path) -> None:
    """Into one of the same weight: a file says how a score was guided."""
    pytest.importorskip("safetensors")

    def guided(w: float, **null: Any) -> nn.Module:
        net = made(lambda **k: ScoreMLP(4, hidden=(8,), **k), classes=2)
        inner = ClassifierFreeGuidance(net, null={"label": 2, **null}, scale=w)
        classifier = NoisyClassifier(4, 2, hidden=(8,))
        return ClassifierGuidance(inner, classifier, scale=w, conditional=True)

    path = tmp_path / "guided.safetensors"
    model = guided(2.0)
    fastscore.save_checkpoint(path, fastscore.Checkpoint(model, SIGMAS))
    loaded = fastscore.load_checkpoint(path, model=guided(2.0))
    own: Any = {"seed": 0, "model_kwargs": {"label": torch.tensor([0, 1, 1])}}
    want = fastscore.annealed_langevin(model, SIGMAS, num_samples=3, **own)
    assert_same_bytes(loaded.sample(3, **own), want)
    with pytest.raises(ValueError, match=r"scale=2\.0"):
        fastscore.load_checkpoint(path, model=guided(3.0))


# ---- the classifier --------------------------------------------------------------------------


def test_a_classifier_of_noisy_data(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    x = 3 * randn(20, 1, 4, 4)
    net = NoisyClassifier.for_data(x, classes=3, hidden=(8,), activation="tanh")
    assert net.data_shape == (1, 4, 4)
    assert abs(net.data_std - 3) < 0.3
    sigma = torch.linspace(0.1, 2, 20)
    level = (sigma**2 + net.data_std**2).sqrt()[:, None]
    features = torch.cat([x.flatten(1) / level, sigma.log()[:, None]], dim=1)
    torch.testing.assert_close(net(x, sigma), net.layers(features))
    assert net(x, sigma).softmax(1).sub(1 / 3).abs().max() < 0.1  # before training
    assert_same_bytes(net(x, 0.5).detach(), net(x, torch.full((20,), 0.5)).detach())
    path = tmp_path / "classifier.safetensors"
    fastscore.save_checkpoint(path, fastscore.Checkpoint(net, sde.VE()))
    loaded = fastscore.load_checkpoint(path).model
    assert isinstance(loaded, NoisyClassifier)
    assert loaded.sigma_range == sde.VE().sigma_range
    assert_same_bytes(loaded(x, sigma).detach(), net(x, sigma).detach())
    assert "classes=3" in repr(net)
    for bad, kind, message in (
        ({"data_shape": 0}, ValueError, "data_shape must be at least 1"),
        ({"data_shape": "2"}, TypeError, "data_shape must be a shape"),
        ({"classes": 0}, ValueError, "classes must be at least 1"),
        ({"hidden": ()}, ValueError, "hidden must be at least one width"),
        ({"data_std": 0.0}, ValueError, "data_std must be positive"),
    ):
        with pytest.raises(kind, match=f"NoisyClassifier: {message}"):
            NoisyClassifier(**{"data_shape": 2, "classes": 2, **bad})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must be of shape \(20, 1, 4, 4\)"):
        net(x.flatten(1), sigma)
    with pytest.raises(ValueError, match="model whose output"):
        sde_loss(net, x, sde.VE())


# ---- dropping --------------------------------------------------------------------------------


class Kept:
    """A score that keeps the labels that it is called with."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        self.label = label.clone()
        return -x


def test_both_losses_drop_the_same_conditions() -> None:
    x, labels = randn(4000, 2), torch.arange(4000) % 3
    how: Any = {"drop": 0.25, "null": {"label": 3}, "seed": 4, "model_kwargs": {"label": labels}}
    kept = [Kept() for _ in range(3)]
    dsm_loss(kept[0], x, SIGMAS, **how)
    sde_loss(kept[1], x, sde.VE(), **how)
    module = DSMLoss(SIGMAS, drop=0.25, null={"label": torch.tensor(3)})
    module(kept[2], x, seed=4, model_kwargs={"label": labels})
    gone = kept[0].label == 3
    assert 0.22 < gone.float().mean() < 0.28
    assert torch.equal(kept[0].label[~gone], labels[~gone])
    for other in kept[1:]:
        assert torch.equal(other.label, kept[0].label)
    assert dict(module.named_buffers())["null_0"] == 3
    part = Kept()
    offset = {**how, "model_kwargs": {"label": labels[100:]}, "sample_offset": 100}
    dsm_loss(part, x[100:], SIGMAS, **offset)
    assert torch.equal(part.label, kept[0].label[100:])


def test_nothing_is_dropped_unless_asked_for() -> None:
    x, labels = randn(64, 2), torch.arange(64) % 3
    kept = Kept()
    plain = dsm_loss(kept, x, SIGMAS, seed=1, model_kwargs={"label": labels})
    with_null = dsm_loss(kept, x, SIGMAS, seed=1, null={"label": 3}, model_kwargs={"label": labels})
    assert torch.equal(kept.label, labels)
    assert_same_bytes(plain, with_null)
    for options, message in (
        ({"drop": 1.5}, "drop must be a probability"),
        ({"drop": 0.1}, "null must be a dictionary .* with drop, got None"),
        ({"drop": 0.1, "null": {"y": 1}}, "y must be given by name"),
    ):
        with pytest.raises(ValueError, match=f"dsm_loss: {message}"):
            dsm_loss(kept, x, SIGMAS, model_kwargs={"label": labels}, **options)


def test_a_network_trained_with_and_without_classes_knows_both() -> None:
    """Classes N(-2, 1/4) and N(2, 1/4): what it says of the mean of each, and of both."""
    torch.manual_seed(0)
    net = ScoreMLP(1, hidden=(32, 32), data_std=2.0, classes=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 400)
    loss_fn = fastscore.SDELoss(sde.VE(0.1, 8.0), drop=0.3, null={"label": 2})
    for step in range(400):
        labels = (torch.arange(256) + step) % 2
        x = 4.0 * labels[:, None] - 2 + 0.5 * randn(256, 1, seed=step)
        optimizer.zero_grad()
        loss_fn(net, x, seed=step, model_kwargs={"label": labels}).backward()
        optimizer.step()
        falling.step()
    sigma, at = torch.full((3,), 2.0), torch.zeros(3, 1)
    found = (at + 4.0 * net(at, sigma, torch.tensor([0, 1, 2]))).squeeze(1)  # E[x_0 | x = 0]
    spread = 4.0 / 4.25
    want = torch.tensor([-2 * spread, 2 * spread, 0.0])
    assert (found - want).abs().max() < 0.25
    guided = fastscore.guidance.ClassifierFreeGuidance(net, null={"label": 2}, scale=1.0)
    process = sde.VE(0.1, 8.0)
    label = torch.arange(200) % 2
    drawn = fastscore.probability_flow(
        guided, process, shape=(200, 1), steps=20, seed=0, model_kwargs={"label": label}
    )
    assert ((drawn[:, 0] > 0) == (label == 1)).float().mean() > 0.97
