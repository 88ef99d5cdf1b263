"""Whole jobs of the family ``jobs``: training steps with each loss."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import fastscore
from fastscore import random, reference
from fastscore.apps.bench import checks
from fastscore.apps.bench.case import Agreement, Candidate, Case, Side, Work, library, peer
from fastscore.apps.bench.cases import networks
from fastscore.apps.bench.cases.dsm import noise_levels
from fastscore.apps.bench.peers import eager, in_jax, papers
from fastscore.apps.bench.peers.compiled import compiled
from fastscore.losses.dsm import dsm_tables
from fastscore.losses.score_matching import ScoreMatchingLoss
from fastscore.losses.ssm import SSMLoss

RATE = 1e-5  # so small that all of a side's many steps see much the same network
LOSSES = 16  # that are compared
Model = Callable[..., Tensor]
Loss = Callable[[Model], Tensor]


class Training:
    """A network of its own, its optimiser, and a step that takes the loss it is given."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        self.network, self.loss = networks.copy_of(network), loss
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=RATE)

    def __call__(self) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(self.network)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def losses(self) -> Tensor:
        return torch.stack([self.loss(self.network).detach() for _ in range(LOSSES)])


def network_step(network: nn.Module, x: Tensor, sigma: Tensor) -> Candidate:
    """Forward, backward and optimiser of the network alone."""

    def make() -> Side:
        weight = torch.randn_like(x)
        return Side(Training(network, lambda model: (weight * model(x, sigma)).sum()))

    return Candidate("network", "network", make)


# ---- denoising score matching ------------------------------------------------------------------


def build_dsm(network: networks.Network) -> Callable[[Case], Work]:
    """A step of Adam on the loss over ten noise levels."""

    def work(case: Case) -> Work:
        model, sigmas = network.make(case.device), noise_levels(case.device)
        x = torch.randn(case.shape, device=case.device)
        tables = dsm_tables("bench", sigmas.double(), "sigma2", "score")

        def by_reference(model: Model, key: Tensor) -> Tensor:
            noisy, labels = reference.perturb(x, tables[0], key)
            output = model(noisy, sigmas[labels])
            return reference.dsm_residual(output, tables[1], labels, key).mean()

        @functools.cache
        def expected() -> Tensor:
            keys = [random.key(i, device=case.device) for i in range(LOSSES)]
            with torch.no_grad():
                return torch.stack([by_reference(model, key) for key in keys])

        def side(loss: Loss) -> Side:
            training = Training(model, loss)
            return Side(training, lambda: checks.same_mean(training.losses(), expected()))

        def ours() -> Side:
            loss_fn = fastscore.DSMLoss(sigmas).to(case.device)

            def check() -> Agreement:
                key = random.key(0, device=case.device)
                return same_gradients(
                    model, lambda net: loss_fn(net, x, key=key), lambda net: by_reference(net, key)
                )

            return Side(Training(model, lambda net: loss_fn(net, x)), check)

        def in_compiled() -> Side:
            training = Training(model, lambda net: eager.dsm_loss(net, x, sigmas))
            net = training.network
            loss = compiled(lambda: eager.dsm_loss(net, x, sigmas))
            training.loss = lambda _: loss()
            return Side(training, lambda: checks.same_mean(training.losses(), expected()))

        def in_jax_() -> Side:
            step = in_jax.train_dsm(model, x, sigmas, RATE)

            def losses() -> Tensor:
                found = []
                for _ in range(LOSSES):
                    step()
                    found.append(in_jax.to_torch(step.out))
                return torch.stack(found)

            return step.side(lambda: checks.same_mean(losses(), expected()))

        candidates = [
            library(ours),
            peer("eager", lambda: side(lambda net: eager.dsm_loss(net, x, sigmas))),
            peer("NCSN loss", lambda: side(lambda net: papers.dsm_loss(net, x, sigmas))),
        ]
        if network.name == "mlp":
            candidates += [peer("compile", in_compiled), peer("jax", in_jax_)]
        candidates.append(network_step(model, x, sigmas.new_ones(len(x))))
        return Work(candidates)

    return work


def same_gradients(network: nn.Module, ours: Loss, reference: Loss) -> Agreement:
    """The loss, and the gradients of all parameters as one vector: some are 0 but for rounding."""

    def found(loss: Loss) -> tuple[Tensor, Tensor]:
        value = loss(network)
        grads = torch.autograd.grad(value, list(network.parameters()))
        return value.detach(), torch.cat([grad.flatten() for grad in grads])

    return checks.worst(*map(checks.same_formula, found(ours), found(reference)))


def build_sde(network: networks.Network) -> Callable[[Case], Work]:
    """A step of Adam on the loss of VP, the network called with (y, s)."""

    def work(case: Case) -> Work:
        model, process = network.make(case.device), fastscore.sde.VP()
        x = torch.randn(case.shape, device=case.device)
        loss_fn = fastscore.SDELoss(process, conditioning="sigma")

        def by_reference(model: Model, key: Tensor) -> Tensor:
            """At the times that the loss draws."""
            told: list[Tensor] = []

            def spy(y: Tensor, s: Tensor) -> Tensor:
                told.append(s)
                return y

            loss_fn(spy, x, key=key)
            s = told[0]
            labels, one = torch.arange(len(x), device=x.device), torch.ones_like(s)
            rows = torch.stack([one, s, one], dim=-1).double()
            noisy, _ = reference.perturb(x, rows[:, :2].contiguous(), key, labels=labels)
            rows = torch.stack([s, one, one], dim=-1).double()
            return reference.dsm_residual(model(noisy, s), rows, labels, key).mean()

        @functools.cache
        def expected() -> Tensor:
            keys = [random.key(i, device=case.device) for i in range(LOSSES)]
            with torch.no_grad():
                return torch.stack([by_reference(model, key) for key in keys])

        def side(loss: Loss) -> Side:
            training = Training(model, loss)
            return Side(training, lambda: checks.same_mean(training.losses(), expected()))

        def ours() -> Side:
            def check() -> Agreement:
                key = random.key(0, device=case.device)
                return same_gradients(
                    model, lambda net: loss_fn(net, x, key=key), lambda net: by_reference(net, key)
                )

            return Side(Training(model, lambda net: loss_fn(net, x)), check)

        return Work(
            [
                library(ours),
                peer("eager", lambda: side(lambda net: eager.sde_loss(net, x))),
                network_step(model, x, x.new_ones(len(x))),
            ]
        )

    return work


# ---- sliced score matching ---------------------------------------------------------------------


def build_ssm(network: networks.Network) -> Callable[[Case], Work]:
    """A step of Adam on the variance-reduced loss over ten noise levels, weighted by sigma^2.

    In ``train_score_matching_loss`` the library takes the exact trace, its peers projections all
    the same.
    """

    def work(case: Case) -> Work:
        model, sigmas = network.make(case.device), noise_levels(case.device)
        count = case.params["projections"]
        x = torch.randn(case.shape, device=case.device)

        def perturbed(term: Callable[[Model, Tensor], Tensor]) -> Loss:
            """The term of each sample, weighted, at perturbed data."""

            def loss(net: Model) -> Tensor:
                noisy, _, sigma, _ = eager.perturb(x, sigmas)
                level = sigma.flatten()

                def score(x: Tensor) -> Tensor:
                    return net(x, level.repeat(len(x) // len(level)))

                return (level**2 * term(score, noisy)).mean()

            return loss

        @functools.cache
        def expected() -> Tensor:
            """By exact gradients of the score along the projections, in plain PyTorch."""
            loss = perturbed(lambda net, x: eager.ssm_terms(net, x, count))
            return torch.stack([loss(model).detach() for _ in range(LOSSES)])

        def side(loss: Loss) -> Side:
            training = Training(model, loss)
            return Side(training, lambda: checks.same_mean(training.losses(), expected()))

        def ours() -> Side:
            exact = case.op == "train_score_matching_loss"
            loss_fn = ScoreMatchingLoss(sigmas) if exact else SSMLoss(sigmas, projections=count)
            loss_fn = loss_fn.to(case.device)
            return side(lambda net: loss_fn(net, x))

        def dsm_step() -> Side:
            loss_fn = fastscore.DSMLoss(sigmas).to(case.device)
            return Side(Training(model, lambda net: loss_fn(net, x)))

        def by(term: Callable[[Model, Tensor, int], Tensor]) -> Callable[[], Side]:
            return lambda: side(perturbed(lambda net, x: term(net, x, count)))

        return Work(
            [
                library(ours),
                peer("eager", by(eager.ssm_terms)),
                peer("SSM loss", by(papers.ssm_terms)),
                peer("func.jvp", by(eager.ssm_terms_forward)),
                peer("DSM step", dsm_step),
                network_step(model, x, sigmas.new_ones(len(x))),
            ]
        )

    return work


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Each network at three sizes; torch.compile at the smallest and the middle one only."""
    for number, network in enumerate(networks.QUICK if quick else networks.TRAINED):
        kept = None
        if quick or number > 1:
            kept = ("fastscore", "eager", "NCSN loss", "jax", "network")
        yield Case(
            "train_dsm_loss", "jobs", build_dsm(network), (network.batch, *network.shape),
            device=device, params={"network": network.name}, clock="host", providers=kept,
        )  # fmt: skip
    for network in networks.QUICK if quick else networks.TRAINED:
        yield Case(
            "train_sde_loss", "jobs", build_sde(network), (network.batch, *network.shape),
            device=device, params={"network": network.name}, clock="host",
        )  # fmt: skip
    sliced = zip(networks.QUICK, itertools.repeat(1)) if quick else networks.SLICED
    jobs = [("train_ssm_loss", *each) for each in sliced]
    jobs.append(("train_score_matching_loss", networks.QUICK[0] if quick else networks.EXACT, 1))
    for op, network, count in jobs:
        params = {"network": network.name, "projections": count}
        yield Case(
            op, "jobs", build_ssm(network), (network.batch, *network.shape),
            device=device, params=params, clock="host",
        )  # fmt: skip
