"""The family ``dsm``: denoising score matching but for the network, and its two halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import fastscore
from fastscore import ops, random, reference
from fastscore.apps.bench import checks, limits
from fastscore.apps.bench.case import Agreement, Case, Side, Work, library, peer
from fastscore.apps.bench.cases.common import normal, size
from fastscore.apps.bench.peers import eager, in_jax, papers
from fastscore.apps.bench.peers.compiled import compiled
from fastscore.losses.dsm import dsm_tables

LEVELS = 10
CHECKED = 8  # samples compared with the reference
Part = tuple[Tensor, Tensor, Tensor, Tensor]  # x~, labels, loss, gradient


def noise_levels(device: str) -> Tensor:
    return fastscore.geometric_sigmas(1.0, 0.1, LEVELS, device=device)


def _tables(sigmas: Tensor, prediction: str = "score") -> tuple[Tensor, Tensor]:
    return dsm_tables("bench", sigmas.double(), "sigma2", prediction)


# ---- perturbation, loss and gradient: what a training step does beside the network ---------------


def build_part(case: Case) -> Work:
    """Draw labels and noise, perturb, take the loss and its gradient for the network's output."""
    x, sigmas = normal(case), noise_levels(case.device)
    output = normal(case).requires_grad_(True)
    batch = case.shape[0]

    def gradient(loss: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(loss, output)
        return grad

    def consistent(part: Part) -> Agreement:
        """Loss and gradient must follow from the very noise that x~ was made with."""
        noisy, labels, loss, grad = (each.detach().cpu() for each in part)
        work = torch.float64 if noisy.dtype in (torch.float32, torch.float64) else torch.float32
        sigma = sigmas.cpu().to(work)[labels].reshape(-1, *[1] * (x.dim() - 1))
        z = (noisy.to(work) - x.cpu().to(work)) / sigma
        residual = sigma * output.detach().cpu().to(work) + z
        exact_loss = (residual.square().sum() / 2 / batch).reshape(1)
        return checks.worst(
            checks.standard_normal(checks.some(z), checks.some(x)),
            checks.same_formula(loss.reshape(1).to(noisy.dtype), exact_loss),
            checks.same_formula(grad, sigma * residual / batch),
        )

    def ours() -> Side:
        key = random.key(0, device=case.device)
        perturb_table, residual_table = _tables(sigmas)

        def run() -> Part:
            noisy, labels = ops.perturb(x, perturb_table, key)
            loss = ops.dsm_residual(output, residual_table, labels, key, reduction="mean")
            return noisy, labels, loss, gradient(loss)

        def check() -> Agreement:
            part = run()
            found = [consistent(part)]
            x0, out = x[:CHECKED], output[:CHECKED]
            labels = part[1][:CHECKED]
            plain, _ = reference.perturb(x0, perturb_table, key, labels=labels)
            exact, _ = reference.perturb(x0.double(), perturb_table, key, labels=labels)
            found.append(checks.against_reference(part[0][:CHECKED], plain, exact, noise=True))
            with torch.no_grad():
                got = ops.dsm_residual(out, residual_table, labels, key)
                plain = reference.dsm_residual(out, residual_table, labels, key)
                exact = reference.dsm_residual(out.double(), residual_table, labels, key)
            found.append(checks.against_reference(got, plain, exact, noise=True))
            return checks.worst(*found)

        return Side(run, check)

    def in_eager() -> Part:
        noisy, labels, sigma, z = eager.perturb(x, sigmas)
        loss = eager.dsm_residual(output, sigma, z).mean()
        return noisy, labels, loss, gradient(loss)

    def as_published() -> Part:
        noisy, labels, sigma = papers.dsm_perturb(x, sigmas)
        loss = papers.dsm_residual(output, noisy, x, sigma).mean(dim=0)
        return noisy, labels, loss, gradient(loss)

    def in_compiled() -> Side:
        def formulas(x: Tensor, sigmas: Tensor, output: Tensor) -> tuple[Tensor, ...]:
            noisy, labels, sigma, z = eager.perturb(x, sigmas)
            return noisy, labels, eager.dsm_residual(output, sigma, z).mean()

        step = compiled(formulas, x, sigmas, output)

        def run() -> Part:
            noisy, labels, loss = step(x, sigmas, output)
            return noisy, labels, loss, gradient(loss)

        return Side(run, lambda: consistent(run()))

    def in_jax_() -> Side:
        step = in_jax.dsm_part(x, output, sigmas)

        def check() -> Agreement:
            step()
            noisy, labels, loss, grad = (in_jax.to_torch(each) for each in step.out)
            return consistent((noisy.to(x.dtype), labels, loss, grad.to(x.dtype)))

        return step.side(check)

    def plain(run: Callable[[], Part]) -> Callable[[], Side]:
        return lambda: Side(run, lambda: consistent(run()))

    return Work(
        [
            library(ours),
            peer("eager", plain(in_eager)),
            peer("NCSN loss", plain(as_published)),
            peer("compile", in_compiled),
            peer("jax", in_jax_),
            limits.triad(x),
            limits.copy(x),
        ],
        bytes=4 * x.nbytes,  # read x, write x~; read the output, write its gradient
        operations=2 * (limits.NORMAL + 3) * case.elements,
    )


# ---- perturbation --------------------------------------------------------------------------------


def build_perturb(case: Case) -> Work:
    """x~ = x + sigma z with labels drawn."""
    x, sigmas = normal(case), noise_levels(case.device)

    def noise(run: Callable[[], tuple[Tensor, Tensor]]) -> Agreement:
        def draw() -> Tensor:
            noisy, labels = run()
            sigma = sigmas.double()[labels].reshape(-1, *[1] * (x.dim() - 1))
            return checks.some((noisy.double() - x.double()) / sigma)

        found, part = checks.gathered(draw), checks.some(x)
        return checks.standard_normal(found, part.repeat(len(found) // len(part)))

    def ours() -> Side:
        key = random.key(0, device=case.device)
        perturb_table, _ = _tables(sigmas)

        def check() -> Agreement:
            got, labels = ops.perturb(x, perturb_table, key)
            x0, labels = x[:CHECKED], labels[:CHECKED]
            plain, _ = reference.perturb(x0, perturb_table, key, labels=labels)
            exact, _ = reference.perturb(x0.double(), perturb_table, key, labels=labels)

            def fresh() -> tuple[Tensor, Tensor]:
                key[1] += 1
                return ops.perturb(x, perturb_table, key)

            accuracy = checks.against_reference(got[:CHECKED], plain, exact, noise=True)
            return checks.worst(accuracy, noise(fresh))

        return Side(lambda: ops.perturb(x, perturb_table, key), check)

    def in_eager() -> Side:
        def run() -> tuple[Tensor, Tensor]:
            return eager.perturb(x, sigmas)[:2]

        return Side(run, lambda: noise(run))

    return Work(
        [
            library(ours),
            peer("eager", in_eager),
            limits.triad(x),
            limits.copy(x),
            limits.clone(x),
        ],
        bytes=2 * x.nbytes,
        operations=(limits.NORMAL + 3) * case.elements,
    )


# ---- the residual --------------------------------------------------------------------------------


def build_residual(case: Case) -> Work:
    """The loss of each sample from a score, or from predicted data; without a gradient."""
    output, sigmas = normal(case), noise_levels(case.device)
    labels = torch.randint(LEVELS, case.shape[:1], device=case.device)
    prediction = case.params.get("prediction", "score")
    noisy = normal(case) if prediction == "x0" else None
    tensors = [output] if noisy is None else [output, noisy]

    def ours() -> Side:
        key = random.key(0, device=case.device)
        args = (_tables(sigmas, prediction)[1], labels, key)
        few = (args[0], labels[:CHECKED], key)

        def run() -> Tensor:
            return ops.dsm_residual(output, *args, noisy=noisy)

        def check() -> Agreement:
            some = [tensor[:CHECKED] for tensor in tensors]
            plain, exact = (
                reference.dsm_residual(out, *few, noisy=beside[0] if beside else None)
                for out, *beside in (some, [tensor.double() for tensor in some])
            )
            return checks.against_reference(run()[:CHECKED], plain, exact, noise=True)

        return Side(run, check)

    def in_eager() -> Side:
        z = torch.randn_like(output)  # kept from the perturbation, as it must be

        def losses(z: Tensor, sigmas: Tensor, output: Tensor, *beside: Tensor) -> Tensor:
            sigma = sigmas[labels].reshape(-1, *[1] * (output.dim() - 1)).to(output.dtype)
            if beside:
                output = (output - beside[0]) / sigma.square()
            return eager.dsm_residual(output, sigma, z)

        def run() -> Tensor:
            return losses(z, sigmas, *tensors)

        def check() -> Agreement:
            exact = [tensor.double() for tensor in (z, sigmas, *tensors)]
            return checks.same_formula(run(), losses(*exact))

        return Side(run, check)

    return Work(
        [library(ours), peer("eager", in_eager), limits.read(*tensors)],
        bytes=sum(tensor.nbytes for tensor in tensors),
        operations=(limits.NORMAL + 3 + 2 * (noisy is not None)) * case.elements,
    )


def cases(device: str, quick: bool) -> Iterator[Case]:
    """At the size of a training batch of CIFAR-10, larger and smaller, and of points in a plane."""
    shape = (16, 3, 32, 32) if quick else (128, 3, 32, 32)
    needs = size(torch.Size(shape).numel(), buffers=20)
    kept = None
    if quick:
        kept = ("fastscore", "eager", "NCSN loss", "jax", "triad", "copy")
    yield Case("dsm_loss", "dsm", build_part, shape, device=device, providers=kept, **needs)
    yield Case("perturb", "dsm", build_perturb, shape, device=device, **needs)
    yield Case("dsm_residual", "dsm", build_residual, shape, device=device, **needs)
    if quick:
        return
    beside = {"prediction": "x0"}  # x~ is read too
    yield Case("dsm_residual", "dsm", build_residual, shape, device=device, params=beside, **needs)
    few = ("fastscore", "eager", "NCSN loss", "jax", "triad", "copy")
    yield Case("dsm_loss", "dsm", build_part, shape, torch.bfloat16, device, providers=few, **needs)
    yield Case("dsm_loss", "dsm", build_part, (128, 64), device=device, providers=few)
    yield Case("dsm_loss", "dsm", build_part, (65536, 2), device=device, providers=few)
    large = (1024, 16384)  # in memory, not in a cache
    yield Case("perturb", "dsm", build_perturb, large, device=device, **size(2**24))
