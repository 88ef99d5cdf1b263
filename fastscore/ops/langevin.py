"""The family ``langevin``: the affine noisy update, fused.

    x <- a x + b s + c z,    z ~ N(0, I) of stream LANGEVIN

Least traffic: read x and s, write x (12 bytes an element in float32), and with a score of two terms
read both (16). The noise is never stored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore._support.checks import per_sample
from fastscore.ops._library import Differentiable, call_, check_bounds, check_same_device, ops
from fastscore.ops._vmap import map_slices

Clamp = tuple[float | None, float | None] | None
_NAMES = (
    "x", "score", "table", "key", "known", "mask", "low", "high", "sample_offset", "samples",
    "second", "weights",
)  # fmt: skip


def langevin_step_(
    x: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Clamp = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """One Langevin step in place; returns ``x``.

    Args:
        x: state, (batch, ...), any strides; float32, float64, bfloat16 or float16.
        score: of x's shape and dtype (or of half precision when x is float32).
        table: float64 (rows, 4) or (rows, 6), or (rows, batch, 4 or 6) for coefficients of each
            sample's own; columns a, b, c and k, and then m and u, which are 1 where there are four.
            The row is ``min(draw, rows - 1)``.
        key: int64 [seed, draw]; the draw is the step number. Or (batch, 2), a key of each sample's
            own, which then makes its own step, as if it were alone.
        known, mask: where ``mask`` (bool, x's shape) is True, x becomes ``m known + k z``.
        clamp: (low, high), either may be None: the result is kept in [u low, u high].
        sample_offset: number of the first sample, so that shards draw what the whole would.
        samples: int64 (batch,) on x's device, at least 0, in place of ``sample_offset``: the
            number of each sample, in any order, repeated or not. (On CUDA a negative number goes
            unnoticed: it is noise of some other number.)
        second, weights: a second term, of score's shape and dtype, and float64 (2,) or (batch, 2)
            on x's device: the score is then ``weights[..., 0] score + weights[..., 1] second``, as
            classifier-free and other guidance makes it. Both or neither.

    Raises:
        ValueError: an argument does not fit, or requires grad (:func:`langevin_step` has
            a derivative).

    Song and Ermon 2019, Algorithm 1; Welling and Teh 2011.

    >>> import fastscore
    >>> x, table = torch.ones(1, 2), torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    >>> langevin_step_(x, -x, table, fastscore.random.key(0))
    tensor([[0.5000, 0.5000]])
    """
    fn = "langevin_step_"
    low, high = (None, None) if clamp is None else check_bounds(fn, clamp)
    op = ops.langevin_step_.default
    rest = (sample_offset, samples, second, weights)
    return call_(fn, op, _NAMES, x, score, table, key, known, mask, low, high, *rest)


def langevin_step(
    x: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Clamp = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """:func:`langevin_step_` into a new tensor, differentiable in x, score, known and second.

    >>> import fastscore
    >>> x, table = torch.ones(1, 2), torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    >>> langevin_step(x, -x, table, fastscore.random.key(0)), x
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    fn = "langevin_step"
    low, high = check_bounds(fn, clamp)
    rest = (sample_offset, samples, second, weights)
    step: Tensor = _LangevinStep.run(fn, x, score, table, key, known, mask, low, high, *rest)
    return step


map_slices("langevin_step_", "langevin_step")


def _check_fake(fn: str, x: Tensor, *others: Tensor | float | None) -> None:
    """Everything lies where x does; ``others`` are the arguments behind x, in their order."""
    named = dict(zip(_NAMES[1:], others, strict=False))
    tensors = {name: other for name, other in named.items() if isinstance(other, Tensor)}
    check_same_device(fn, x, **tensors)


@torch.library.register_fake("fastscore::langevin_step_")
def _(x, *others) -> None:
    _check_fake("langevin_step_", x, *others)


@torch.library.register_fake("fastscore::langevin_step")
def _(x, *others) -> Tensor:
    _check_fake("langevin_step", x, *others)
    return torch.empty_like(x)


class _LangevinStep(Differentiable):
    @staticmethod
    def forward(
        x, score, table, key, known, mask, low, high, sample_offset, samples, second, weights
    ):
        rest = (sample_offset, samples, second, weights)
        return ops.langevin_step.default(x, score, table, key, known, mask, low, high, *rest)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, score, table, key, _, mask, low, high, _, _, _, weights = inputs
        # The row is read now: the caller may advance the key before backward runs.
        step = key[..., 1].clamp(0, table.shape[0] - 1)
        if key.dim() == 1:
            row = table.index_select(0, step.reshape(1))[0]
        elif table.dim() == 2:
            row = table.index_select(0, step)
        else:
            row = table[step, torch.arange(table.shape[1], device=table.device)]
        clamped = low is not None or high is not None
        # And so are the weights: by how much the state moves with each term.
        slopes = row[..., 1:2] if weights is None else row[..., 1:2] * weights
        ctx.save_for_backward(row, slopes, mask, output if clamped else None)
        ctx.bounds = (low, high)
        ctx.score_dtype = score.dtype

    @staticmethod
    def backward(ctx, grad):
        row, slopes, mask, output = ctx.saved_tensors
        work = torch.promote_types(grad.dtype, torch.float32)  # rounded once, at the end

        def times(coefficient: Tensor, grad: Tensor) -> Tensor:
            each = coefficient if coefficient.dim() == 0 else per_sample(coefficient, grad)
            return grad.to(work) * each.to(work)

        low, high = (_bound(end, row, output, work) for end in ctx.bounds)
        if low is not None:
            grad = torch.where(output > low, grad, 0)
        if high is not None:
            grad = torch.where(output < high, grad, 0)
        grad_known = None
        if mask is not None:
            grad_known = torch.where(mask, grad, 0)
            grad = torch.where(mask, 0, grad)
            if row.shape[-1] == 6:
                grad_known = times(row[..., 4], grad_known).to(grad.dtype)
        grad_x = times(row[..., 0], grad).to(grad.dtype)
        grads = [times(slope, grad).to(ctx.score_dtype) for slope in slopes.unbind(-1)]
        second = grads[1] if len(grads) == 2 else None
        return grad_x, grads[0], None, None, grad_known, *(None,) * 5, second, None


def _bound(
    end: float | None, row: Tensor, output: Tensor, work: torch.dtype
) -> float | Tensor | None:
    """A bound as the step had it: u times ``end``, rounded as its result is."""
    if end is None or row.shape[-1] == 4 or not math.isfinite(end):
        return end
    u = row[..., 5].to(work)
    u = u if u.dim() == 0 else per_sample(u, output)
    return (u * end).to(output.dtype)
