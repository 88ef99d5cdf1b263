"""Classifier-free guidance: with the exact scores it is the closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from class_cases import (
    LABELS,
    NONE,
    SAMPLERS,
    VE,
    Conditional,
    draw_normals,
    each_score,
    mixtures,
    points,
)
from helpers import assert_same_bytes, randn
from torch import Tensor, nn

import fastscore
from fastscore.guidance import ClassifierFreeGuidance
from fastscore.nn import ScoreConvNet, ScoreMLP
from fastscore.scores import NetworkScore, Terms

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
NULL: Any = {"label": NONE}


def total(output: Tensor | Terms) -> Tensor:
    return (output.total() if isinstance(output, Terms) else output).detach()


def closed_form(w: float, dtype: torch.dtype = torch.float32) -> Any:
    whole, parts = mixtures(dtype)
    of_class = each_score(parts)

    def score(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return (1 + w) * of_class(x, sigma, label) - w * whole(x, sigma)

    return score


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("w", [0.5, 3.0, -1.0, 0.0])
def test_with_exact_scores_it_is_the_closed_form(w: float, batched: bool) -> None:
    x, sigma, labels = points(torch.float64)
    net = Conditional(torch.float64)
    model = ClassifierFreeGuidance(net, null=NULL, scale=w, batched=batched)
    got = model(x, sigma, label=labels)
    want = closed_form(w, torch.float64)(x, sigma, labels)
    torch.testing.assert_close(total(got), want)
    assert net.calls == ([64] if w == 0 else [128] if batched else [64, 64])
    if w:
        assert [weight for _, weight in got.pairs] == [1 + w, -w]


def test_the_weight_of_other_libraries_is_one_more() -> None:
    """diffusers: uncond + guidance_scale (cond - uncond)."""
    x, sigma, labels = points(torch.float64)
    net = Conditional(torch.float64)
    conditional, free = net(x, sigma, labels), net(x, sigma, torch.full_like(labels, NONE))
    theirs = free + 7.5 * (conditional - free)
    model = ClassifierFreeGuidance(net, null=NULL, scale=6.5)
    torch.testing.assert_close(total(model(x, sigma, label=labels)), theirs)


@each_sampler
def test_weight_0_is_the_conditional_score_to_the_byte_evaluated_once(sampler: Any) -> None:
    own: Any = {"model_kwargs": {"label": LABELS}}
    plain, inside = Conditional(), Conditional()
    want = sampler(plain, **own)
    assert_same_bytes(sampler(ClassifierFreeGuidance(inside, null=NULL, scale=0), **own), want)
    assert inside.calls == plain.calls


@each_sampler
@pytest.mark.parametrize("batched", [False, True])
def test_in_samplers(sampler: Any, batched: bool) -> None:
    own: Any = {"model_kwargs": {"label": LABELS}}
    want = sampler(closed_form(1.5), **own)
    model = ClassifierFreeGuidance(Conditional(), null=NULL, scale=1.5, batched=batched)
    got = sampler(model, **own)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(sampler(model, batch_size=4, **own), want, rtol=2e-3, atol=2e-3)


# ---- an interval of levels -------------------------------------------------------------------


def test_outside_of_the_interval_it_is_the_conditional_score() -> None:
    x, sigma, labels = points()
    net = Conditional()
    model = ClassifierFreeGuidance(net, null=NULL, scale=2.0, sigma_interval=(0.2, 3.0))
    everywhere = ClassifierFreeGuidance(Conditional(), null=NULL, scale=2.0)
    got = total(model(x, sigma, label=labels))  # some inside, some not
    assert net.calls == [64, 64]
    inside = (sigma > 0.2) & (sigma <= 3.0)
    assert 10 < inside.sum() < 50
    own = Conditional()(x, sigma, labels)
    want = torch.where(inside[:, None], total(everywhere(x, sigma, label=labels)), own)
    assert_same_bytes(got, want)
    for level, calls in ((0.1, 1), (0.2, 1), (3.1, 1), (3.0, 2), (1.0, 2)):
        net.calls.clear()
        output = model(x, torch.full((64,), level), label=labels)
        assert len(net.calls) == calls, level
        net.calls.clear()
        model(x, level, label=labels)
        assert len(net.calls) == calls, level
        if calls == 1:
            assert_same_bytes(output, Conditional()(x, torch.full((64,), level), labels))


def test_each_sample_is_the_same_alone_and_among_others() -> None:
    x, sigma, labels = points()
    model = ClassifierFreeGuidance(
        Conditional(), null=NULL, scale=2.0, sigma_interval=(0.2, 3.0), batched=False
    )
    among = total(model(x, sigma, label=labels))
    for i in range(0, 64, 7):
        alone = total(model(x[i : i + 1], sigma[i : i + 1], label=labels[i : i + 1]))
        torch.testing.assert_close(alone, among[i : i + 1], rtol=1e-6, atol=1e-6)


@each_sampler
def test_an_interval_in_samplers(sampler: Any) -> None:
    """Of rk45 each sample has its own levels."""
    own: Any = {"model_kwargs": {"label": LABELS}}
    strong = closed_form(1.5)
    of_class = each_score(mixtures()[1])

    def want(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        inside = ((sigma > 0.3) & (sigma <= 4.0))[:, None]
        return torch.where(inside, strong(x, sigma, label), of_class(x, sigma, label))

    net = Conditional()
    model = ClassifierFreeGuidance(net, null=NULL, scale=1.5, sigma_interval=(0.3, 4.0))
    got = sampler(model, **own)
    torch.testing.assert_close(got, sampler(want, **own), rtol=5e-3, atol=5e-3)
    plain = Conditional()
    sampler(plain, **own)
    if sampler is not SAMPLERS["adaptive"]:  # which has to find where the score jumps
        assert len(plain.calls) < len(net.calls) < 2 * len(plain.calls)


def test_an_interval_known_on_the_device_alone_is_the_same() -> None:
    """As on a GPU, and in compiled code, where nobody looks at the levels."""
    x, sigma, labels = points()
    net = ScoreMLP(4, hidden=(8,), classes=2)
    model = ClassifierFreeGuidance(net, null=NULL, scale=2.0, sigma_interval=(0.2, 3.0))

    def summed(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return total(model(x, sigma, label=labels))

    compiled = torch.compile(summed, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, sigma, labels), summed(x, sigma, labels))
    high = torch.full((64,), 10.0)
    torch.testing.assert_close(compiled(x, high, labels), summed(x, high, labels))


# ---- networks --------------------------------------------------------------------------------


def test_a_network_that_returns_the_same_memory_again() -> None:
    class Reusing(Conditional):
        held: Tensor | None = None

        def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
            found = super().forward(x, sigma, label)
            if self.held is None or self.held.shape != found.shape:
                self.held = torch.empty_like(found)
            return self.held.copy_(found)

    x, sigma, labels = points()
    with torch.no_grad():
        got = total(ClassifierFreeGuidance(Reusing(), null=NULL, scale=2.0)(x, sigma, label=labels))
    torch.testing.assert_close(got, closed_form(2.0)(x, sigma, labels))


@pytest.mark.parametrize("batched", [False, True])
def test_divergences_and_likelihoods(batched: bool) -> None:
    torch.manual_seed(0)
    x, sigma, labels = points()
    net = ScoreMLP(4, hidden=(16, 16), classes=2)
    draw_normals(net.layers[-1])
    model = ClassifierFreeGuidance(net, null=NULL, scale=2.0, batched=batched)
    none = torch.full_like(labels, NONE)
    exact = [
        fastscore.divergence(net, x, sigma, method="exact", model_kwargs={"label": label})
        for label in (labels, none)
    ]
    own: Any = {"model_kwargs": {"label": labels}}
    got = fastscore.divergence(model, x, sigma, method="exact", **own)
    torch.testing.assert_close(got, 3 * exact[0] - 2 * exact[1], rtol=1e-4, atol=1e-3)
    whole = ClassifierFreeGuidance(Conditional(torch.float64), null=NULL, scale=0.5)
    some, label = points(torch.float64)[0][:4], LABELS[:4]
    want = fastscore.log_likelihood(
        closed_form(0.5, torch.float64), some, VE, model_kwargs={"label": label}
    )
    found = fastscore.log_likelihood(whole, some, VE, model_kwargs={"label": label})
    torch.testing.assert_close(found.log_prob, want.log_prob, rtol=1e-4, atol=1e-4)


def test_closed_forms_are_kept() -> None:
    from fastscore.derivatives.closed_form import jacobian

    x, sigma, labels = points()
    model = ClassifierFreeGuidance(ScoreMLP(4, hidden=(8, 8), classes=2), null=NULL, scale=2.0)
    got = jacobian(model, x, sigma, label=labels).trace()
    point = x.clone().requires_grad_()
    output = model(point, sigma, label=labels).total()
    columns = (torch.autograd.grad(output[:, i].sum(), point, retain_graph=True) for i in range(4))
    want = sum(column[:, i] for i, (column,) in enumerate(columns))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_images_adapters_and_null_tensors() -> None:
    """Of a context of numbers, whose null is a vector, and of what belongs to no sample."""
    x, sigma = randn(5, 1, 8, 8), torch.linspace(0.1, 2, 5)
    net, labels = ScoreConvNet(1, 8, base_channels=8, classes=3), torch.tensor([0, 1, 2, 0, 1])
    draw_normals(net.leave, 0.1)
    draw_normals(net.middle, 0.1)
    model = ClassifierFreeGuidance(net, null={"label": 3}, scale=1.0)
    want = 2 * net(x, sigma, labels) - net(x, sigma, torch.full((5,), 3))
    torch.testing.assert_close(total(model(x, sigma, label=labels)), want.detach())
    table = randn(7, 2, seed=3)

    def eps(x: Tensor, sigma: Tensor, context: Tensor, table: Tensor, only: int) -> Tensor:
        assert only == 1
        assert len(table) == 7
        return x * context.sum(1).reshape(-1, 1, 1, 1) + table.sum()

    nothing, context = torch.tensor([1.0, -3.0]), randn(5, 2, seed=4)
    for batched in (False, True):
        model = ClassifierFreeGuidance(
            NetworkScore(eps, prediction="eps"),
            null={"context": nothing},
            scale=1.0,
            batched=batched,
        )
        got = total(model(x, sigma, context=context, table=fastscore.shared(table), only=1))
        spread = 2 * context.sum(1) - nothing.sum()
        want = -(x * spread.reshape(-1, 1, 1, 1) + table.sum()) / sigma.reshape(-1, 1, 1, 1)
        torch.testing.assert_close(got, want)
        moved = model.to("meta").null["context"]
        assert isinstance(moved, Tensor)
        assert moved.device.type == "meta"


def test_networks_that_mix_their_batch_are_called_twice() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
            out: Tensor = self.norm(x + label[:, None])
            return out

    x, sigma, labels = points()
    net = Normed()
    want = 2 * net(x, sigma, labels) - net(x, sigma, torch.full_like(labels, NONE))
    got = total(ClassifierFreeGuidance(net, null=NULL)(x, sigma, label=labels))
    torch.testing.assert_close(got, want.detach())
    together = ClassifierFreeGuidance(net, null=NULL, batched=True)
    with pytest.raises(ValueError, match="batched must be False for a network that mixes its batc"):
        together(x, sigma, label=labels)
    net.eval()
    want = 2 * net(x, sigma, labels) - net(x, sigma, torch.full_like(labels, NONE))
    torch.testing.assert_close(total(together(x, sigma, label=labels)), want.detach())


# ---- bad input -------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"null": {}}, ValueError, "null must be a dictionary .*, got an empty one"),
    ({"null": 10}, TypeError, "null must be a dictionary"),
    ({"null": {"label": "none"}}, TypeError, r"null\['label'\] must be a torch.Tensor"),
    ({"scale": "much"}, TypeError, "scale must be a real number"),
    ({"scale": float("inf")}, ValueError, "scale must be finite"),
    ({"sigma_interval": (3.0, 1.0)}, ValueError, "sigma_interval must be two noise levels"),
    ({"sigma_interval": (-1.0, 1.0)}, ValueError, "sigma_interval must be at least 0"),
    ({"sigma_interval": 3.0}, TypeError, "sigma_interval must be two noise levels"),
    ({"batched": 1}, TypeError, "batched must be True or False"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=str)
def test_bad_arguments(options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"ClassifierFreeGuidance: {message}"):
        ClassifierFreeGuidance(Conditional(), **{"null": NULL, **options})


def test_conditions_that_do_not_fit() -> None:
    x, sigma, labels = points()
    model = ClassifierFreeGuidance(Conditional(), null=NULL)
    with pytest.raises(ValueError, match="label must be given by name, as model_kwargs"):
        model(x, sigma)
    with pytest.raises(TypeError, match=r"model_kwargs\['label'\] must be a tensor of shape \(64,"):
        model(x, sigma, label=1)
    with pytest.raises(
        ValueError, match=r"model_kwargs\['label'\] must be a tensor of shape \(64,"
    ):
        model(x, sigma, label=labels[:3])
    half = ClassifierFreeGuidance(Conditional(), null={"label": 0.5})
    with pytest.raises(ValueError, match=r"null\['label'\] must be a whole number"):
        half(x, sigma, label=labels)
    shaped = ClassifierFreeGuidance(Conditional(), null={"label": torch.zeros(3).long()})
    with pytest.raises(ValueError, match=r"null\['label'\] must be a number or a tensor of shape"):
        shaped(x, sigma, label=labels)
    assert "scale=1, null={'label': 2}" in repr(model)
    assert model.convention() == {"scale": 1.0, "null": NULL, "sigma_interval": None}
