"""Networks from real life: what they do to their arguments, what else they take, how they fail.

Each result must be that of a network which behaves, or a refusal that says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from helpers import assert_same_bytes, randn
from samplers import SIGMAS, Sampler, every_sampler, gaussian_score, run_annealed
from torch import Tensor, nn

import fastscore
from fastscore import annealed_langevin, langevin
from fastscore._support.lending import is_untouched, lend
from fastscore.scores import DenoiserScore, EnergyScore, EpsScore

# ---- what a network may write to or keep --------------------------------------------------------


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


def test_functions_around_the_labels_of_a_batch() -> None:
    net, x = Conditional(), randn(4, 2)
    for sigmas in (None, SIGMAS):
        options: dict[str, Any] = {"sigmas": sigmas, "seed": 0, "projections": 3}
        want = fastscore.ssm_loss(closed_over(net), x, method="reverse", **options)
        for _ in range(3):
            got = fastscore.ssm_loss(closed_over(net), x, method="finite_difference", **options)
            torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


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


# ---- what else a network takes ------------------------------------------------------------------


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


# ---- options ------------------------------------------------------------------------------------


def test_an_unknown_option_is_named() -> None:
    x = randn(4, 2)
    for fn, call in {
        "annealed_langevin": lambda: annealed_langevin(
            gaussian_score, SIGMAS, x, steps_per_simga=3
        ),
        "dsm_loss": lambda: fastscore.dsm_loss(gaussian_score, x, SIGMAS, reductoin="sum"),
        "SSMLoss": lambda: fastscore.SSMLoss(SIGMAS, reductoin="sum"),
        "DSMLoss": lambda: fastscore.DSMLoss(SIGMAS)(gaussian_score, x, sead=3),
        "divergence": lambda: fastscore.divergence(lambda x: -x, x, prob=3),
    }.items():
        with pytest.raises(
            TypeError, match=rf"^{fn}: there is no option '\w+' \(did you mean '\w+"
        ):
            call()


def test_a_network_of_labels_is_told_from_one_of_sigma() -> None:
    class Ncsn(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind
            self.register_buffer("sigmas", SIGMAS.float())
            self.table = nn.Embedding(4, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            if self.kind == "buffer":  # NCSNv2
                return -x / self.sigmas[y][:, None]
            if self.kind == "gather":
                return -x / self.sigmas.index_select(0, y)[:, None]
            return -x * self.table(y)

    x = randn(4, 2)
    for kind in ("buffer", "gather", "embedding"):
        net = Ncsn(kind)
        for how in ("sigma", "log_sigma"):
            calls: list[Callable[[Any, str], Any]] = [
                lambda net, how: run_annealed(x, net, conditioning=how),
                lambda net, how: fastscore.dsm_loss(net, x, SIGMAS, conditioning=how),
                lambda net, how: fastscore.ssm_loss(
                    net, x, sigmas=SIGMAS, conditioning=how, method="reverse"
                ),
                lambda net, how: EpsScore(net, conditioning=how)(x, 1.0),
            ]
            for call in calls:
                with pytest.raises(ValueError, match=r'conditioning must be "index" for a model'):
                    call(net, how)
        assert run_annealed(x, net, conditioning="index", seed=0).shape == (4, 2)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_networks_are_sampled(half: torch.dtype) -> None:
    net = fastscore.nn.ScoreMLP(2, hidden=(16,))
    x0 = randn(64, 2)
    want = run_annealed(x0, net, seed=0)
    net.to(half)
    seen = set()
    net.register_forward_pre_hook(lambda _, args: seen.add((args[0].dtype, args[1].dtype)))
    got = run_annealed(x0, net, seed=0)
    assert seen == {(half, torch.float32)}
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    run_annealed(shape=(3, 2), model=net)
    mixed = fastscore.nn.ScoreMLP(2, hidden=(16,))
    mixed.layers[0].to(half)
    with pytest.raises(ValueError, match=rf"samplers: autocast={half}"):
        run_annealed(x0, mixed)
    run_annealed(x0, mixed, autocast=half)


# ---- chains that diverge ------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [3.0, 100.0])
def test_divergence_is_said(step_size: float) -> None:
    with pytest.warns(UserWarning, match=rf"^langevin: .*step_size={step_size:.4g} \(conv") as said:
        langevin(lambda x: -3 * x, shape=(4, 2), steps=300, step_size=step_size, seed=0)
    assert [w.filename for w in said] == [__file__]


def test_nan_is_said() -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, -x)

    with pytest.warns(UserWarning, match="NaN or infinity in 1 of 4 samples after 17 steps"):
        run_annealed(randn(4, 2), model)


@every_sampler
def test_a_forgotten_adapter_is_said_and_right_chains_say_nothing(
    sampler: Sampler, steps: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(randn(4, 2), seed=0)
        sampler(shape=(0, 2))
    with pytest.warns(UserWarning, match="EpsScore"):
        sampler(randn(4, 2), lambda x, sigma: 1e3 * x)


# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        numpy.float64(0.1),
        numpy.float32(0.1),
        numpy.array(0.1),
        numpy.array([0.1]),
        torch.tensor(0.1),
        torch.tensor([0.1]),
    ],
)
def test_step_sizes_of_any_kind_of_number(number: Any) -> None:
    for run in (
        lambda size: langevin(lambda x: -x, randn(4, 2), steps=5, step_size=size, seed=0),
        lambda size: annealed_langevin(gaussian_score, SIGMAS, randn(4, 2), step_size=size, seed=0),
    ):
        torch.testing.assert_close(run(number), run(0.1))


def test_step_sizes_for_each_step_from_numpy() -> None:
    def run(sizes: Any) -> Tensor:
        return langevin(lambda x: -x, randn(4, 2), steps=5, step_size=sizes, seed=0)

    sizes = [0.1, 0.2, 0.1, 0.3, 0.1]
    assert_same_bytes(run(numpy.array(sizes)), run(sizes))
    with pytest.raises(ValueError, match="step_size"):
        run(numpy.array([[0.1]] * 5))


def test_what_would_get_no_gradient_is_refused() -> None:
    x, sigmas = randn(4, 2), SIGMAS.clone().requires_grad_()
    for call in (
        lambda: fastscore.dsm_loss(gaussian_score, x, sigmas),
        lambda: fastscore.DSMLoss(sigmas),
        lambda: fastscore.ssm_loss(gaussian_score, x, sigmas=sigmas),
        lambda: annealed_langevin(gaussian_score, sigmas, x),
    ):
        with pytest.raises(ValueError, match="sigmas must be a tensor that needs no gradient"):
            call()
    with torch.no_grad():
        fastscore.dsm_loss(gaussian_score, x, sigmas)
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="weighting must be a function whose weights need no"):
        fastscore.dsm_loss(gaussian_score, x, SIGMAS, weighting=lambda sigmas: weight * sigmas)


def test_numbers_of_more_than_64_bits() -> None:
    x = randn(4, 2)
    for call in (
        lambda: run_annealed(x, sample_offset=2**63),
        lambda: fastscore.dsm_loss(gaussian_score, x, SIGMAS, sample_offset=2**63),
        lambda: fastscore.ssm_loss(lambda x: -x, x, sample_offset=2**63, method="forward"),
        lambda: fastscore.divergence(lambda x: -x, x, sample_offset=2**63),
        lambda: fastscore.random.normal(fastscore.random.key(0), (2,), sample_offset=2**63),
    ):
        with pytest.raises(ValueError, match=r"sample_offset must be .*2\^63"):
            call()
