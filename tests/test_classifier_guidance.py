"""Classifier guidance: with the exact posterior it is the exact score of a class."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from class_cases import (
    LABELS,
    SAMPLERS,
    VE,
    Conditional,
    InTime,
    Posterior,
    each_score,
    mixtures,
    points,
)
from helpers import assert_same_bytes, randn
from torch import Tensor, nn

import fastscore
from fastscore import sde
from fastscore.guidance import ClassifierFreeGuidance, ClassifierGuidance
from fastscore.scores import EnergyScore, NetworkScore, Terms

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def total(output: Tensor | Terms) -> Tensor:
    return (output.total() if isinstance(output, Terms) else output).detach()


def guided(dtype: torch.dtype = torch.float32, **options: Any) -> ClassifierGuidance:
    return ClassifierGuidance(mixtures(dtype)[0], Posterior(dtype), **options)


# ---- exact -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_the_posterior_it_is_the_score_of_the_class(dtype: torch.dtype) -> None:
    x, sigma, labels = points(dtype)
    want = each_score(mixtures(dtype)[1])(x, sigma, labels)
    off = (total(guided(dtype)(x, sigma, label=labels)) - want).abs().max()
    assert off < (1e-5 if dtype == torch.float64 else 1e-5 * want.abs().max())
    other = each_score(mixtures(dtype)[1][::-1])(x, sigma, labels)
    assert (other - want).abs().max() > 1  # of the wrong class


CALLS: list[tuple[str, Any]] = [
    ("sigma", {}),
    ("log_sigma", {}),
    ("none", {}),
    ("index", {"sigmas": [20.0, 4.0, 1.0, 0.12]}),
    ("index", {"betas": torch.linspace(1e-4, 0.02, 100)}),
    ("time", {"sde": sde.VP()}),
    ("time", {"sde": sde.SubVP(), "time_scale": 999.0}),
    ("time", {"sde": sde.RectifiedFlow()}),
]


@pytest.mark.parametrize(("conditioning", "options"), CALLS, ids=str)
def test_every_way_of_calling_the_classifier(conditioning: str, options: Any) -> None:
    """What it is told, turned back into the level, and the variable into y."""
    x, sigma, labels = points()
    posterior = Posterior()

    def classifier(w: Tensor, *told: Tensor) -> Tensor:
        if conditioning == "sigma":
            return posterior(w, *told)
        if conditioning == "log_sigma":
            return posterior(w, told[0].exp())
        if conditioning == "none":
            assert not told
            return posterior(w, sigma)
        if conditioning == "time":
            scale = options.get("time_scale", 1.0)
            return InTime(posterior, options["sde"], scale)(w, told[0].double())
        assert told[0].dtype == torch.int64
        if "sigmas" in options:
            return posterior(w, torch.tensor(options["sigmas"])[told[0]])
        kept = (1 - options["betas"].double()).cumprod(0)[told[0]]
        level = (1 / kept - 1).sqrt().float()
        return posterior(w * (1 + sigma[:, None] ** 2).sqrt(), level)

    model = ClassifierGuidance(mixtures()[0], classifier, conditioning=conditioning, **options)
    got = model.gradient(x, sigma, label=labels)
    at = sigma
    if "sigmas" in options:
        levels = torch.tensor(options["sigmas"])
        at = levels[(levels.log() - sigma.log()[:, None]).abs().argmin(1)]
    if "betas" in options:
        levels = (1 / (1 - options["betas"].double()).cumprod(0) - 1).sqrt().float()
        at = levels[(levels.log() - sigma.log()[:, None]).abs().argmin(1)]
    want = guided().gradient(x, at, label=labels)
    assert (got - want).abs().max() < 2e-5 * want.abs().max()
    assert model.net_conditioning == conditioning


@each_sampler
def test_samples_are_those_of_the_class(sampler: Any) -> None:
    """Also of batches of a fixed size, and with steps of each sample's own."""
    own: Any = {"model_kwargs": {"label": LABELS}}
    want = sampler(each_score(mixtures()[1]), **own)
    model = guided()
    torch.testing.assert_close(sampler(model, **own), want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sampler(model, batch_size=4, **own), want, rtol=1e-3, atol=1e-3)
    alone = sampler(guided(label=1), samples=torch.arange(6))
    torch.testing.assert_close(alone[LABELS == 1], want[LABELS == 1], rtol=1e-3, atol=1e-3)


@each_sampler
def test_scale_0_is_no_guidance_to_the_byte(sampler: Any) -> None:
    whole, posterior = mixtures()[0], Posterior()
    model = ClassifierGuidance(whole, posterior, scale=0)
    assert_same_bytes(sampler(model, model_kwargs={"label": LABELS}), sampler(whole))
    assert posterior.calls == 0


def test_a_step_asks_the_classifier_once() -> None:
    posterior = Posterior()
    model = ClassifierGuidance(mixtures()[0], posterior)
    x, sigma, labels = points()
    model(x, sigma, label=labels)  # looks whether its samples depend on one another
    before = posterior.calls
    model(x, sigma, label=labels)
    assert posterior.calls == before + 1


def test_scales_weigh_the_gradient_and_stand_in_the_terms() -> None:
    x, sigma, labels = points()
    one, three = guided()(x, sigma, label=labels), guided(scale=3.0)(x, sigma, label=labels)
    assert isinstance(one, Terms)
    assert isinstance(three, Terms)
    assert [w for _, w in three.pairs] == [1.0, 3.0]
    for got, want in zip(three.pairs, one.pairs, strict=True):
        assert_same_bytes(got[0].detach(), want[0].detach())


def test_the_likelihood_is_that_of_the_class() -> None:
    whole, parts = mixtures(torch.float64)
    x = torch.cat([part.sample(2, seed=0) for part in parts])
    labels = torch.tensor([0, 0, 1, 1])
    own: Any = {"model_kwargs": {"label": labels}}
    model = ClassifierGuidance(whole, Posterior(torch.float64))
    want = fastscore.log_likelihood(each_score(parts), x, VE, **own).log_prob
    got = fastscore.log_likelihood(model, x, VE, **own).log_prob
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    probed = fastscore.log_likelihood(
        model, x, VE, divergence="hutchinson", probes=4, seed=0, **own
    )
    assert ((probed.log_prob - want).abs() < 5 * probed.stderr + 0.05).all()


def test_divergences_and_products_see_the_gradient_that_is_taken_inside() -> None:
    x, sigma, labels = points(torch.float64)
    model, v = guided(torch.float64, scale=2.0), randn(64, 4, dtype=torch.float64, seed=9)
    whole, parts = mixtures(torch.float64)
    of_class = each_score(parts)
    own: Any = {"model_kwargs": {"label": labels}}

    def bayes(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return 2 * of_class(x, sigma, label) - whole(x, sigma)

    for method in ("exact", "hutchinson"):
        how: Any = {"method": method, "seed": 0, **own}
        want = fastscore.divergence(bayes, x, sigma, **how)
        got = fastscore.divergence(model, x, sigma, **how)
        torch.testing.assert_close(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that another way is taken
        got = fastscore.jvp(model, x, v, sigma, label=labels)[1]
    torch.testing.assert_close(got, fastscore.jvp(bayes, x, v, sigma, label=labels)[1])


# ---- every kind of classifier ----------------------------------------------------------------


class Logits(nn.Module):
    """A small network; ``write`` changes what it is handed."""

    def __init__(self, write: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 2))
        self.write = write

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.log().unsqueeze(1).to(x.dtype)
        out: Tensor = self.layers(torch.cat([x, level], dim=1))
        if self.write:
            x.mul_(0)
            sigma.fill_(7)
        return out


def by_hand(net: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        chosen = net(point, sigma).float().log_softmax(1)[torch.arange(len(x)), labels]
        return torch.autograd.grad(chosen.sum(), point)[0]


@pytest.mark.parametrize("kind", ["plain", "writes", "scripted", "compiled", "function"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_kinds_of_classifiers_and_modes(kind: str, mode: Any) -> None:
    net = Logits(kind == "writes")
    x, sigma, labels = points()
    want = by_hand(Logits(), x, sigma, labels)
    classifier: Any = net
    if kind == "scripted":
        classifier = torch.jit.script(net)
    elif kind == "compiled":
        classifier = torch.compile(net, backend="aot_eager")
    elif kind == "function":
        classifier = lambda x, s: net(x, s)  # noqa: E731
    model = ClassifierGuidance(mixtures()[0], classifier)
    kept = x.clone()
    with mode():
        got = model.gradient(x, sigma, label=labels)
        again = total(model(x, sigma, label=labels))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(again, mixtures()[0](x, sigma) + want)
    assert_same_bytes(x, kept)
    assert got.requires_grad == (mode is torch.enable_grad)


def test_half_precision() -> None:
    net, (x, sigma, labels) = Logits().bfloat16(), points()
    model = ClassifierGuidance(mixtures()[0], net)
    half = x.bfloat16()
    want = by_hand(net, half, sigma, labels)
    got = model.gradient(half, sigma, label=labels)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.01)
    with pytest.raises(ValueError, match="x must be of the model's dtype"):
        model(x, sigma, label=labels)
    under = ClassifierGuidance(mixtures()[0], Logits())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = under.gradient(x, sigma, label=labels)
    want = by_hand(Logits(), x, sigma, labels)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)


def test_a_transform_and_a_compiled_score() -> None:
    x, sigma, labels = points()
    model = ClassifierGuidance(mixtures()[0], Logits())
    want = model.gradient(x, sigma, label=labels).detach()

    def one(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return model.gradient(x[None], sigma[None], label=label[None])[0]

    got = torch.func.vmap(one)(x, sigma, labels)
    torch.testing.assert_close(got.detach(), want)
    compiled = torch.compile(
        lambda x, s, label: model.gradient(x, s, label=label), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, sigma, labels).detach(), want)


def test_an_energy_and_other_conventions_are_guided_too() -> None:
    x, sigma, labels = points()
    whole, net = mixtures()[0], Logits()
    want = total(ClassifierGuidance(whole, net)(x, sigma, label=labels))
    energy = EnergyScore(lambda x, sigma: -whole.log_prob(x, sigma))
    scores: list[Any] = [
        energy,
        NetworkScore(lambda x, s: -s[:, None] * whole(x, s), prediction="eps"),
        ClassifierFreeGuidance(
            lambda x, s, **k: whole(x, s), null={"sort": 0}, scale=2.0
        ),  # a score of two terms
    ]
    sort = torch.ones(64, dtype=torch.int64)
    for score in scores:
        more = {"sort": sort} if score is scores[-1] else {}
        got = total(ClassifierGuidance(score, net)(x, sigma, label=labels, **more))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_else_the_classifier_takes_goes_with_the_samples() -> None:
    def classifier(x: Tensor, sigma: Tensor, sign: Tensor) -> Tensor:
        return torch.cat([-x.sum(1, keepdim=True), x.sum(1, keepdim=True)], 1) * sign[:, None]

    model = ClassifierGuidance(mixtures()[0], classifier, label=0)
    sign = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    own: Any = {"model_kwargs": {"classifier_kwargs": {"sign": sign}}}
    whole = SAMPLERS["reverse"](model, **own)
    torch.testing.assert_close(SAMPLERS["reverse"](model, batch_size=4, **own), whole)


def test_a_conditional_score_is_told_the_label_too() -> None:
    """At weight w the score of p(y | c) p(c | y)^w: that of w + 1 in classifier guidance."""
    x, sigma, labels = points(torch.float64)
    inner, posterior = Conditional(torch.float64), Posterior(torch.float64)
    model = ClassifierGuidance(inner, posterior, scale=2.0, conditional=True)
    want = total(guided(torch.float64, scale=3.0)(x, sigma, label=labels))
    torch.testing.assert_close(total(model(x, sigma, label=labels)), want)
    none = ClassifierGuidance(inner, posterior, scale=0.0, conditional=True, label=1)
    ones = torch.ones_like(labels)
    assert_same_bytes(none(x, sigma), inner(x, sigma, ones))


def test_a_classifier_of_fewer_levels_is_told_of() -> None:
    net, classifier = fastscore.nn.ScoreMLP(4), fastscore.nn.NoisyClassifier(4, 2)
    net.sigma_range, classifier.sigma_range = (0.01, 50.0), (0.01, 10.0)
    with pytest.warns(UserWarning, match="from 0.01 to 10, the score on those from 0.01 to 50"):
        ClassifierGuidance(net, classifier)
    classifier.sigma_range = (0.0101, 49.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ClassifierGuidance(net, classifier).sigma_range == (0.01, 50.0)


def test_labels_that_nobody_looks_at_make_nan_of_their_samples() -> None:
    """As on a GPU, where a second look would wait."""
    x, sigma, labels = points()
    model = ClassifierGuidance(mixtures()[0], Logits())
    want = model.gradient(x, sigma, label=labels).detach()
    labels[3], labels[5] = 2, -1
    compiled = torch.compile(
        lambda x, s, label: model.gradient(x, s, label=label), backend="aot_eager", fullgraph=True
    )
    got = compiled(x, sigma, labels).detach()
    bad = torch.tensor([3, 5])
    assert got[bad].isnan().all()
    keep = torch.ones(64, dtype=torch.bool).index_fill(0, bad, False)
    torch.testing.assert_close(got[keep], want[keep])


def test_in_a_sampler_under_autocast() -> None:
    whole, net = mixtures()[0], Logits()
    model = ClassifierGuidance(whole, net, label=1)
    got = SAMPLERS["reverse"](model, autocast=torch.bfloat16)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, SAMPLERS["reverse"](model), rtol=0.1, atol=0.1)


def test_nan_stays_with_its_sample() -> None:
    x, sigma, labels = points()
    model = ClassifierGuidance(mixtures()[0], Logits())
    want = model.gradient(x, sigma, label=labels)
    x[3] = torch.nan
    got = model.gradient(x, sigma, label=labels)
    assert got[3].isnan().all()
    keep = torch.arange(64) != 3
    assert_same_bytes(got[keep].detach(), want[keep].detach())


def test_an_impossible_class_leaves_no_nan() -> None:
    """A logit of minus infinity, of another class than the one asked for."""
    x, sigma, _ = points()

    def classifier(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.cat([Logits()(x, sigma), x.new_full((len(x), 1), -torch.inf)], dim=1)

    got = ClassifierGuidance(mixtures()[0], classifier, label=1).gradient(x, sigma)
    want = by_hand(Logits(), x, sigma, torch.ones(64, dtype=torch.int64))
    torch.testing.assert_close(got, want)


# ---- what is refused -------------------------------------------------------------------------


class Mixing(Logits):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x - x.mean(0), sigma)


def test_classifiers_without_a_gradient_or_whose_samples_mix_are_refused() -> None:
    x, sigma, labels = points()
    whole, net = mixtures()[0], Logits()

    def detached(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x, sigma).detach()

    def cut(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x.detach(), sigma)

    for classifier in (detached, cut, lambda x, s: torch.zeros(len(x), 2)):
        with pytest.raises(ValueError, match="classifier must be differentiable in x, got a value"):
            ClassifierGuidance(whole, classifier)(x, sigma, label=labels)
        with pytest.raises(ValueError, match="classifier must be differentiable in x"):
            SAMPLERS["annealed"](ClassifierGuidance(whole, classifier, label=1))
    normed = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = ClassifierGuidance(whole, normed, conditioning="none")
    with pytest.raises(ValueError, match=r"classifier must be one whose samples.*BatchNorm"):
        model(x, sigma, label=labels)
    normed.eval()
    assert total(model(x, sigma, label=labels)).isfinite().all()
    with pytest.raises(ValueError, match="logits of a sample change with the others in its batch"):
        ClassifierGuidance(whole, Mixing())(x, sigma, label=labels)
    dropping = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))
    before = torch.get_rng_state()
    ClassifierGuidance(whole, dropping, conditioning="none")._refuse_mixed(x, (sigma, sigma), {})
    assert torch.equal(before, torch.get_rng_state())


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"label": None}, ValueError, r"label must be given, as model_kwargs=\{\"label\": labels\}"),
    ({"label": 2}, ValueError, r"label must be in \[0, 2\), .* got labels from 2 to 2"),
    ({"label": -1}, ValueError, "label must be at least 0, got -1"),
    ({"label": torch.full((64,), 5)}, ValueError, r"label must be in \[0, 2\)"),
    ({"label": torch.full((64,), -100)}, ValueError, r"label must be in \[0, 2\)"),
    ({"label": torch.zeros(64)}, ValueError, r"label must be a torch.int64 tensor of shape \(64,"),
    ({"label": torch.zeros(3).long()}, ValueError, r"label must be a torch.int64 tensor of shape"),
    ({"label": [0] * 64}, TypeError, "label must be an int64 tensor"),
    ({"label": 1.5}, TypeError, "label must be an integer, got float"),
    ({"label": 1, "classifier_kwargs": 3}, TypeError, "model_kwargs must be a dictionary"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=str)
def test_bad_input(options: Any, kind: type[Exception], message: str) -> None:
    x, sigma, _ = points()
    with pytest.raises(kind, match=f"ClassifierGuidance: {message}"):
        guided()(x, sigma, **options)


def test_bad_classifiers_and_arguments() -> None:
    x, sigma, labels = points()
    whole: Any = mixtures()[0]
    for output in (
        torch.zeros(64),
        torch.zeros(3, 2),
        torch.zeros(64, 0),
        torch.zeros(64, 2).int(),
    ):
        with pytest.raises(ValueError, match="classifier must be one that returns logits"):
            ClassifierGuidance(whole, lambda x, s, out=output: out)(x, sigma, label=labels)
    with pytest.raises(TypeError, match="classifier must be callable"):
        ClassifierGuidance(whole, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sde must be given, the process of a classifier"):
        ClassifierGuidance(whole, Logits(), conditioning="time")
    with pytest.raises(ValueError, match="time_scale must be left out"):
        ClassifierGuidance(whole, Logits(), conditioning="none", time_scale=999)
    with pytest.raises(ValueError, match="sigmas or betas must be given"):
        ClassifierGuidance(whole, Logits(), conditioning="index")
    with pytest.raises(ValueError, match="label must be one number for all"):
        ClassifierGuidance(whole, Logits(), label=labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be finite"):
        ClassifierGuidance(whole, Logits(), scale=float("nan"))
    with pytest.raises(ValueError, match="score must be a model of"):
        ClassifierGuidance(InTimeScore(), Logits())
    model = ClassifierGuidance(whole, fastscore.nn.NoisyClassifier(4, 2), scale=2.0, label=1)
    assert "scale=2, conditioning='sigma', label=1" in repr(model)
    assert model.convention()["scale"] == 2.0


class InTimeScore(nn.Module):
    conditioning = "time"
