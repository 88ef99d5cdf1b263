"""The family ``dsm``: denoising score matching without a noise tensor.

    perturb        x~ = a x + sigma z          read x, write x~
    dsm_residual   w/2 |p out + q z|^2         read out, write its gradient
                   w/2 |p out + q z + h x~|^2  read out and x~, write out's gradient

Both regenerate z from the key (stream PERTURB). Vincent 2011; Song and Ermon 2019.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, per_sample
from fastscore.ops._library import (
    Differentiable,
    call,
    check_same_device,
    kept,
    ops,
    sum_dtype,
    traced,
)
from fastscore.ops._vmap import map_slices

REDUCTIONS = ("mean", "sum", "none")


def perturb(
    x: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    labels: Tensor | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Perturbed data ``a x + sigma z`` at each sample's noise level, and the levels' labels.

    Args:
        x: data (batch, ...), any strides; float32, float64, bfloat16 or float16.
        table: float64 (L, 2), columns a and sigma.
        key: int64 [seed, draw] on x's device; or (batch, 2), a key of each sample's own, which is
            then what it would be alone, its label too.
        labels: int64 (batch,) in [0, L), drawn uniformly (stream LABEL) when None. On CUDA a label
            out of range makes its sample NaN, for asking would wait for the device.
        sample_offset: number of the first sample.
        samples: int64 (batch,) on x's device, at least 0, in place of ``sample_offset``: the
            number of each sample, in any order, repeated or not. (On CUDA a negative number goes
            unnoticed: it is noise of some other number.)

    Raises:
        ValueError: an argument does not fit.

    Differentiable in x.

    >>> import fastscore
    >>> table = torch.tensor([[1.0, 2.0], [1.0, 0.5]], dtype=torch.float64)
    >>> noisy, labels = perturb(torch.zeros(4, 3), table, fastscore.random.key(0))
    >>> noisy.shape, labels.shape
    (torch.Size([4, 3]), torch.Size([4]))
    """
    out: tuple[Tensor, Tensor] = _Perturb.run(
        "perturb", x, table, key, labels, sample_offset, samples
    )
    return out


def dsm_residual(
    output: Tensor,
    table: Tensor,
    labels: Tensor,
    key: Tensor,
    *,
    noisy: Tensor | None = None,
    reduction: str = "none",
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """``w/2 |p out + q z|^2`` of each sample, z being what :func:`perturb` drew with this key.

    With ``noisy``, the perturbed data x~, it is ``w/2 |p out + q z + h x~|^2``, which serves
    whatever a network predicts: data, v, a velocity.

    Args:
        output: the network's output (batch, ...), any strides.
        table: float64 (L, 3), columns p, q and w. Scores: p = sigma, q = 1,
            w = lambda / sigma^2. Predicted noise: p = -1, q = 1, w = lambda / sigma^2. With
            ``noisy`` (L, 4), the fourth column h. Predicted data: p = 1 / sigma, h = -1 / sigma.
        labels: int64 (batch,), as :func:`perturb` returned them.
        key: the key, or keys, that :func:`perturb` had.
        noisy: of output's shape, any strides, in output's dtype, or float32 beside an output of
            half precision; given if and only if the table has a fourth column.
        reduction: "none", "mean" or "sum" over the batch. A reduced loss makes its gradient in the
            forward pass, from the same noise, for the upstream gradient 1 that ``loss.backward()``
            starts with; for another one, backward makes it again.
        sample_offset: number of the first sample.
        samples: the number of each sample, as for :func:`perturb`.

    Returns:
        float32, or float64 for a float64 output: (batch,), or a scalar when reduced. Differentiable
        in output and noisy, twice. Sums run in a fixed order: the same bytes for any number of
        threads and any split of the batch.

    Raises:
        ValueError: an argument does not fit.

    The score of noise about 0, -x/sigma^2, leaves no residual:

    >>> import fastscore
    >>> key, sigma = fastscore.random.key(0), 2.0
    >>> noisy, labels = perturb(torch.zeros(4, 3), torch.tensor([[1.0, sigma]]).double(), key)
    >>> table = torch.tensor([[sigma, 1.0, 1.0]], dtype=torch.float64)
    >>> bool(dsm_residual(-noisy / sigma**2, table, labels, key).max() < 1e-9)
    True

    Nor does the denoiser that knows all data to be 0, D(x~) = 0:

    >>> table = torch.tensor([[1 / sigma, 1.0, 1.0, -1 / sigma]], dtype=torch.float64)
    >>> loss = dsm_residual(torch.zeros(4, 3), table, labels, key, noisy=noisy)
    >>> bool(loss.max() < 1e-9)
    True
    """
    fn = "dsm_residual"
    check_choice(fn, "reduction", reduction, REDUCTIONS)
    args = (output, table, labels, key, sample_offset, samples, noisy)
    if reduction != "none" and torch.is_grad_enabled() and output.requires_grad and not traced():
        total: Tensor = call(fn, _ReducedResidual.apply, *args, reduction)
        return total
    losses: Tensor = _Residual.run(fn, *args)
    return reduced(losses, reduction)


def reduced(values: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of a value for each sample, or the values themselves."""
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values


def _rows_of(table: Tensor, labels: Tensor) -> Tensor:
    """The row of each label; a label out of range, which has made its sample NaN, reads row 0."""
    inside = (labels >= 0) & (labels < table.shape[0])
    return table.index_select(0, labels * inside)


map_slices("perturb", "dsm_residual", "dsm_residual_backward")


@torch.library.register_fake("fastscore::perturb")
def _(x, table, key, labels, sample_offset, samples=None) -> tuple[Tensor, Tensor]:
    check_same_device("perturb", x, table=table, key=key, labels=labels, samples=samples)
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.int64)


@torch.library.register_fake("fastscore::dsm_residual")
def _(output, table, labels, key, sample_offset, samples=None, noisy=None) -> Tensor:
    like = {"table": table, "labels": labels, "key": key, "samples": samples, "noisy": noisy}
    check_same_device("dsm_residual", output, **like)
    return output.new_empty(output.shape[0], dtype=sum_dtype(output.dtype))


@torch.library.register_fake("fastscore::dsm_residual_backward")
def _(grad, output, table, labels, key, sample_offset, samples=None, noisy=None) -> Tensor:
    like = {"table": table, "labels": labels, "key": key, "samples": samples, "noisy": noisy}
    check_same_device("dsm_residual_backward", output, grad=grad, **like)
    return torch.empty_like(output)


@torch.library.register_fake("fastscore::dsm_residual_with_grad")
def _(
    output, table, labels, key, sample_offset, expected, samples=None, noisy=None
) -> tuple[Tensor, Tensor]:
    like = {"table": table, "labels": labels, "key": key, "samples": samples, "noisy": noisy}
    check_same_device("dsm_residual_with_grad", output, **like)
    loss = output.new_empty(output.shape[0], dtype=sum_dtype(output.dtype))
    return loss, torch.empty_like(output)


@torch.library.register_fake("fastscore::dsm_residual_regrad_")
def _(
    grad_output, grad, expected, output, table, labels, key, sample_offset, samples=None, noisy=None
) -> None:
    like = {"table": table, "labels": labels, "key": key, "samples": samples, "noisy": noisy}
    check_same_device("dsm_residual_regrad_", output, grad=grad, **like)


class _Perturb(Differentiable):
    @staticmethod
    def forward(x, table, key, labels, sample_offset, samples):
        return ops.perturb.default(x, table, key, labels, sample_offset, samples)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, labels = output
        ctx.mark_non_differentiable(labels)
        ctx.save_for_backward(inputs[1], labels)

    @staticmethod
    def backward(ctx, grad, _):
        table, labels = ctx.saved_tensors
        work = sum_dtype(grad.dtype)  # rounded once, at the end
        a = _rows_of(table, labels)[:, 0].to(work)
        grad_x = (grad.to(work) * per_sample(a, grad)).to(grad.dtype)
        return grad_x, None, None, None, None, None


class _Residual(Differentiable):
    @staticmethod
    def forward(output, table, labels, key, sample_offset, samples, noisy):
        return ops.dsm_residual.default(output, table, labels, key, sample_offset, samples, noisy)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        out, table, labels, key, ctx.sample_offset, samples, noisy = inputs
        # The caller may advance the key in place before backward runs: keep its value.
        ctx.save_for_backward(out, table, labels, key.clone(), kept(samples), noisy)

    @staticmethod
    def backward(ctx, grad):
        out, table, labels, key, samples, noisy = ctx.saved_tensors
        inputs = (out, table, labels, key, ctx.sample_offset, samples, noisy)
        needs_output, *_, needs_noisy = ctx.needs_input_grad
        grad_out = _gradient(grad, *inputs) if needs_output else None
        grad_noisy = _gradient(grad, *_changed_about(*inputs)) if needs_noisy else None
        return grad_out, None, None, None, None, None, grad_noisy


class _ReducedResidual(torch.autograd.Function):
    """Mean or sum over the batch, with the gradient for the upstream 1 made in the same pass."""

    @staticmethod
    def forward(ctx, output, table, labels, key, sample_offset, samples, noisy, reduction):
        ctx.count = max(output.shape[0], 1) if reduction == "mean" else 1
        loss, ctx.made = ops.dsm_residual_with_grad.default(
            output, table, labels, key, sample_offset, 1 / ctx.count, samples, noisy
        )
        # The caller may advance the key in place before backward runs: keep its value.
        ctx.save_for_backward(output, table, labels, key.clone(), kept(samples), noisy)
        ctx.sample_offset = sample_offset
        return reduced(loss, reduction)

    @staticmethod
    def backward(ctx, grad):
        # Else create_graph, where the gradient's own graph is wanted, or a batch of gradients.
        batched = torch._C._functorch.is_legacy_batchedtensor(grad)  # by is_grads_batched=True
        fresh = not torch.is_grad_enabled() and not batched
        made = ctx.made if fresh else None
        needs_noisy = ctx.needs_input_grad[6]
        if made is not None:
            ctx.made = None  # autograd may change in place what it is given: for one backward only
            if grad.device.type == "cpu" and float(grad) == 1 and not needs_noisy:
                return made, None, None, None, None, None, None, None
        output, table, labels, key, samples, noisy = ctx.saved_tensors
        inputs = (output, table, labels, key, ctx.sample_offset, samples, noisy)
        upstream = (grad / ctx.count).expand(len(output))
        if made is None:
            made = _gradient(upstream, *inputs)
        else:
            ops.dsm_residual_regrad_.default(made, upstream, 1 / ctx.count, *inputs)
        grad_noisy = _gradient(upstream, *_changed_about(*inputs)) if needs_noisy else None
        return made, None, None, None, None, None, grad_noisy, None


class _ResidualBackward(Differentiable):
    """grad_b w p (p out + q z + h noisy): linear in grad_b, in out and in noisy."""

    @staticmethod
    def forward(grad, out, table, labels, key, sample_offset, samples, noisy):
        return ops.dsm_residual_backward.default(
            grad, out, table, labels, key, sample_offset, samples, noisy
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        grad, out, table, labels, key, ctx.sample_offset, samples, noisy = inputs
        ctx.save_for_backward(grad, out, table, labels, key, samples, noisy)

    @staticmethod
    def backward(ctx, cotangent):
        grad, out, table, labels, key, samples, noisy = ctx.saved_tensors
        ones = torch.ones_like(grad)
        unit = ops.dsm_residual_backward.default(
            ones, out, table, labels, key, ctx.sample_offset, samples, noisy
        )
        work = sum_dtype(out.dtype)
        products = cotangent.to(work) * unit.to(work)
        grad_grad = (
            products.sum(tuple(range(1, products.dim()))) if products.dim() > 1 else products
        )
        row = _rows_of(table, labels)
        scale = grad.to(work) * (row[:, 2] * row[:, 0].square()).to(work)
        grad_out = (cotangent * per_sample(scale, out)).to(out.dtype)
        grad_noisy = None
        if noisy is not None and ctx.needs_input_grad[7]:
            scale = grad.to(work) * (row[:, 2] * row[:, 0] * row[:, 3]).to(work)
            grad_noisy = (cotangent * per_sample(scale, out)).to(noisy.dtype)
        return grad_grad.to(grad.dtype), grad_out, None, None, None, None, None, grad_noisy


def _gradient(grad: Tensor, *inputs: Any) -> Tensor:
    """grad_b d loss_b / d output, of the inputs that dsm_residual has."""
    gradient: Tensor = _ResidualBackward.run("dsm_residual_backward", grad, *inputs)
    return gradient


def _changed_about(
    output: Tensor,
    table: Tensor,
    labels: Tensor,
    key: Tensor,
    sample_offset: int,
    samples: Tensor | None,
    noisy: Tensor,
) -> tuple[Any, ...]:
    """The same residuals with ``noisy`` as the output, whose gradient is then the kernel's."""
    p, q_and_w, h = table[:, :1], table[:, 1:3], table[:, 3:]
    changed = torch.cat([h, q_and_w, p], dim=1)
    return noisy, changed, labels, key, sample_offset, samples, output.to(noisy.dtype)
