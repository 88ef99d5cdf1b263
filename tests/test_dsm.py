"""The fused perturbation and the fused denoising residual against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from byte_cases import dsm_tables
from helpers import (
    DTYPES,
    LAYOUTS,
    TINY_ALPHA,
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

from fastscore import ops, reference
from fastscore._support.streams import Stream
from fastscore.reference.dsm import perturbed, residual, rows_of
from fastscore.reference.random import labels as reference_labels

LEVELS = 6


def on(device: torch.device, *values: Tensor) -> tuple[Tensor, ...]:
    """The tensors moved to the device."""
    return tuple(value.to(device) for value in values)


def residual_table(form: str) -> Tensor:
    """Columns p, q, w of the score form, of the noise form, and of one with nothing special."""
    if form == "score":
        return dsm_tables(LEVELS)[1]
    if form == "eps":
        return torch.tensor([[-1.0, 1.0, 1.0]], dtype=torch.float64).repeat(LEVELS, 1)
    return randn(LEVELS, 3, dtype=torch.float64, seed=9)


def some_labels(batch: int) -> Tensor:
    """Labels with repetitions, in no order."""
    return (torch.arange(batch) * 5 + 2) % LEVELS


def noise(x: Tensor, key: Tensor, sample_offset: int = 0) -> Tensor:
    """The perturbation's normals in float64, as the kernels make them."""
    z = torch.empty(x.shape, device=key.device)
    return ops.normal_(z, key, stream=Stream.PERTURB, sample_offset=sample_offset).double()


# ---- perturb ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_perturb_matches_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    table = torch.stack([torch.linspace(1.0, 0.5, LEVELS), torch.logspace(1, -2, LEVELS)], 1)
    table = table.double()
    for shape in ragged_shapes():
        x, key = randn(*shape, dtype=dtype, seed=1), make_key(7, 3)
        labels = some_labels(shape[0])
        fused, same = ops.perturb(*on(device, x, table, key), labels=labels.to(device))
        assert fused.dtype == dtype
        assert_same_bytes(same.cpu(), labels)
        eager, _ = reference.perturb(x, table, key, labels=labels)
        exact = perturbed(x.double(), noise(x, key), *rows_of("perturb", table, labels))
        assert_accurate(fused, eager, exact)


@pytest.mark.parametrize("levels", [1, 2, 5, 232, 1000])
def test_labels_equal_the_reference(levels: int, device: torch.device) -> None:
    table = torch.ones(levels, 2, dtype=torch.float64)
    for batch in (0, 1, 3, 4, 5, 65, 1009, 40_003):
        for offset in (0, 1, 2**34 + 3):
            x, key = torch.zeros(batch, 2), make_key(-9, 2)
            _, labels = ops.perturb(*on(device, x, table, key), sample_offset=offset)
            want = reference_labels(key, batch, levels, sample_offset=offset)
            assert_same_bytes(labels.cpu(), want)


def test_drawn_labels_give_what_given_labels_give(device: torch.device) -> None:
    table, x, key = on(device, dsm_tables()[0], randn(100, 7), make_key(2, 8))
    drawn, labels = ops.perturb(x, table, key, sample_offset=5)
    given, _ = ops.perturb(x, table, key, labels=labels, sample_offset=5)
    assert_same_bytes(drawn, given)


def test_labels_are_uniform(device: torch.device) -> None:
    levels, batch = 10, 100_000
    table = torch.ones(levels, 2, dtype=torch.float64, device=device)
    for seed in (0, 1):
        key = make_key(seed, 0, device)
        _, labels = ops.perturb(torch.zeros(batch, 1, device=device), table, key)
        counts = np.bincount(labels.cpu().numpy(), minlength=levels)
        assert scipy.stats.chisquare(counts).pvalue > TINY_ALPHA


def test_perturbation_is_normal_at_its_level(device: torch.device) -> None:
    table = torch.tensor([[0.5, 3.0]], dtype=torch.float64, device=device)
    x = torch.ones(2, 150_001, device=device)
    y, _ = ops.perturb(x, table, make_key(4, 0, device))
    z = (y.cpu().double().numpy().reshape(-1) - 0.5) / 3.0
    assert scipy.stats.kstest(z, "norm").pvalue > TINY_ALPHA


def test_perturb_without_noise_or_without_data(device: torch.device) -> None:
    x = randn(3, 65).to(device)
    key = make_key(4, 0, device)
    keep = torch.tensor([[1.0, 0.0]], dtype=torch.float64, device=device)
    assert_same_bytes(ops.perturb(x, keep, key)[0], x)
    pure = torch.tensor([[0.0, 1.0]], dtype=torch.float64, device=device)
    want = torch.empty_like(x)
    ops.normal_(want, key, stream=Stream.PERTURB, sample_offset=0)
    assert_same_bytes(ops.perturb(x, pure, key)[0], want)


# ---- the residual ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["score", "eps", "any"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_matches_the_reference(
    dtype: torch.dtype, form: str, device: torch.device
) -> None:
    table, key = residual_table(form), make_key(7, 3)
    for shape in ragged_shapes():
        output = randn(*shape, dtype=dtype, seed=1)
        labels = some_labels(shape[0])
        fused = ops.dsm_residual(*on(device, output, table, labels, key), sample_offset=3)
        assert fused.shape == shape[:1]
        assert fused.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        eager = reference.dsm_residual(output, table, labels, key, sample_offset=3)
        columns = rows_of("dsm_residual", table, labels)
        exact = residual(output.double(), noise(output, key, 3), *columns)
        assert_accurate(fused, eager, exact)


def test_residual_of_long_rows_is_accurate(device: torch.device) -> None:
    table, key = residual_table("score"), make_key(7, 3)
    output = randn(4, 300_007, seed=1)
    labels = some_labels(4)
    fused = ops.dsm_residual(*on(device, output, table, labels, key))
    exact = residual(output.double(), noise(output, key), *rows_of("", table, labels))
    assert float(((fused.cpu() - exact) / exact).abs().max()) < 1e-6


@pytest.mark.parametrize("form", ["score", "eps", "any"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_matches_the_reference(
    dtype: torch.dtype, form: str, device: torch.device
) -> None:
    table, key = residual_table(form), make_key(7, 3)
    for shape in ragged_shapes():
        labels = some_labels(shape[0])
        output = randn(*shape, dtype=dtype, seed=1)
        upstream = randn(shape[0], dtype=torch.float64, seed=2)

        def gradient(op: object, leaf: Tensor, *rest: Tensor, g: Tensor = upstream) -> Tensor:
            leaf = leaf.clone().requires_grad_()
            loss = op(leaf, *rest)
            return torch.autograd.grad(loss, leaf, g.to(loss))[0]

        fused = gradient(ops.dsm_residual, *on(device, output, table, labels, key))
        eager = gradient(reference.dsm_residual, output, table, labels, key)
        p, q, w = (c.reshape(-1, *[1] * (len(shape) - 1)) for c in rows_of("", table, labels))
        g = upstream.to(fused.dtype if dtype == torch.float64 else torch.float32).double()
        g = g.reshape(p.shape)
        exact = g * w * p * (p * output.double() + q * noise(output, key))
        assert_accurate(fused, eager, exact)


def test_residual_meets_the_perturbations_noise(device: torch.device) -> None:
    """A network that predicts the noise exactly has no loss, a silent one has |z|^2 / 2."""
    pure = torch.tensor([[0.0, 1.0]], dtype=torch.float64, device=device)
    eps = torch.tensor([[-1.0, 1.0, 1.0]], dtype=torch.float64, device=device)
    for shape in ((5,), (5, 65), (2, 3, 5, 7)):
        for offset in (0, 11, 2**34 // 65):
            key = make_key(3, 2**32 - 1, device)
            x = torch.zeros(shape, device=device)
            z, labels = ops.perturb(x, pure, key, sample_offset=offset)
            loss = ops.dsm_residual(z, eps, labels, key, sample_offset=offset)
            assert_same_bytes(loss, torch.zeros(shape[0], device=device))
            silent = ops.dsm_residual(x, eps, labels, key, sample_offset=offset)
            want = z.double().square().reshape(shape[0], -1).sum(1) / 2
            torch.testing.assert_close(silent.double(), want, rtol=1e-6, atol=1e-12)


def test_loss_of_the_optimal_score_of_gaussian_data(device: torch.device) -> None:
    """1/2 d s0^2 / (s0^2 + sigma^2) for data N(0, s0^2 I) and lambda = sigma^2."""
    dim, batch, s0, sigma = 16, 20_000, 1.5, 0.8
    x = s0 * randn(batch, dim, seed=3).to(device)
    noise_table = torch.tensor([[1.0, sigma]], dtype=torch.float64, device=device)
    loss_table = torch.tensor([[sigma, 1.0, 1.0]], dtype=torch.float64, device=device)
    key = make_key(5, 0, device)
    noisy, labels = ops.perturb(x, noise_table, key)
    loss = ops.dsm_residual(-noisy / (s0**2 + sigma**2), loss_table, labels, key)
    exact = 0.5 * dim * s0**2 / (s0**2 + sigma**2)
    error = 5 * float(loss.double().std()) / batch**0.5
    assert abs(float(loss.double().mean()) - exact) < error


def test_nan_and_infinity_stay_in_their_sample(device: torch.device) -> None:
    table, key = on(device, residual_table("score"), make_key(1))
    output = randn(4, 70).to(device)
    output[1, 69], output[2, 0] = torch.nan, torch.inf
    labels = some_labels(4).to(device)
    loss = ops.dsm_residual(output, table, labels, key)
    assert loss.isnan().tolist() == [False, True, False, False]
    assert loss.isinf().tolist() == [False, False, True, False]


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_memory_layout(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    noise_table, key = on(device, dsm_tables()[0], make_key(3, 1))
    loss_table = residual_table("any").to(device)
    for shape in ((2, 3, 5, 7), (3, 16, 4, 4), (1, 1, 1, 1), (2, 0, 3, 3)):
        plain = randn(*shape, dtype=dtype, seed=5).to(device)
        labels = some_labels(shape[0]).to(device)
        x = with_layout(plain, layout)
        want, _ = ops.perturb(plain, noise_table, key, labels=labels)
        assert_same_bytes(ops.perturb(x, noise_table, key, labels=labels)[0], want)

        losses, grads = [], []
        for output in (plain, x):
            output = output.detach().requires_grad_()
            losses.append(ops.dsm_residual(output, loss_table, labels, key))
            grads.append(torch.autograd.grad(losses[-1].sum(), output)[0])
        torch.testing.assert_close(losses[1], losses[0], rtol=2e-6, atol=0)
        assert_same_bytes(grads[1], grads[0])


def test_results_keep_channels_last(device: torch.device) -> None:
    noise_table, loss_table, key = on(device, *dsm_tables(), make_key(3, 1))
    x = randn(3, 16, 4, 4).to(device, memory_format=torch.channels_last).requires_grad_()
    noisy, labels = ops.perturb(x, noise_table, key)
    assert noisy.is_contiguous(memory_format=torch.channels_last)
    loss = ops.dsm_residual(x, loss_table, labels, key)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_expanded_inputs(device: torch.device) -> None:
    noise_table, loss_table, key = on(device, *dsm_tables(), make_key(3, 1))
    row = randn(1, 33).to(device)
    labels = some_labels(6).to(device)
    for x in (row.expand(6, 33), row[:, :1].expand(6, 33)):
        got, _ = ops.perturb(x, noise_table, key, labels=labels)
        want, _ = ops.perturb(x.contiguous(), noise_table, key, labels=labels)
        assert_same_bytes(got, want)
        got = ops.dsm_residual(x, loss_table, labels, key)
        want = ops.dsm_residual(x.contiguous(), loss_table, labels, key)
        torch.testing.assert_close(got, want, rtol=2e-6, atol=0)


def test_expanded_upstream_gradient(device: torch.device) -> None:
    """What ``loss.sum().backward()`` hands over has stride 0."""
    table, key = on(device, residual_table("score"), make_key(3, 1))
    output = randn(6, 33).to(device).requires_grad_()
    loss = ops.dsm_residual(output, table, some_labels(6).to(device), key)
    (summed,) = torch.autograd.grad(loss.sum(), output, retain_graph=True)
    (given,) = torch.autograd.grad(loss, output, torch.ones_like(loss))
    assert_same_bytes(summed, given)


def test_inputs_are_left_alone(device: torch.device) -> None:
    noise_table, loss_table, key = on(device, *dsm_tables(), make_key(3, 1))
    x = randn(6, 33).to(device).requires_grad_()
    labels = some_labels(6).to(device)
    inputs = (x, noise_table, loss_table, labels, key)
    before = [data_bytes(t) for t in inputs]
    noisy, same = ops.perturb(x, noise_table, key, labels=labels)
    assert noisy.data_ptr() != x.data_ptr()
    ops.dsm_residual(x, loss_table, same, key).sum().backward()
    assert [data_bytes(t) for t in inputs] == before


# ---- where the noise lies --------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(9,), (9, 3), (9, 5), (9, 13), (9, 64), (9, 3, 43), (9, 1024), (9, 2500)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_gives_what_the_whole_batch_gives(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    noise_table, loss_table, key = on(device, *dsm_tables(), make_key(3, 1))
    x = randn(*shape, dtype=dtype, seed=6).to(device)

    def run(x: Tensor, sample_offset: int) -> tuple[Tensor, ...]:
        x = x.detach().clone().requires_grad_()
        noisy, labels = ops.perturb(x.detach(), noise_table, key, sample_offset=sample_offset)
        loss = ops.dsm_residual(x, loss_table, labels, key, sample_offset=sample_offset)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        return noisy, labels, loss.detach(), grad

    start = offset_near_an_end(shape)
    whole = run(x, start)
    for cut in (0, 1, 2, 4, 5, 9):
        parts = zip(run(x[:cut], start), run(x[cut:], start + cut), strict=True)
        for part, want in zip(parts, whole, strict=True):
            assert_same_bytes(torch.cat(part), want)


def test_flat_indices_beyond_2_to_the_34(device: torch.device) -> None:
    noise_table, loss_table = dsm_tables()
    x, key, labels = randn(3, 70), make_key(5, 2**31 + 7), some_labels(3)
    for offset in (2**34 // 70 - 1, 2**36):  # the first one crosses the carry
        fused, _ = ops.perturb(
            *on(device, x, noise_table, key), labels=labels.to(device), sample_offset=offset
        )
        eager, _ = reference.perturb(x, noise_table, key, labels=labels, sample_offset=offset)
        torch.testing.assert_close(fused.cpu(), eager)
        fused = ops.dsm_residual(*on(device, x, loss_table, labels, key), sample_offset=offset)
        eager = reference.dsm_residual(x, loss_table, labels, key, sample_offset=offset)
        torch.testing.assert_close(fused.cpu(), eager)


# ---- what PyTorch must know ------------------------------------------------------------------


def test_gradcheck(device: torch.device) -> None:
    noise_table, key = on(device, dsm_tables()[0], make_key(5, 1))
    labels = some_labels(3).to(device)
    for form in ("score", "eps", "any"):
        table = residual_table(form).to(device)
        for shape in ((3,), (3, 5), (3, 2, 3)):
            x = randn(*shape, dtype=torch.float64).to(device).requires_grad_()

            def noisy(x: Tensor) -> Tensor:
                return ops.perturb(x, noise_table, key, labels=labels)[0]

            def loss(x: Tensor, table: Tensor = table) -> Tensor:
                return ops.dsm_residual(x, table, labels, key)

            assert torch.autograd.gradcheck(noisy, x)
            assert torch.autograd.gradcheck(loss, x)
            assert torch.autograd.gradgradcheck(loss, x)


def test_gradient_penalty_matches_the_reference(device: torch.device) -> None:
    """A double backward as a user meets it: the norm of the loss's gradient as a loss."""
    labels, key = some_labels(4), make_key(5, 1)
    for dtype in (torch.float32, torch.bfloat16):
        results = []
        for op, where in ((ops.dsm_residual, device), (reference.dsm_residual, "cpu")):
            table, k, which = (t.to(where) for t in (residual_table("any"), key, labels))
            output = randn(4, 9, dtype=dtype).to(where).requires_grad_()
            loss = op(output, table, which, k)
            (grad,) = torch.autograd.grad(loss.sum(), output, create_graph=True)
            penalty = grad.float().square().sum()
            results.append(torch.autograd.grad(penalty, output)[0].cpu())
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_perturb_is_accurate(dtype: torch.dtype, device: torch.device) -> None:
    table = randn(LEVELS, 2, dtype=torch.float64, seed=4)
    upstream, labels = randn(5, 1009, dtype=dtype, seed=6), some_labels(5)
    x = randn(5, 1009, dtype=dtype).to(device).requires_grad_()
    noisy, _ = ops.perturb(x, *on(device, table, make_key(5)), labels=labels.to(device))
    (fused,) = torch.autograd.grad(noisy, x, upstream.to(device))
    a = table[labels, :1]
    eager = upstream * a.to(dtype)
    assert_accurate(fused.cpu(), eager, upstream.double() * a)


def test_labels_carry_no_gradient(device: torch.device) -> None:
    table, key = on(device, dsm_tables()[0], make_key(5, 1))
    x = randn(3, 5).to(device).requires_grad_()
    noisy, labels = ops.perturb(x, table, key)
    assert noisy.requires_grad
    assert not labels.requires_grad
    (grad,) = torch.autograd.grad(noisy.sum(), x)
    assert_same_bytes(grad, torch.ones_like(x))


def test_opcheck(device: torch.device) -> None:
    noise_table, loss_table, key = on(device, *dsm_tables(), make_key(5, 1))
    op = torch.ops.fastscore
    for shape in ((4, 5), (0, 3), (7,)):
        x = randn(*shape).to(device)
        labels = some_labels(shape[0]).to(device)
        for leaf in (x, x.clone().requires_grad_()):
            torch.library.opcheck(op.perturb.default, (leaf, noise_table, key, labels, 3))
            torch.library.opcheck(op.perturb.default, (leaf, noise_table, key, None, 3))
            arguments = (leaf, loss_table, labels, key, 3)
            torch.library.opcheck(op.dsm_residual.default, arguments)
        arguments = (torch.ones(shape[0], device=device), x, loss_table, labels, key, 3)
        torch.library.opcheck(op.dsm_residual_backward.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str, device: torch.device) -> None:
    noise_table, loss_table = on(device, *dsm_tables())

    def train_step(x: Tensor, weight: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        noisy, labels = ops.perturb(x, noise_table, key)
        return ops.dsm_residual(noisy @ weight, loss_table, labels, key).mean(), labels

    compiled = torch.compile(train_step, fullgraph=True, backend=backend)
    x, weight = randn(4, 9).to(device), randn(9, 9, seed=1).to(device).requires_grad_()
    for draw in (0, 1):
        key = make_key(5, draw, device)
        got, labels = compiled(x, weight, key)
        want, want_labels = train_step(x, weight, key)
        assert torch.equal(labels, want_labels)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(loss, weight)[0] for loss in (got, want)]
        torch.testing.assert_close(*grads)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bad_labels_become_nan_on_cuda() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    noise_table, loss_table, key = on(device, *dsm_tables(LEVELS), make_key(1))
    x = torch.ones(4, 9, device=device, requires_grad=True)
    labels = torch.tensor([0, LEVELS, -1, 2], device=device)
    noisy, _ = ops.perturb(x, noise_table, key, labels=labels)
    loss = ops.dsm_residual(x, loss_table, labels, key)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    for result in (noisy, loss.unsqueeze(-1), grad):
        assert result.isnan().all(1).tolist() == [False, True, True, False]
        assert result.isnan().any(1).tolist() == [False, True, True, False]
