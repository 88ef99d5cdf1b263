"""The residual that meets x~ too: w/2 |p out + q z + h x~|^2, for whatever a network predicts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from byte_cases import dsm_tables, noisy_table
from helpers import (
    DTYPES,
    LAYOUTS,
    assert_accurate,
    assert_same_bytes,
    data_bytes,
    make_key,
    offset_near_an_end,
    ragged_shapes,
    randn,
    with_layout,
)
from torch import Tensor
from torch.func import grad, vmap

import fastscore
from fastscore import ops, reference
from fastscore.random import Stream
from fastscore.reference.dsm import residual, rows_of

LEVELS = 6
# The dtypes of an output and of what stands beside it.
PAIRS = [*((dtype, dtype) for dtype in DTYPES), *((dtype, torch.float32) for dtype in DTYPES[2:])]


def any_table(seed: int = 9) -> Tensor:
    return randn(LEVELS, 4, dtype=torch.float64, seed=seed)


class Problem:
    """An output with x~ beside it, and the arguments that the residual takes besides."""

    def __init__(
        self,
        device: torch.device,
        shape: tuple[int, ...],
        dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
        table: Tensor | None = None,
    ) -> None:
        output, noisy = (randn(*shape, dtype=d, seed=i) for i, d in enumerate(dtypes))
        self.output, self.noisy = (x.to(device).requires_grad_() for x in (output, noisy))
        self.table = (any_table() if table is None else table).to(device)
        self.labels = ((torch.arange(shape[0]) * 5 + 2) % LEVELS).to(device)
        self.key = make_key(7, 3, device)

    def __call__(self, op: Any = ops.dsm_residual, **options: Any) -> Tensor:
        args = (self.output, self.table, self.labels, self.key)
        return op(*args, noisy=self.noisy, **options)

    def exact(self, sample_offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """In float64, on the CPU: the losses and their gradients by output and noisy."""
        output, noisy = (x.detach().cpu().double() for x in (self.output, self.noisy))
        z = torch.empty(output.shape, device=self.key.device)
        ops.normal_(z, self.key, stream=Stream.PERTURB, sample_offset=sample_offset)
        rows = rows_of("", self.table.cpu(), self.labels.cpu())
        p, q, w, h = (row.reshape(-1, *[1] * (output.dim() - 1)) for row in rows)
        z = z.double().cpu()
        r = p * output + q * z + h * noisy
        losses = residual(output, z, *rows, noisy=noisy)
        return losses, w * p * r, w * h * r


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_matches_the_reference(
    dtypes: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    cpu = torch.device("cpu")
    for shape in ragged_shapes():
        fused, eager = (Problem(where, shape, dtypes) for where in (device, cpu))
        got, want = fused(sample_offset=3), eager(reference.dsm_residual, sample_offset=3)
        exact = fused.exact(3)
        assert_accurate(got, want, exact[0])
        both = [torch.autograd.grad(p.sum(), (a.output, a.noisy))
                for p, a in ((got, fused), (want, eager))]  # fmt: skip
        for ours, theirs, true, dtype in zip(*both, exact[1:], dtypes, strict=True):
            assert ours.dtype == dtype
            assert_accurate(ours, theirs, true)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_reduced(
    dtypes: tuple[torch.dtype, torch.dtype], reduction: str, device: torch.device
) -> None:
    """The same bytes as in two steps, for the upstream gradient 1 and another one."""
    for shape in ((7, 3), (7, 3, 43), (2, 2500), (7,), (0, 3)):
        problem = Problem(device, shape, dtypes)
        leaves = (problem.output, problem.noisy)
        for factor in (1, 3):
            found = []
            for loss in (problem(reduction=reduction), getattr(problem(), reduction)()):
                if shape[0] == 0 and reduction == "mean":
                    continue
                found.append((loss, *torch.autograd.grad(factor * loss, leaves)))
            for one, two in zip(*found, strict=True) if found else ():
                assert_same_bytes(one, two)


def test_without_a_gradient_of_either(device: torch.device) -> None:
    for reduction in ("none", "mean"):
        problem = Problem(device, (7, 30))
        both = torch.autograd.grad(
            problem(reduction=reduction).sum(), (problem.output, problem.noisy)
        )
        for i, name in enumerate(("output", "noisy")):
            alone = Problem(device, (7, 30))
            getattr(alone, ("noisy", "output")[i]).requires_grad_(False)
            leaf = getattr(alone, name)
            (found,) = torch.autograd.grad(alone(reduction=reduction).sum(), leaf)
            assert_same_bytes(found, both[i])


def test_without_its_column_it_is_the_residual_of_three(device: torch.device) -> None:
    table = torch.cat([any_table()[:, :3], torch.zeros(LEVELS, 1)], dim=1)
    for shape in ((9, 3), (9, 40), (2, 5000)):
        problem = Problem(device, shape, table=table)
        args = (problem.output, problem.table[:, :3].contiguous(), problem.labels, problem.key)
        three = ops.dsm_residual(*args)
        assert_same_bytes(problem(), three)
        grads = (torch.autograd.grad(loss.sum(), problem.output)[0] for loss in (problem(), three))
        assert_same_bytes(*grads)


def test_a_denoiser_that_knows_all_has_no_loss(device: torch.device) -> None:
    """D(x~) = x leaves nothing of (D - x~)/sigma + z, but for rounding of x~."""
    noise, table, key = (t.to(device) for t in (dsm_tables()[0], noisy_table(), make_key(1)))
    x = randn(50, 3, 17, seed=3).to(device)
    noisy, labels = ops.perturb(x, noise, key)
    loss = ops.dsm_residual(x, table, labels, key, noisy=noisy)
    rounding = 1e-7 * noisy.abs().amax((1, 2)) / noise[labels, 1]
    assert bool((loss <= 51 * rounding.square()).all())
    silent = ops.dsm_residual(torch.zeros_like(x), table, labels, key, noisy=noisy)
    want = (x.double() / noise[labels, 1].reshape(-1, 1, 1)).square().sum((1, 2)) / 2
    torch.testing.assert_close(silent.double(), want, rtol=1e-4, atol=0)


def test_gradcheck(device: torch.device) -> None:
    for shape in ((3,), (3, 5), (3, 2, 3)):
        problem = Problem(device, shape, (torch.float64, torch.float64))
        args = (problem.table, problem.labels, problem.key)
        for reduction in ("none", "mean"):

            def loss(
                output: Tensor, noisy: Tensor, args: tuple[Tensor, ...] = args, how: str = reduction
            ) -> Tensor:
                return ops.dsm_residual(output, *args, noisy=noisy, reduction=how)

            leaves = (problem.output, problem.noisy)
            assert torch.autograd.gradcheck(loss, leaves)
            assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", [PAIRS[0], PAIRS[-1]], ids=str)
def test_any_memory_layout(
    dtypes: tuple[torch.dtype, torch.dtype], layout: str, device: torch.device
) -> None:
    for shape in ((2, 3, 5, 7), (3, 16, 4, 4), (2, 0, 3, 3)):
        plain = Problem(device, shape, dtypes)
        want = (plain(), *torch.autograd.grad(plain().sum(), (plain.output, plain.noisy)))
        for which in (("output",), ("noisy",), ("output", "noisy")):
            other = Problem(device, shape, dtypes)
            for name in which:
                leaf = with_layout(getattr(other, name).detach(), layout)
                setattr(other, name, leaf.requires_grad_())
            loss = other()
            grads = torch.autograd.grad(loss.sum(), (other.output, other.noisy))
            torch.testing.assert_close(loss, want[0], rtol=2e-6, atol=0)
            for ours, theirs in zip(grads, want[1:], strict=True):
                assert_same_bytes(ours, theirs)


@pytest.mark.parametrize("shape", [(9,), (9, 3), (9, 13), (9, 3, 43), (9, 2500)])
def test_a_shard_gives_what_the_whole_batch_gives(
    shape: tuple[int, ...], device: torch.device
) -> None:
    problem, start = Problem(device, shape), offset_near_an_end(shape)

    def run(part: slice, sample_offset: int) -> tuple[Tensor, ...]:
        output, noisy = (x[part].detach().requires_grad_() for x in (problem.output, problem.noisy))
        args = (output, problem.table, problem.labels[part], problem.key)
        loss = ops.dsm_residual(*args, noisy=noisy, sample_offset=sample_offset)
        return (loss.detach(), *torch.autograd.grad(loss.sum(), (output, noisy)))

    whole = run(slice(None), start)
    for cut in (0, 1, 4, 9):
        parts = (run(slice(cut), start), run(slice(cut, None), start + cut))
        for one, other, want in zip(*parts, whole, strict=True):
            assert_same_bytes(torch.cat([one, other]), want)


def test_inputs_are_left_alone(device: torch.device) -> None:
    problem = Problem(device, (6, 33))
    inputs = (problem.output, problem.noisy, problem.table, problem.labels, problem.key)
    before = [data_bytes(t) for t in inputs]
    problem(reduction="mean").backward()
    problem().sum().backward()
    assert [data_bytes(t) for t in inputs] == before


def test_both_gradients_are_of_the_same_residual(device: torch.device) -> None:
    """D(x~) = x~ + f leaves little of two large gradients."""
    problem = Problem(device, (9, 1000), table=noisy_table())
    noisy = problem.noisy.detach().requires_grad_()
    args = (problem.table, problem.labels, problem.key)
    loss = ops.dsm_residual(noisy + 0.01, *args, noisy=noisy)
    (grad_noisy,) = torch.autograd.grad(loss.sum(), noisy)
    assert_same_bytes(grad_noisy, torch.zeros_like(noisy))


# ---- what PyTorch must know ------------------------------------------------------------------


def test_opcheck(device: torch.device) -> None:
    op = torch.ops.fastscore
    for shape, dtypes in (((4, 5), PAIRS[0]), ((0, 3), PAIRS[0]), ((7,), PAIRS[-1])):
        problem = Problem(device, shape, dtypes)
        leaves = (problem.output, problem.noisy)
        for output, noisy in (leaves, tuple(x.detach() for x in leaves)):
            last = (problem.table, problem.labels, problem.key, 3)
            torch.library.opcheck(op.dsm_residual.default, (output, *last, None, noisy))
        args = (output, *last)
        ones, made = torch.ones(shape[0], device=device), torch.empty_like(output)
        for call, given in (
            (op.dsm_residual_backward, (ones, *args, None, noisy)),
            (op.dsm_residual_with_grad, (*args, 0.5, None, noisy)),
            (op.dsm_residual_regrad_, (made, ones, 0.5, *args, None, noisy)),
        ):
            torch.library.opcheck(call.default, given)


def test_compile_fullgraph(device: torch.device) -> None:
    noise, table, key = (t.to(device) for t in (dsm_tables()[0], noisy_table(), make_key(5)))

    def train_step(x: Tensor, weight: Tensor) -> Tensor:
        noisy, labels = ops.perturb(x, noise, key)
        return ops.dsm_residual(noisy @ weight, table, labels, key, noisy=noisy, reduction="mean")

    x, weight = (randn(*shape, seed=1).to(device).requires_grad_() for shape in ((4, 9), (9, 9)))
    got, want = torch.compile(train_step, fullgraph=True, backend="aot_eager"), train_step
    losses = [step(x, weight) for step in (got, want)]
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(
        *(torch.autograd.grad(loss, (x, weight)) for loss in losses), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_vmap(device: torch.device) -> None:
    table, labels = noisy_table().to(device), torch.tensor([0, 3, 1, 5], device=device)
    outputs, noisy = (randn(3, 4, 9, seed=seed).to(device) for seed in (1, 2))
    keys = torch.stack([make_key(seed, 4, device) for seed in range(3)])

    def loss(output: Tensor, noisy: Tensor, key: Tensor) -> Tensor:
        return ops.dsm_residual(output, table, labels, key, noisy=noisy, reduction="mean")

    for function in (loss, grad(loss, (0, 1))):
        for dims in ((0, 0, 0), (0, None, 0), (None, 0, None)):
            args = [
                x if d == 0 else x[0] for x, d in zip((outputs, noisy, keys), dims, strict=True)
            ]
            mapped = vmap(function, dims)(*args)
            for i in range(3):
                alone = function(
                    *(x if d is None else x[i] for x, d in zip(args, dims, strict=True))
                )
                pairs = zip(mapped, alone, strict=True) if isinstance(alone, tuple) else [
                    (mapped, alone)
                ]  # fmt: skip
                for got, want in pairs:
                    assert_same_bytes(got[i], want)


# ---- the loss of predicted data --------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "output", "limit"),
    [
        (torch.float32, torch.float32, 3e-6),
        (torch.float64, torch.float64, 1e-14),
        (torch.float32, torch.float64, 1e-7),
        (torch.float64, torch.float32, 3e-7),
        (torch.float32, torch.bfloat16, 4e-3),
        (torch.bfloat16, torch.float16, 5e-4),
        (torch.float16, torch.float16, 5e-4),
    ],
)
def test_dsm_loss_of_predicted_data(
    data: torch.dtype, output: torch.dtype, limit: float, device: torch.device
) -> None:
    """Against float64 from the same x~ and the same rounded output; gradients by a and by x."""
    x, key = randn(60, 33).to(device, data).requires_grad_(), make_key(5, 0, device)
    sigmas = torch.tensor([2.0, 0.3, 0.05], dtype=torch.float64, device=device)
    levels = torch.arange(60, device=device) % 3
    a = torch.linspace(0.5, 1.5, 33, dtype=torch.float64, device=device).requires_grad_()
    noise = torch.stack([torch.ones_like(sigmas), sigmas], dim=1)
    loss = partial(fastscore.dsm_loss, x=x, sigmas=sigmas, key=key, levels=levels, weighting="none")

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return (a * x.double()).to(output)

    got = loss(network, prediction="x0")
    noisy, _ = ops.perturb(x, noise, key, labels=levels)
    sigma = sigmas[levels].unsqueeze(1)
    r = (network(noisy, sigma).double() - x.double()) / sigma
    want = (r / sigma).square().sum(1).mean() / 2
    assert got.dtype == torch.promote_types(output, torch.float32)
    torch.testing.assert_close(
        got.double(), want, rtol=1e-13 if got.dtype == torch.float64 else 1e-6, atol=0
    )
    grads = [torch.autograd.grad(value, (a, x)) for value in (got, want)]
    for ours, exact in zip(*grads, strict=True):
        assert float((ours.double() - exact).norm() / exact.norm()) < limit


# ---- arguments -------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    good = {"output": torch.zeros(2, 3), "table": any_table(), "noisy": torch.zeros(2, 3),
            "labels": torch.tensor([0, 1]), "key": make_key(1)}  # fmt: skip
    call = partial(ops.dsm_residual, **good)
    call()
    for change in ({"noisy": None}, {"table": dsm_tables()[1]}):
        with pytest.raises(ValueError, match=r"table must be .* without noisy, \(rows, 4\) with"):
            call(**change)
        with pytest.raises(ValueError, match=r"table must be .* without noisy, \(rows, 4\) with"):
            reference.dsm_residual(**(good | change))
    for noisy in (torch.zeros(3, 2), torch.zeros(2, 3).double(), torch.zeros(2, 3).half(),
                  torch.zeros(2, 3, device="meta")):  # fmt: skip
        with pytest.raises(ValueError, match=r"dsm_residual: noisy must be"):
            call(noisy=noisy)
    half = {"output": torch.zeros(2, 3).half(), "noisy": torch.zeros(2, 3).bfloat16()}
    with pytest.raises(ValueError, match=r"dsm_residual: noisy must be of output's dtype \(or"):
        call(**half)
    with pytest.raises(TypeError, match="noisy"):
        call(noisy=[1.0])


def test_streams_of_their_own() -> None:
    assert (Stream.TIME, Stream.DROP, Stream.DEQUANTIZE) == (6, 7, 8)
    drawn = [fastscore.random.normal(make_key(0), (1, 8), stream=s) for s in Stream]
    assert len({data_bytes(z) for z in drawn}) == len(Stream)
