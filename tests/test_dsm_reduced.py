"""The mean and the sum of the denoising residual, whose gradient is made in the forward pass."""

from __future__ import annotations

import pytest
import torch
from byte_cases import dsm_tables
from helpers import DTYPES, LAYOUTS, assert_same_bytes, make_key, randn, with_layout
from torch import Tensor

from fastscore import ops, reference

BATCH = 7
REDUCTIONS = ("mean", "sum")


def reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss.mean() if reduction == "mean" else loss.sum()


class Problem:
    """A network's output, and its residual in one op or in two."""

    def __init__(self, device: torch.device, output: Tensor, reduction: str = "mean") -> None:
        self.output = output.to(device).requires_grad_(True)
        self.table = dsm_tables()[1].to(device)
        self.labels = (torch.arange(output.shape[0]) % len(self.table)).to(device)
        self.key = make_key(3, 1, device)
        self.reduction = reduction

    def in_one(self) -> Tensor:
        args = (self.output, self.table, self.labels, self.key)
        return ops.dsm_residual(*args, reduction=self.reduction, sample_offset=2)

    def in_two(self) -> Tensor:
        args = (self.output, self.table, self.labels, self.key)
        return reduced(ops.dsm_residual(*args, sample_offset=2), self.reduction)

    def gradient(self, loss: Tensor, **options: object) -> Tensor:
        (grad,) = torch.autograd.grad(loss, self.output, **options)
        return grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(BATCH, 3), (BATCH, 3, 43), (3, 1024), (2, 2500), (BATCH,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bytes_as_the_two_steps(
    dtype: torch.dtype, shape: tuple[int, ...], reduction: str, device: torch.device
) -> None:
    problem = Problem(device, randn(*shape, dtype=dtype), reduction)
    one, two = problem.in_one(), problem.in_two()
    assert one.shape == ()
    assert_same_bytes(one, two)
    assert_same_bytes(problem.gradient(one), problem.gradient(two))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_matches_the_reference(reduction: str, device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 300, dtype=torch.float64), reduction)
    got = problem.in_one()
    args = (problem.output.cpu(), problem.table.cpu(), problem.labels.cpu(), problem.key.cpu())
    want = reference.dsm_residual(*args, reduction=reduction, sample_offset=2)
    close = {"rtol": 1e-5, "atol": 1e-5}  # the normals differ by units in float32's last place
    torch.testing.assert_close(got.cpu(), want, **close)
    torch.testing.assert_close(problem.gradient(got), problem.gradient(want), **close)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("factor", [0.0, -0.3, 1.0, 7.0, float("nan")])
def test_any_upstream_gradient(factor: float, reduction: str, device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 3, 300), reduction)
    grads = [problem.gradient(loss * factor) for loss in (problem.in_one(), problem.in_two())]
    assert_same_bytes(*grads)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout: str, device: torch.device) -> None:
    output = with_layout(randn(4, 3, 5, 7), layout)
    problem = Problem(device, output.detach())
    for factor in (1, 2):
        one, two = problem.in_one(), problem.in_two()
        assert_same_bytes(problem.gradient(one * factor), problem.gradient(two * factor))


@pytest.mark.parametrize("factor", [1, 3])
def test_backward_again_and_again(factor: int, device: torch.device) -> None:
    """What backward gives away it must not use again, changed as it may be by then."""
    problem = Problem(device, randn(BATCH, 300))
    want = problem.gradient(problem.in_two() * factor)
    loss = problem.in_one() * factor
    for _ in range(3):
        grad = problem.gradient(loss, retain_graph=True)
        assert_same_bytes(grad, want)
        grad.zero_()


def test_gradients_accumulate(device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 30))
    want = problem.gradient(problem.in_two())
    for _ in range(2):
        problem.in_one().backward()
    torch.testing.assert_close(problem.output.grad, 2 * want)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_of_the_gradient(reduction: str, device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 30, dtype=torch.float64), reduction)
    seconds = []
    for loss in (problem.in_one(), problem.in_two()):
        grad = problem.gradient(3 * loss, create_graph=True)
        seconds.append(problem.gradient(grad.square().sum()))
    torch.testing.assert_close(*seconds)
    assert bool((seconds[0] != 0).all())


def test_gradcheck(device: torch.device) -> None:
    problem = Problem(device, randn(3, 5, dtype=torch.float64))

    def loss(output: Tensor) -> Tensor:
        args = (output, problem.table, problem.labels, problem.key)
        return ops.dsm_residual(*args, reduction="mean")

    assert torch.autograd.gradcheck(loss, (problem.output,))
    assert torch.autograd.gradgradcheck(loss, (problem.output,))


def test_the_key_may_advance_before_backward(device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 30))
    want = problem.gradient(problem.in_two() * 2)
    loss = problem.in_one() * 2
    problem.key.add_(1)
    assert_same_bytes(problem.gradient(loss), want)


def test_without_gradients(device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 30))
    with torch.no_grad():
        loss = problem.in_one()
    assert not loss.requires_grad
    assert_same_bytes(loss, problem.in_one().detach())


def test_empty_batch(device: torch.device) -> None:
    problem = Problem(device, randn(0, 3), "sum")
    loss = problem.in_one()
    assert float(loss) == 0
    assert problem.gradient(loss).shape == (0, 3)


def test_functional_gradient(device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 30))

    def loss(output: Tensor) -> Tensor:
        args = (output, problem.table, problem.labels, problem.key)
        return ops.dsm_residual(*args, reduction="mean", sample_offset=2)

    got = torch.func.grad(loss)(problem.output.detach())
    assert_same_bytes(got, problem.gradient(problem.in_two()))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str, device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 30))

    def loss(output: Tensor) -> Tensor:
        args = (output, problem.table, problem.labels, problem.key)
        return ops.dsm_residual(*args, reduction="mean")

    got = torch.compile(loss, fullgraph=True, backend=backend)(problem.output)
    want = loss(problem.output)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(problem.gradient(got), problem.gradient(want))


def test_unknown_reduction(device: torch.device) -> None:
    problem = Problem(device, randn(BATCH, 3), "max")
    with pytest.raises(ValueError, match=r"dsm_residual: reduction .*'max'"):
        problem.in_one()


def test_opcheck(device: torch.device) -> None:
    op = torch.ops.fastscore
    for shape in ((4, 5), (0, 3), (7,)):
        problem = Problem(device, randn(*shape))
        output, batch = problem.output.detach(), shape[0]
        args = (problem.table, problem.labels, problem.key, 3)
        torch.library.opcheck(op.dsm_residual_with_grad.default, (output, *args, 0.5))
        made, upstream = torch.empty_like(output), torch.ones(batch, device=device)
        mend = (made, upstream, 0.5, output, *args)
        torch.library.opcheck(op.dsm_residual_regrad_.default, mend)


def test_only_what_was_guessed_wrong_is_made_again(device: torch.device) -> None:
    """Samples whose upstream gradient is the expected one may keep what stands there."""
    problem = Problem(device, randn(4, 1024))
    output, args = problem.output.detach(), (problem.table, problem.labels, problem.key, 0)
    upstream = torch.tensor([0.5, 2.0, 0.5, -1.0], device=device)
    op = torch.ops.fastscore
    _, made = op.dsm_residual_with_grad(output, *args, 0.5)
    op.dsm_residual_regrad_(made, upstream, 0.5, output, *args)
    assert_same_bytes(made, op.dsm_residual_backward(upstream, output, *args))
    made.fill_(5)
    op.dsm_residual_regrad_(made, torch.full_like(upstream, 0.5), 0.5, output, *args)
    assert bool((made == 5).all())
